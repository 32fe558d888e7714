"""Plans: what a job would take, before anything is trained."""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool

from acmix import fleet, plan_request
from acmix.catalog import Catalog
from acmix.errors import SpecInvalid
from acmix.plan_request import PlanRequest
from service import json_body, planning, user_data, worker_answers
from service.depends import Store
from service.openapi import PLAN_BODY
from service.plan_answers import Plan
from service.routes.catalog import known_menu
from service.store.backend import Backend

router = APIRouter(prefix="/v1/plans", tags=["plans"])


@router.post("", openapi_extra=PLAN_BODY)
async def post_plan(body: Annotated[bytes, Depends(json_body.read_body)], store: Store) -> Plan:
    """Parameters, multiply-adds and memory of a job's model, layer by layer, plain and swapped; no job comes of it.

    `assume` replaces what the data set would give; with both of its fields, `dataset` may be left out. A model that
    cannot be had, or not for such images, is a 422 that says what would do; 503 if no housekeeper answers within 10 s.
    Of each worker that is there it is told whether it could run the job, and if not, why.
    """
    request, catalog = await run_in_threadpool(_checked, store, body)
    planned = await planning.plan(store, request, catalog)
    resolved_spec = plan_request.resolved(request, catalog).dump()
    there = await run_in_threadpool(store.reader.workers)
    workers = worker_answers.for_plan(fleet.demand_of(resolved_spec), there)
    warnings = [*planned["warnings"], *worker_answers.warnings(workers)]
    return Plan.model_validate({**planned, "resolved_spec": resolved_spec, "workers": workers, "warnings": warnings})


def _checked(store: Backend, body: bytes) -> tuple[PlanRequest, Catalog]:
    """The request, if the catalog has all that it names."""
    request, menu = plan_request.parse(json_body.loads(body)), known_menu(store)
    request = user_data.found(request, store, menu.catalog)
    problems = plan_request.problems(request, menu.catalog, fleet=menu.fleet)
    if problems:
        raise SpecInvalid(problems)
    return request, menu.catalog
