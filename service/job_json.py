"""Jobs as JSON. What a row has as JSON text goes into the answer as it is: to read a spec took most of the time.

What comes out is a JobAnswer; a test says so.
"""

import json
from collections.abc import Mapping

import orjson
from fastapi import Response

from service.answers import Answer, Best, Progress, Reason
from service.store.rows import Json, Page, ToldJob, Wait

PARTS = ("results", "metrics", "traces", "events", "checkpoints")
URLS = json.dumps({"self": "/v1/jobs/JOB", **{part: f"/v1/jobs/JOB/{part}" for part in PARTS}})


def job_response(job: ToldJob, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One job."""
    return _response(_told(job), status_code, headers)


def jobs_response(page: Page[ToldJob]) -> Response:
    """A page of them."""
    return _response({"data": [_told(job) for job in page.data], "has_more": page.has_more, "next": page.next})


def queue_response(page: Page[ToldJob], waits: Mapping[str, Wait]) -> Response:
    """A page of the queue, with why each job waits; one that was claimed meanwhile is no more of it."""
    told = [{**_told(job), "queue": _waiting(job, waits[job.id])} for job in page.data if job.id in waits]
    return _response({"data": told, "has_more": page.has_more, "next": page.next})


def _waiting(job: ToldJob, wait: Wait) -> Json:
    return {
        "position": job.position,
        "reason": {"code": wait.code, "message": wait.message},
        "reserved": wait.reserved,
        "estimated_start_at": wait.estimated_start_at,
    }


def _response(said: Json, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = orjson.dumps(said, option=orjson.OPT_UTC_Z)
    return Response(body, status_code, headers, media_type="application/json")


def _told(job: ToldJob) -> Json:
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "phase": job.phase,
        "status_reason": _as(Reason, job.status_reason),
        "requested": job.requested,
        "spec": orjson.Fragment(job.spec),
        "resolved_spec": orjson.Fragment(job.resolved_spec),
        "parent": job.parent,
        "attempt": job.attempt,
        "failures": job.failures,
        "losses": job.losses,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "queue": {"position": job.position},
        "progress": _progress(job),
        "estimated_end_at": job.expected_end_at,
        "best": _as(Best, job.best),
        "worker": job.worker,
        "devices": orjson.Fragment(job.devices) if job.devices else None,
        "versions": orjson.Fragment(job.versions) if job.versions else None,
        "metadata": orjson.Fragment(job.metadata),
        "events_pruned_at": job.events_pruned_at,
        "series_pruned_at": job.series_pruned_at,
        "urls": orjson.Fragment(URLS.replace("JOB", job.id)),
    }


def _as(kind: type[Answer], stored: Json | None) -> orjson.Fragment | None:
    """What was stored, in the form of an answer. By the standard library: its texts may have half a surrogate pair."""
    if stored is None:
        return None
    return orjson.Fragment(json.dumps(kind.model_validate(stored).model_dump(mode="json")))


def _progress(job: ToldJob) -> orjson.Fragment | None:
    if job.progress is None:
        return None
    step, steps = job.progress.get("step"), job.progress.get("steps")
    fraction = min(1.0, step / steps) if step is not None and steps else None
    return _as(Progress, {"fraction": fraction, **job.progress, "updated_at": job.progress_at})
