"""Requests for plans, answered with JSON values: one by hand, or one a line while a service keeps the process warm."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from acmix import menu, resolve, spec
from acmix.catalog import Catalog
from acmix.errors import AcmixError, Problem, SpecInvalid
from acmix.plan import plan
from acmix.spec import JobSpec
from acmix.training.run import reason_of

MOST = {"num_classes": 100_000, "image_px": 4096}  # what can be assumed of a data set
_WARMING = {
    "spec": {
        "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.0625}},
        "swaps": [{"layers": "*"}],
        "dataset": {"name": "digits"},
    }
}

log = logging.getLogger(__name__)


def serve(lines: Iterable[str], say: Callable[[str], object]) -> None:
    """Answer every line that holds a request with a line, after one that says {"ready": true}."""
    answer(_WARMING)
    say(json.dumps({"ready": True}))
    for line in lines:
        say(json.dumps(_answered(line)))


def answer(request: Any) -> dict[str, Any]:
    """`resolved_spec` and `plan` of a request {"spec": ..., "assume": null or {"num_classes": ..., "image_px": ...}}.

    `assume` replaces what the data set would give, either of the two or both. Where there can be no plan, `problems`
    with pointers into spec and `assume`.
    """
    try:
        if not isinstance(request, dict) or "spec" not in request:
            raise SpecInvalid([Problem("", "malformed", 'a request is {"spec": {...}, "assume": {...} or null}')])
        assumed = _assumed(request.get("assume"))
        job = _resolved(spec.parse(request["spec"]))
        given = {**_told(job), **assumed}
        if given["num_classes"] is None:
            raise SpecInvalid([_unknown_classes(job)])
        return {"resolved_spec": job.dump(), "plan": plan(job, **given)}
    except SpecInvalid as error:
        return {"problems": [problem.as_json() for problem in error.problems]}


def _answered(line: str) -> dict[str, Any]:
    """Whatever goes wrong is the answer: a request never ends the process."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"problems": [Problem("", "malformed", f"the request is not JSON: {error}").as_json()]}
    try:
        return answer(request)
    except Exception as error:
        if not isinstance(error, AcmixError):
            log.exception("a plan ended with an error of its own")
        return {"error": reason_of(error).as_json()}


@cache
def _menu() -> Catalog:
    return menu.catalog()


def _assumed(raw: Any) -> dict[str, int]:
    """What of the data set is assumed."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SpecInvalid([Problem("/assume", "dict_type", "assume must be an object or null")])
    problems = list(_assumption_problems(raw))
    if problems:
        raise SpecInvalid(problems)
    return {name: value for name, value in raw.items() if value is not None}


def _assumption_problems(raw: dict[str, Any]) -> Iterator[Problem]:
    for name, value in raw.items():
        at = spec.pointer(("assume", name))
        if name not in MOST:
            yield Problem(at, "unknown_field", f"{name[:60]!r} cannot be assumed; {' and '.join(MOST)} can")
        elif value is not None and (type(value) is not int or not 1 <= value <= MOST[name]):
            yield Problem(at, "out_of_bounds", f"{name} must be an integer from 1 to {MOST[name]}", limit=MOST[name])


def _resolved(job: JobSpec) -> JobSpec:
    problems = resolve.problems(job, _menu(), most_gpus=resolve.MOST_GPUS_A_JOB)
    if problems:
        raise SpecInvalid(problems)
    return resolve.resolve(job, _menu())


def _told(job: JobSpec) -> dict[str, Any]:
    """What the data set gives without its files; `num_classes` is None where only they tell."""
    entry = next(each for each in _menu().datasets if each.name == job.dataset.name)
    return {"num_classes": entry.num_classes, "image_px": job.dataset.options.get("image_px", entry.image_px)}


def _unknown_classes(job: JobSpec) -> Problem:
    return Problem(
        "/dataset/name",
        "num_classes_unknown",
        f"only its files tell how many classes {job.dataset.name} has; assume.num_classes (--num-classes) would do",
    )
