"""Plans as the API has them made: a row for the housekeeper, and the wait for its answer."""

from functools import partial
from importlib.metadata import version
from typing import Any

from acmix import plan_request
from acmix.catalog import Catalog
from acmix.errors import Problem, SpecInvalid
from acmix.plan_request import Assume, PlanRequest
from acmix.spec import JobSpec
from service.store.backend import Backend
from service.waiting import answered

VERSION = version("acmix-service")  # plans of another one are not taken for this one's
WAIT_SECONDS = 10.0
ABSENT = "no housekeeper has made the plan yet; if one is running, try again soon"
ASSUMED_CLASSES = 1000  # of a job whose classes only its files tell: no swap depends on them


async def plan(store: Backend, request: PlanRequest, catalog: Catalog) -> dict[str, Any]:
    """`layers`, `totals` and `warnings` of a request that the catalog has.

    Raises:
        SpecInvalid: there is no such model, or it cannot be trained on such images; with what would do.
        RequestRefused: 503, nobody has answered in time.
    """
    essence = plan_request.essence(plan_request.resolved(request, catalog))
    ask = partial(store.plans.ask, essence, version=VERSION)
    found = await answered(store.plans, ask, store.queue.nudge_plans, seconds=WAIT_SECONDS, absent=ABSENT)
    if found.failure is not None:
        raise SpecInvalid([Problem("", found.failure["code"], found.failure["message"])])
    answer = found.answer or {}
    if "problems" in answer:
        problems = [Problem(**problem) for problem in answer["problems"]]
        raise SpecInvalid(plan_request.placed(problems, request, catalog))
    planned: dict[str, Any] = answer["plan"]
    return planned


async def check(store: Backend, job: JobSpec, catalog: Catalog) -> None:
    """Raise what a plan of the job would raise."""
    request = PlanRequest.model_validate(job.dump())
    if plan_request.resolved(request, catalog).assume.num_classes is None:
        request = request.model_copy(update={"assume": Assume(num_classes=ASSUMED_CLASSES)})
    await plan(store, request, catalog)
