"""Who is there to train, and what waits for them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field, StringConstraints

from acmix.spec import ULID
from service.answers import JobAnswer, Listing, Worker
from service.depends import Store
from service.job_json import jobs_response
from service.query import Limit, Parameters

router = APIRouter(prefix="/v1", tags=["workers"])


class QueueQuery(Parameters):
    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^job_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )


@router.get("/workers")
def workers(store: Store) -> Listing[Worker]:
    """Live workers with their devices and load."""
    return Listing(data=[Worker.model_validate(each) for each in store.reader.workers()])


@router.get("/queue", response_model=Listing[JobAnswer])
def queue(store: Store, query: Annotated[QueueQuery, Query()]) -> Response:
    """Queued jobs in the order in which they will be claimed."""
    return jobs_response(store.reader.queue(limit=query.limit, after=query.after))
