"""Plans as the API has them made: a row for the housekeeper, and the wait for its answer."""

import asyncio
import time
from importlib.metadata import version
from typing import Any

from fastapi.concurrency import run_in_threadpool

from acmix import plan_request
from acmix.catalog import Catalog
from acmix.errors import Problem, SpecInvalid
from acmix.plan_request import Assume, PlanRequest
from acmix.spec import JobSpec
from service.errors import not_ready
from service.store import rows
from service.store.backend import Backend

VERSION = version("acmix-service")  # plans of another one are not taken for this one's
WAIT_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.25
ASSUMED_CLASSES = 1000  # of a job whose classes only its files tell: no swap depends on them


async def plan(store: Backend, request: PlanRequest, catalog: Catalog) -> dict[str, Any]:
    """`layers`, `totals` and `warnings` of a request that the catalog has.

    Raises:
        SpecInvalid: there is no such model, or it cannot be trained on such images; with what would do.
        RequestRefused: 503, nobody has answered in time.
    """
    essence = plan_request.essence(plan_request.resolved(request, catalog))
    answered = await _answered(store, essence)
    if answered.failure is not None:
        raise SpecInvalid([Problem("", answered.failure["code"], answered.failure["message"])])
    answer = answered.answer or {}
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


async def _answered(store: Backend, essence: dict[str, Any]) -> rows.Plan:
    """The row of the request once it is answered. No thread is held meanwhile."""
    found = await run_in_threadpool(store.plans.ask, essence, version=VERSION)
    if found.answered_at is None:
        await run_in_threadpool(store.queue.nudge_plans)
    give_up_at, pause_seconds = time.monotonic() + WAIT_SECONDS, FIRST_PAUSE_SECONDS
    while found.answered_at is None:
        if time.monotonic() > give_up_at:
            raise not_ready("no housekeeper has made the plan yet; if one is running, try again soon")
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(1.5 * pause_seconds, LONGEST_PAUSE_SECONDS)
        looked_up: rows.Plan | None = await run_in_threadpool(store.plans.find, found.id)
        found = looked_up or found
    return found
