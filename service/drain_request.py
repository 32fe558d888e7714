"""How a worker is drained: the body of POST /v1/workers/{id}/drain, which may be left out."""

from typing import Any

from pydantic import Field, ValidationError

from acmix.spec import Part
from service import body_faults
from service.errors import RequestRefused
from service.store.rows import Draining


class DrainRequest(Part):
    """What becomes of the jobs that it runs."""

    jobs: Draining = Field(
        "finish", description="finish: they go on to their end; requeue: they save and are queued again, for others"
    )


def parse(raw: Any) -> DrainRequest:
    """The request that JSON values stand for; RequestRefused (422) with a pointer for every fault."""
    try:
        return DrainRequest.model_validate(raw)
    except ValidationError as error:
        problems = body_faults.problems_of(error, DrainRequest, "a drain")
    raise RequestRefused(422, "drain_invalid", problems[0].message, problems=problems)
