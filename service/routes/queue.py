"""What waits for a worker, in which order, and why."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field, StringConstraints

from acmix.spec import ULID
from service.answers import Listing, QueuedAnswer
from service.depends import Store
from service.job_json import queue_response
from service.query import Limit, Parameters

router = APIRouter(prefix="/v1/queue", tags=["workers"])


class QueueQuery(Parameters):
    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^job_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )


@router.get("", response_model=Listing[QueuedAnswer])
def queue(store: Store, query: Annotated[QueueQuery, Query()]) -> Response:
    """Queued jobs in the order in which they would be claimed, and why each of them waits."""
    page = store.reader.queue(limit=query.limit, after=query.after)
    return queue_response(page, store.reader.waits([job.id for job in page.data]))
