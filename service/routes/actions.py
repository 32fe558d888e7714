"""What may be asked of a job: its end, a pause, to go on, to be done again."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from service import submission
from service.answers import JobAnswer
from service.depends import JobId, Store
from service.job_json import job_response
from service.routes.jobs import MADE_BEFORE, IdempotencyKey, as_made
from service.store.backend import Backend
from service.store.errors import MoveRefused
from service.store.rows import Job
from service.store.states import ACTIONS, allowed_actions
from service.submission import Posted

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

UNCHANGED: dict[int | str, dict[str, Any]] = {200: {"model": JobAnswer, "description": "it is so already"}}


@router.post("/cancel", status_code=202, response_model=JobAnswer, responses=UNCHANGED)
def cancel(job_id: JobId, store: Store) -> Response:
    """Ask for the job's end: 202, or 200 where it has ended or was asked to before.

    A running one ends after the step under way, with a checkpoint; within CANCEL_GRACE_SECONDS at the latest.
    """
    return _asked(store.ledger.request_cancel, job_id, store)


@router.post("/pause", status_code=202, response_model=JobAnswer, responses=UNCHANGED)
def pause(job_id: JobId, store: Store) -> Response:
    """Give its device back until `resume`: 202, or 200 where it is paused or about to end; 409 where it has ended.

    A running one saves a checkpoint after the step under way, and goes on from there under its next attempt.
    """
    return _asked(store.ledger.request_pause, job_id, store)


@router.post("/resume", status_code=202, response_model=JobAnswer, responses=UNCHANGED)
def resume(job_id: JobId, store: Store) -> Response:
    """Queue a paused job again: 202, or 200 where it is not paused; 409 where it has ended."""
    job, changed = store.ledger.resume(job_id)
    if job.status == "queued":
        store.queue.nudge_train()
    return _told(store, job, changed=changed)


@router.post("/retry", status_code=202, response_model=JobAnswer, responses=MADE_BEFORE)
async def retry(job_id: JobId, store: Store, idempotency_key: IdempotencyKey = None) -> Response:
    """Do an ended job again, from its start: a new one of the same spec, whose `parent` is this; 409 where it goes on.

    The spec is checked against the catalog of today. 200 and the first job where its Idempotency-Key was used before.
    """

    def read() -> Posted:
        return Posted(_ended(store, job_id).spec, submission.sha256_of({"retry": job_id}))

    job, created = await submission.submit(store, read, idempotency_key=idempotency_key, parent=job_id)
    return as_made(job, status_code=202, created=created)


def _asked(ask: Callable[[str], tuple[Job, bool]], job_id: str, store: Backend) -> Response:
    job, changed = ask(job_id)
    return _told(store, job, changed=changed)


def _told(store: Backend, job: Job, *, changed: bool) -> Response:
    return job_response(store.reader.told(job.id), 202 if changed else 200)


def _ended(store: Backend, job_id: str) -> Job:
    job = store.reader.job(job_id)
    if job.status not in ACTIONS["retry"]:
        raise MoveRefused(job, "retry", allowed_actions(job.status))
    return job
