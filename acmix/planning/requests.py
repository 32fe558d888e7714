"""Requests for plans, answered with JSON values: one by hand, or one a line while a service keeps the process warm."""

import json
import logging
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from acmix import menu, plan_request
from acmix.catalog import Catalog
from acmix.errors import AcmixError, Problem, SpecInvalid
from acmix.plan import plan
from acmix.plan_request import PlanRequest
from acmix.planning.library import fingerprint
from acmix.training.run import reason_of

_WARMING = {
    "backbone": {"name": "resnet26", "options": {"stem": "small", "width": 0.0625}},
    "swaps": [{"layers": "*"}],
    "dataset": {"name": "digits"},
}

log = logging.getLogger(__name__)


def serve(lines: Iterable[str], say: Callable[[str], object]) -> None:
    """Answer every line that holds a request with a line, after one that says which library answers."""
    answer(_WARMING)
    say(json.dumps({"ready": True, "library": fingerprint()}))
    for line in lines:
        say(json.dumps(_answered(line)))


def answer(raw: Any) -> dict[str, Any]:
    """`resolved_spec` and `plan` of a request, the body of POST /v1/plans: a spec with `assume` beside it.

    Where there can be no plan, `problems` with pointers into the request.
    """
    try:
        request = plan_request.parse(raw)
        full = _resolved(request)
        try:
            planned = plan(full, **full.assume.model_dump())
        except SpecInvalid as error:
            raise SpecInvalid(plan_request.placed(error.problems, request, _menu())) from None
        return {"resolved_spec": full.dump(), "plan": planned}
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


def _resolved(request: PlanRequest) -> PlanRequest:
    problems = plan_request.problems(request, _menu())
    if problems:
        raise SpecInvalid(problems)
    return plan_request.resolved(request, _menu())
