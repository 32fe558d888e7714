"""How an attempt ends: the verdict is written, the attempt closed, the lease given back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from service.store import _claims, _journal, _quotas
from service.store.rows import Job, Outcome, read
from service.store.states import ENDED, Verdict, judge
from service.store.tables import attempts, jobs

PAGE = 100


@dataclass(frozen=True)
class Budgets:
    """How often a job is begun again: after failures worth another try, and after attempts lost."""

    max_failures: int
    max_losses: int


def end_attempt(connection: Connection, job: Job, now: datetime, outcome: Outcome, budgets: Budgets) -> Job:
    """Judge a locked, running job by the outcome of its attempt."""
    verdict = judge(job, outcome, max_failures=budgets.max_failures, max_losses=budgets.max_losses)
    _close(connection, job, now, outcome, verdict)
    _claims.release(connection, job)
    _quotas.book(connection, job, now)
    return _journal.move(
        connection,
        job,
        now,
        verdict.status,
        verdict.reason,
        failures=verdict.failures,
        losses=verdict.losses,
        lease_expires_at=None,
        expected_end_at=None,
        worker=job.worker if verdict.status in ENDED else None,  # an ended job tells who ran it last
        **_place(job, now, verdict),
    )


def lock_expired(connection: Connection, now: datetime, lease_seconds: float) -> Sequence[Job]:
    """Running jobs whose lease ran out, locked. A lease never set counts from the claim, or a row could be immortal."""
    from_claim = and_(jobs.c.lease_expires_at.is_(None), jobs.c.claimed_at < now - timedelta(seconds=lease_seconds))
    expired = or_(jobs.c.lease_expires_at < now, from_claim)
    rows = select(jobs).where(jobs.c.status == "running", expired).order_by(jobs.c.id).limit(PAGE)
    return [read(Job, row) for row in connection.execute(rows.with_for_update(skip_locked=True)).mappings()]


def _close(connection: Connection, job: Job, now: datetime, outcome: Outcome, verdict: Verdict) -> None:
    reason = outcome.reason or verdict.reason
    mine = and_(attempts.c.job == job.id, attempts.c.number == job.attempt)
    closed = {
        "ended_at": now,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "reason": reason.as_json() if reason else None,
    }
    connection.execute(update(attempts).where(mine).values(**closed))


def _place(job: Job, now: datetime, verdict: Verdict) -> dict[str, Any]:
    """Where in the queue: one that failed lines up again, one that lost its worker or was drained keeps its place."""
    if verdict.status in ENDED or not verdict.delay_seconds:
        return {"not_before": None, "blocked_at": None}
    return {"not_before": now + timedelta(seconds=verdict.delay_seconds), **_claims.lined_up(job.priority, now)}
