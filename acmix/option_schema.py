"""Options against the JSON Schema of their entry, every fault in our own words: what was sent is never repeated."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from acmix.errors import Problem, nearest
from acmix.spec import pointer

Path = tuple[int | str, ...]
Fault = Any  # jsonschema.ValidationError, whose every field is typed as perhaps not set

MAX_PROBLEMS = 50
OF_OPTIONS = {"type", "properties", "additionalProperties", "required"}


def option_problems(schema: Mapping[str, Any], options: Mapping[str, Any], at: Path) -> list[Problem]:
    """Every fault of the options; `at` is where they stand in the spec. At most 50, one a field."""
    if not options and not schema.get("required") and schema.keys() <= OF_OPTIONS:
        return []  # most often none is given, and to have the validator say so takes most of a spec's time
    closed = {"type": "object", "additionalProperties": False, **schema}
    found: dict[str, Problem] = {}
    for error in _Strict(closed).iter_errors(options):
        for problem in _problems_of(error, at):
            found.setdefault(problem.pointer, problem)
            if len(found) >= MAX_PROBLEMS:
                return list(found.values())
    return list(found.values())


def with_defaults(schema: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the schema's defaults where none is given."""
    properties = schema.get("properties", {})
    return {name: option["default"] for name, option in properties.items() if "default" in option} | dict(options)


def _is_integer(_checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema takes 4.0 for an integer; the Python code behind an option does not
_Strict = extend(  # type: ignore[no-untyped-call]  # it has no types
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
)

_LIMITS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be greater than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "must hold at least {} characters",
    "maxLength": "must hold at most {} characters",
    "minItems": "must hold at least {} items",
    "maxItems": "must hold at most {} items",
    "minProperties": "must hold at least {} fields",
    "maxProperties": "must hold at most {} fields",
}
_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def _problems_of(error: Fault, at: Path) -> Iterator[Problem]:
    path = (*at, *error.absolute_path)
    match error.validator:
        case "additionalProperties":
            yield from _unknown_options(error, path)
        case "required":
            missing = (name for name in error.validator_value if name not in error.instance)
            yield from (Problem(pointer((*path, name)), "required", f"{name} is required") for name in missing)
        case "anyOf" | "oneOf":
            yield from _no_branch(error, path, at)
        case _:
            yield _wrong_value(error, path)


def _unknown_options(error: Fault, path: Path) -> Iterator[Problem]:
    known = sorted(error.schema.get("properties", {}))
    unknown = (name for name in error.instance if name not in known)
    for name, _ in zip(unknown, range(MAX_PROBLEMS), strict=False):
        close = nearest(name, known)
        offer = f"nearest: {', '.join(close)}" if close else f"options are: {', '.join(known) or 'none'}"
        yield Problem(
            pointer((*path, name)),
            "unknown_option",
            f"no option is named {name[:60]!r}; {offer}",
            allowed=known,
            fixes=close or None,
        )


def _no_branch(error: Fault, path: Path, at: Path) -> Iterator[Problem]:
    """None of several schemas fits: the faults of the one that was meant, where only one can be."""
    branches: dict[Any, list[Fault]] = {}
    for fault in error.context or []:
        branches.setdefault(fault.relative_schema_path[0], []).append(fault)
    meant = [faults for faults in branches.values() if not any(_of_another_kind(fault) for fault in faults)]
    if len(meant) == 1:
        for fault in meant[0]:
            yield from _problems_of(fault, at)
    else:
        wanted = " or ".join(dict.fromkeys(map(_wanted, error.validator_value)))
        yield Problem(pointer(path), "wrong_value", f"{_named(path)} must be {wanted}")


def _of_another_kind(fault: Fault) -> bool:
    return not fault.relative_path and fault.validator in ("type", "const", "enum")


def _wanted(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return _one_of(schema["enum"])
    return _type_named(schema.get("type", "object"))


def _wrong_value(error: Fault, path: Path) -> Problem:
    keyword, wanted = str(error.validator), error.validator_value
    actual = error.instance if _is_number(error.instance) else None
    if keyword in _LIMITS:
        sentence = _LIMITS[keyword].format(wanted)
        return Problem(pointer(path), "out_of_bounds", f"{_named(path)} {sentence}", limit=wanted, actual=actual)
    if keyword in ("enum", "const"):
        allowed = wanted if keyword == "enum" else [wanted]
        return _not_among(error.instance, allowed, path)
    if keyword == "type":
        return Problem(pointer(path), "wrong_type", f"{_named(path)} must be {_type_named(wanted)}", actual=actual)
    if keyword == "not" and wanted == {"multipleOf": 2}:
        return Problem(pointer(path), "wrong_value", f"{_named(path)} must be odd", actual=actual)
    return Problem(pointer(path), "wrong_value", f"{_named(path)} does not fit the catalog's schema ({keyword})")


def _not_among(value: Any, allowed: Sequence[Any], path: Path) -> Problem:
    close = nearest(value, [item for item in allowed if isinstance(item, str)]) if isinstance(value, str) else None
    message = f"{_named(path)} must be {_one_of(allowed)}"
    return Problem(pointer(path), "not_allowed", message, allowed=list(allowed), fixes=close or None)


def _one_of(values: Sequence[Any]) -> str:
    return f"one of {', '.join(map(str, values))}" if len(values) > 1 else f"{values[0]!r}"


def _type_named(types: str | Sequence[str]) -> str:
    return " or ".join(_TYPES.get(name, name) for name in ([types] if isinstance(types, str) else types))


def _named(path: Path) -> str:
    """The option by its last name: `depths[1]` for an item of a list."""
    last = path[-1]
    return f"{str(path[-2])[:60]}[{last}]" if isinstance(last, int) else str(last)[:60]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
