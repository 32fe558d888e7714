"""A folder is a registry: a class with a `name` in backbones/, mixers/, datasets/ or tasks/ can be named in a spec.

The keyword-only arguments of its constructor (of `replacing`, for a mixer) are its options: the signature is the
schema. Positional arguments are what the builder knows (number of classes, the layer to replace, where data lies).

A class with a static method `variants` is a family: `timm` stands for timm/resnet18 and all the others, and is told
which one in its positional argument `variant`.
"""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from acmix.errors import NameNotFound, OptionInvalid, unknown_name, unknown_variant

Folder = Literal["backbones", "mixers", "datasets", "tasks"]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


OddInt = Annotated[int, Field(ge=1, le=63, json_schema_extra={"not": {"multipleOf": 2}}), AfterValidator(_odd)]


@cache
def entries(folder: Folder) -> Mapping[str, type[Any]]:
    """Every class that the folder's files define with a `name` of its own, by that name."""
    package = import_module(f"acmix.{folder}")
    found: dict[str, type[Any]] = {}
    for module_info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if module_info.name.startswith("_"):
            continue
        module = import_module(f"{package.__name__}.{module_info.name}")
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__ and "name" in vars(value):
                found[_key(value)] = value
    return found


def _key(entry: type[Any]) -> str:
    """A mixer's name stands for one form a kind of slot: `acmix` with kind conv2d is acmix:conv2d."""
    return f"{entry.name}:{entry.fits}" if hasattr(entry, "fits") else str(entry.name)


def get(folder: Folder, name: str) -> type[Any]:
    """The class of that name, or the family of that variant; NameNotFound names the nearest."""
    known, what = entries(folder), folder.removesuffix("s")
    own_name, _, variant = name.partition("/")
    entry = known.get(own_name)
    if entry is not None and is_family(entry):
        variants = entry.variants()
        if variant not in variants:
            raise NameNotFound(unknown_variant(what, name, variants))
    elif name not in known:
        raise NameNotFound(unknown_name(what, name, list(known)))
    return known[own_name]


def is_family(entry: type[Any]) -> bool:
    """Whether the class stands for many models."""
    return hasattr(entry, "variants")


@cache
def options_model(of: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the keyword-only arguments of a function or class."""
    target = _constructor(of) if inspect.isclass(of) else of
    hints = get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
        for parameter in inspect.signature(target).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(f"{of.__qualname__}Options", __config__=config, **fields)


def _constructor(of: type[Any]) -> Callable[..., Any]:
    """What takes the arguments of a class: `__new__` where it makes something else."""
    return of.__new__ if "__new__" in vars(of) else of.__init__


def schema(of: Callable[..., Any]) -> dict[str, Any]:
    """JSON Schema of the options."""
    raw = options_model(of).model_json_schema()
    raw.pop("title", None)
    for option in raw.get("properties", {}).values():
        option.pop("title", None)
    return raw


def check_options(of: Callable[..., Any], options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The options with their defaults filled in; OptionInvalid says which one is wrong and what would do."""
    model = options_model(of)
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = ".".join(map(str, fault["loc"]))
        known = ", ".join(model.model_fields) or "none"
        raise OptionInvalid(f"{where}: option {name!r}: {fault['msg']}; options are: {known}") from None
    return {name: getattr(checked, name) for name in model.model_fields}


def description(of: Callable[..., Any]) -> str:
    """The first paragraph of the docstring, on one line."""
    return " ".join((inspect.getdoc(of) or "").split("\n\n")[0].split())
