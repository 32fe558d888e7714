"""Jobs as JSON. A spec goes from its row into the answer as the text that it is: to read it took most of the time.

What comes out is a JobAnswer; a test says so.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from fastapi import Response

from service.answers import Best, Progress, Reason
from service.store.rows import Page, ToldJob

PARTS = ("results", "metrics", "traces", "events", "checkpoints")
URLS = json.dumps({"self": "/v1/jobs/JOB", **{part: f"/v1/jobs/JOB/{part}" for part in PARTS}})


def job_response(job: ToldJob, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One job."""
    return Response(_object(job), status_code, headers, media_type="application/json")


def jobs_response(page: Page[ToldJob]) -> Response:
    """A page of them."""
    more = f'"has_more": {json.dumps(page.has_more)}, "next": {json.dumps(page.next)}'
    return Response(f'{{"data": [{", ".join(map(_object, page.data))}], {more}}}', media_type="application/json")


def _object(job: ToldJob) -> str:
    said = {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "phase": job.phase,
        "status_reason": Reason.model_validate(job.status_reason).model_dump() if job.status_reason else None,
        "requested": job.requested,
        "parent": job.parent,
        "attempt": job.attempt,
        "failures": job.failures,
        "losses": job.losses,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "ended_at": _time(job.ended_at),
        "queue": {"position": job.position},
        "progress": _progress(job),
        "estimated_end_at": _time(_estimated_end_at(job)),
        "best": Best.model_validate(job.best).model_dump() if job.best else None,
        "worker": job.worker,
        "devices": job.devices,
        "versions": job.versions,
        "metadata": job.metadata,
        "events_pruned_at": _time(job.events_pruned_at),
        "series_pruned_at": _time(job.series_pruned_at),
    }
    urls = URLS.replace("JOB", job.id)
    return f'{json.dumps(said)[:-1]}, "urls": {urls}, "spec": {job.spec}, "resolved_spec": {job.resolved_spec}}}'


def _time(at: datetime | None) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None


def _progress(job: ToldJob) -> dict[str, Any] | None:
    if job.progress is None:
        return None
    step, steps = job.progress.get("step"), job.progress.get("steps")
    fraction = min(1.0, step / steps) if step is not None and steps else None
    told = {"fraction": fraction, **job.progress, "updated_at": job.progress_at}
    return Progress.model_validate(told).model_dump(mode="json")


def _estimated_end_at(job: ToldJob) -> datetime | None:
    """By the speed of the last progress; evaluations are not counted in."""
    progress = job.progress or {}
    speed, steps = progress.get("samples_per_second"), progress.get("steps")
    if job.status != "running" or job.progress_at is None or not speed or not steps:
        return None
    training = json.loads(job.resolved_spec).get("training", {})
    samples_per_step = training.get("batch_size", 1) * training.get("accumulate_batches", 1)
    return job.progress_at + timedelta(seconds=(steps - progress.get("step", 0)) * samples_per_step / speed)
