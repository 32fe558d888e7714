"""Who is there to train, and who is to take on nothing more."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from service import drain_request, json_body
from service.answers import Listing
from service.depends import Store, WorkerId
from service.openapi import DRAIN_BODY
from service.store.backend import Backend
from service.worker_answers import Worker, worker_answer

router = APIRouter(prefix="/v1/workers", tags=["workers"])


def _known(worker_id: WorkerId, store: Store) -> str:
    """Of a worker that has not left: known before anything of a body is looked at."""
    return store.reader.worker(worker_id).id


KnownWorker = Annotated[str, Depends(_known)]
UNCHANGED: dict[int | str, dict[str, Any]] = {200: {"model": Worker, "description": "it is so already"}}


@router.get("")
def workers(store: Store) -> Listing[Worker]:
    """Live workers with their devices and load."""
    return Listing(data=[worker_answer(each) for each in store.reader.workers()])


@router.post("/{worker_id}/drain", status_code=202, responses=UNCHANGED, openapi_extra=DRAIN_BODY)
def drain(
    worker_id: KnownWorker,
    store: Store,
    body: Annotated[bytes, Depends(json_body.read_body_if_any)],
    response: Response,
) -> Worker:
    """Have a worker take on nothing more until `resume`: 202, or 200 where it is so already; 404 where it has left.

    What it runs goes on to its end. With `{"jobs": "requeue"}` its runs are told so within 15 s or so, save a
    checkpoint and are queued again, which counts as no failure. The process stays; one that is started anew is another
    worker, and takes jobs.
    """
    changed = store.ledger.drain(worker_id, drain_request.parse(json_body.loads(body)).jobs)
    return _told(store, worker_id, response, changed=changed)


@router.post("/{worker_id}/resume", status_code=202, responses=UNCHANGED)
def resume(worker_id: KnownWorker, store: Store, response: Response) -> Worker:
    """Have a drained worker take on jobs again: 202, or 200 where it does; 404 where it has left."""
    changed = store.ledger.take_back(worker_id)
    store.queue.nudge_train()
    return _told(store, worker_id, response, changed=changed)


def _told(store: Backend, worker_id: str, response: Response, *, changed: bool) -> Worker:
    response.status_code = 202 if changed else 200
    return worker_answer(store.reader.worker(worker_id))
