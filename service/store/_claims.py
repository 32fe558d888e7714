"""The claim: which queued job is next for a worker, and how it becomes the worker's."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, literal, select, tuple_

from acmix.events import Event
from service.store import _checkpoints, _journal, _outbox, _quotas
from service.store._lanes import CLAIM_ORDER, due, in_turn
from service.store.rows import Checkpoint, Claim, Job, Json, read
from service.store.states import turn_at
from service.store.tables import attempts, jobs, workers

MOST_SPECS = 100  # read at once; the first alone, for most often it fits, and a spec has kilobytes


def lined_up(priority: int, now: datetime) -> dict[str, datetime]:
    """What a job's row says once it is queued from now on."""
    return {"queued_at": now, "turn_at": turn_at(priority, now)}


def behind(turn_at: datetime, job_id: str) -> ColumnElement[bool]:
    """Jobs that come after such a one in claim order."""
    return tuple_(*CLAIM_ORDER) > tuple_(literal(turn_at, jobs.c.turn_at.type), literal(job_id, jobs.c.id.type))


def lock_next(connection: Connection, now: datetime, gpus_free: int, can_run: Callable[[Json], bool]) -> Job | None:
    """The first job in claim order that this worker can run, locked; one that another is claiming is passed over."""
    exhausted = _quotas.exhausted(connection, now)
    for job_id, resolved_spec in _with_specs(connection, in_turn(connection, now, gpus_free, exhausted)):
        if can_run(resolved_spec):
            still = select(jobs).where(jobs.c.id == job_id, due(now)).with_for_update(skip_locked=True)
            row = connection.execute(still).mappings().one_or_none()
            if row is not None:
                return read(Job, row)
    return None


def take(
    connection: Connection, job: Job, now: datetime, worker_id: str, *, lease_seconds: float, gpus_free: int
) -> Claim:
    """Begin the job's next attempt, from its newest checkpoint, and tell so."""
    resume, rewound = _gone_back(connection, job) if job.attempt else (None, {})
    taken = _journal.change(
        connection,
        job,
        status="running",
        phase="starting",
        status_reason=None,
        requested=None,
        attempt=job.attempt + 1,
        worker=worker_id,
        devices=None,
        not_before=None,
        claimed_at=now,
        started_at=job.started_at or now,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        resolved_spec=_granted(job, gpus_free),
        **rewound,
    )
    resumed_from = _checkpoints.resumed_from(resume)
    _begin_attempt(connection, taken, now, resumed_from)
    where = f"from step {resume.step}" if resume else "from the start"
    data = {"status": "running", "worker": worker_id, "resumed_from": resumed_from}
    told = Event("status", f"attempt {taken.attempt} begins {where} on {worker_id}", data)
    begun = _journal.append(connection, taken, now, [told])
    _outbox.tell(connection, begun, now)
    return Claim(begun, resume, _ran_seconds(connection, taken))


def _gone_back(connection: Connection, job: Job) -> tuple[Checkpoint | None, dict[str, Any]]:
    """The checkpoint that the attempt goes on from, and what changes in a job that goes back to it."""
    resume = next(iter(_checkpoints.listed(connection, job.id)), None)
    _, rewound = _checkpoints.truncate(connection, job, resume)
    return resume, rewound


def _with_specs(connection: Connection, ids: Iterator[str]) -> Iterator[tuple[str, Json]]:
    """Jobs and their resolved specs, which are read some at a time, and the more the further it goes."""
    many = 1
    while some := list(islice(ids, many)):
        wanted = select(jobs.c.id, jobs.c.resolved_spec).where(jobs.c.id.in_(some))
        specs = {row.id: row.resolved_spec for row in connection.execute(wanted)}
        yield from ((job_id, specs[job_id]) for job_id in some if job_id in specs)
        many = min(4 * many, MOST_SPECS)


def _ran_seconds(connection: Connection, job: Job) -> float:
    """How long the attempts before this one held the job, all together."""
    if job.attempt == 1:
        return 0.0
    times = select(attempts.c.started_at, attempts.c.ended_at).where(attempts.c.job == job.id)
    before = connection.execute(times.where(attempts.c.number < job.attempt, attempts.c.ended_at.is_not(None)))
    return sum(((row.ended_at - row.started_at).total_seconds() for row in before), start=0.0)


def _granted(job: Job, gpus_free: int) -> Json:
    """The resolved spec with its number of GPUs: "auto" is 1 where there is one."""
    gpus = job.gpus if job.gpus is not None else min(1, gpus_free)
    return {**job.resolved_spec, "resources": {**job.resolved_spec["resources"], "gpus": gpus}}


def _begin_attempt(connection: Connection, job: Job, now: datetime, resumed_from: Json | None) -> None:
    host = connection.execute(select(workers.c.host).where(workers.c.id == job.worker)).scalar_one_or_none()
    row: dict[str, Any] = {
        "job": job.id,
        "number": job.attempt,
        "worker": job.worker,
        "host": host,
        "started_at": now,
        "heartbeat_at": now,
        "resumed_from": resumed_from,
    }
    connection.execute(insert(attempts).values(**row))
