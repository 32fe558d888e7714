"""Rows of jobs, locked and changed, and the events of each: what every write of the ledger is made of."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select, update

from acmix.errors import Reason
from acmix.events import Event
from service.store import _outbox
from service.store.errors import JobNotFound, LeaseLost
from service.store.rows import Job, Status, read, storable
from service.store.states import MOVES
from service.store.tables import events, jobs, log_lines, reservations

# Statements that are made once: to make one takes longer than to have it done.
HELD = (
    select(jobs)
    .where(jobs.c.id == bindparam("job_id"), jobs.c.attempt == bindparam("attempt"), jobs.c.status == "running")
    .with_for_update()
)
CHANGE = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("read_id"),
        jobs.c.status == bindparam("read_status"),
        jobs.c.attempt == bindparam("read_attempt"),
    )
    .returning(*jobs.c)
)
ADD_EVENTS = insert(events)


def lock(connection: Connection, job_id: str, mine: ColumnElement[bool]) -> Job:
    """The job, its row locked until the transaction ends; JobNotFound, also where it is none of `mine`."""
    this = select(jobs).where(jobs.c.id == job_id, mine)
    row = connection.execute(this.with_for_update()).mappings().one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return read(Job, row)


def lock_held(connection: Connection, job_id: str, attempt: int) -> Job:
    """The fence: the running job of this very attempt, its row locked; LeaseLost if it is another's by now."""
    row = connection.execute(HELD, {"job_id": job_id, "attempt": attempt}).mappings().one_or_none()
    if row is None:
        raise LeaseLost(job_id, attempt)
    return read(Job, row)


def change(connection: Connection, job: Job, **values: Any) -> Job:
    """Change a locked job, on condition that it still is as it was read; returns it as it then is."""
    if "status" in values:
        assert values["status"] in MOVES[job.status], f"{job.status} -> {values['status']} is no legal move"
    as_read = {"read_id": job.id, "read_status": job.status, "read_attempt": job.attempt}
    return read(Job, connection.execute(CHANGE, {**as_read, **values}).mappings().one())


def append(connection: Connection, job: Job, now: datetime, said: Sequence[Event], **changes: Any) -> Job:
    """Write events, one at least, under the job's next numbers and attempt; change the job along with it."""
    attempt = changes.get("attempt", job.attempt)
    _write(connection, job, now, said, first=job.last_event + 1, attempt=attempt)
    return change(connection, job, last_event=job.last_event + len(said), **changes)


def open_with(connection: Connection, job: Job, now: datetime, message: str) -> None:
    """Tell the status of a new job, whose row has counted this event already."""
    said = [Event("status", message, _status(job, None))]
    _write(connection, job, now, said, first=job.last_event, attempt=job.attempt)
    _outbox.tell(connection, job, now)


def append_status(
    connection: Connection, job: Job, now: datetime, message: str, reason: Reason | None, **data: Any
) -> Job:
    """Tell the status that the job has just taken on."""
    told_job = append(connection, job, now, [Event("status", message, {**_status(job, reason), **data})])
    _outbox.tell(connection, told_job, now)
    return told_job


def append_log(connection: Connection, job: Job, lines: Sequence[str]) -> None:
    numbered = enumerate(lines, start=job.last_log_line + 1)
    rows = [{"job": job.id, "number": number, "line": storable(line)} for number, line in numbered]
    if rows:
        connection.execute(insert(log_lines), rows)
        change(connection, job, last_log_line=job.last_log_line + len(rows))


def move(connection: Connection, job: Job, now: datetime, status: Status, reason: Reason | None, **values: Any) -> Job:
    """Take a locked job to another status and tell so: the one way in which a status changes, but for the claim."""
    ended = {"ended_at": now} if not MOVES[status] else {}
    told = {"status_reason": reason.as_json() if reason else None}
    moved = change(connection, job, status=status, phase=None, requested=None, **told, **ended, **values)
    if job.status == "queued" and job.blocked_at is not None:  # or nobody reserved anything for it
        connection.execute(delete(reservations).where(reservations.c.job == job.id))
    return append_status(connection, moved, now, f"{status}: {reason.message}" if reason else status, reason)


def _status(job: Job, reason: Reason | None) -> dict[str, Any]:
    return {"status": job.status, "reason": reason.as_json() if reason else None}


def _write(connection: Connection, job: Job, now: datetime, said: Sequence[Event], *, first: int, attempt: int) -> None:
    rows = [
        {
            "job": job.id,
            "number": number,
            "at": now,
            "attempt": attempt,
            "type": event.type,
            "message": storable(event.message),
            "data": dict(event.data),
        }
        for number, event in enumerate(said, start=first)
    ]
    connection.execute(ADD_EVENTS, rows)
