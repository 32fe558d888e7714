"""Why queued jobs wait, and until when: told from who holds what, who is able, and what stands in front."""

import json
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    and_,
    cast,
    func,
    literal,
    literal_column,
    select,
    tuple_,
)

from service.store import _quotas, _workers
from service.store._lanes import CLAIM_ORDER, QUEUED, SLOTS
from service.store._reservations import RUNS
from service.store.database import clock, texts
from service.store.rows import Wait, WaitCode
from service.store.scope import of_tenant
from service.store.states import UNKNOWN_RUN, expected_end
from service.store.tables import abilities, holdings, jobs, reservations, tenants, workers

STILL = timedelta(microseconds=1)  # what ends now is held still
DEPTH = 100  # jobs from the head of the queue whose beginnings are estimated
RECENT = 20  # jobs of a tenant by which it is guessed how long its next ones take
RESERVED = select(reservations, jobs.c.tenant, SLOTS.label("slots")).join(jobs, jobs.c.id == reservations.c.job)
DUE_FACTS = (jobs.c.id, jobs.c.tenant, jobs.c.demand, SLOTS.label("slots"), jobs.c.not_before)


@dataclass(frozen=True)
class _Fleet:
    """Workers alive that take on jobs, when each of their slots comes free, who is able, and who is reserved."""

    now: datetime
    ends: Mapping[str, Sequence[datetime]]  # of every slot of a worker; now, where it is free
    verdicts: Mapping[tuple[str, str | None], bool]  # of a worker and a demand; none where it was never asked
    reserved: Mapping[str, Any]  # by job, with its tenant and how many slots it takes
    exhausted: Collection[str]

    def able(self, job: Any) -> list[str]:
        """Who could run it, as far as is known: one that was never asked may be."""
        return [
            worker
            for worker, ends in self.ends.items()
            if len(ends) >= job.slots and self.verdicts.get((worker, job.demand), True)
        ]

    def free(self, worker: str) -> int:
        return sum(end <= self.now for end in self.ends[worker])

    def is_kept_from(self, job: Any, worker: str) -> bool:
        """Whether it is reserved for another."""
        return any(each.worker == worker and each.job != job.id for each in self.reserved.values())


def in_fair_order(tenant: str | None) -> Select[Any]:
    """Queued jobs of a tenant, or of all, as they would be claimed if each took its slots: `used`, turn and id.

    `used` is what its tenant holds and has queued before it, for its share.
    """
    held = select(func.count()).where(holdings.c.tenant == jobs.c.tenant).scalar_subquery()
    share = select(tenants.c.share).where(tenants.c.name == jobs.c.tenant).scalar_subquery()
    before = func.sum(SLOTS).over(partition_by=jobs.c.tenant, order_by=CLAIM_ORDER, rows=(None, -1))
    used = (held + func.coalesce(before, 0)) / func.coalesce(share, literal_column("1.0"))
    return select(*DUE_FACTS, jobs.c.turn_at, cast(used, Double).label("used")).where(QUEUED, of_tenant(jobs, tenant))


def order_of(queue: Any) -> tuple[ColumnElement[Any], ...]:
    """By which `in_fair_order` is sorted, as a subquery."""
    return (queue.c.used, queue.c.turn_at, queue.c.id)


def behind(queue: Any, job_id: str) -> ColumnElement[bool]:
    """What comes after a job of it."""
    last = queue.alias("last")
    key = select(*order_of(last)).where(last.c.id == literal(job_id)).subquery("key")
    return tuple_(*order_of(queue)) > select(key).scalar_subquery()


def of_jobs(connection: Connection, ids: Sequence[str]) -> dict[str, Wait]:
    """Why each of these waits; one that has been claimed meanwhile is left out."""
    facts = connection.execute(select(*DUE_FACTS).where(jobs.c.id.in_(ids), QUEUED)).all()
    queue = in_fair_order(None).subquery()
    front = connection.execute(select(queue).order_by(*order_of(queue)).limit(DEPTH)).all()
    fleet = _fleet(connection, {job.demand for job in [*facts, *front]})
    tenants_ahead = {job.tenant for job in [*front, *fleet.reserved.values()]}
    starts = _starts(fleet, front, _durations(connection, tenants_ahead))
    return {job.id: _wait(fleet, job, starts.get(job.id)) for job in facts}


def _wait(fleet: _Fleet, job: Any, starts_at: datetime | None) -> Wait:
    able, kept = fleet.able(job), fleet.reserved.get(job.id)
    code, message = _reason(fleet, job, able, starts_at)
    reserved = {"worker": kept.worker, "since": kept.reserved_at} if kept else None
    waits = code not in {"no_worker", "tenant_limit"}
    return Wait(code, message, reserved, starts_at if waits else None)


def _reason(fleet: _Fleet, job: Any, able: Sequence[str], starts_at: datetime | None) -> tuple[WaitCode, str]:
    if job.not_before is not None and job.not_before > fleet.now:
        return "held_back", f"its last attempt failed; it is held back until {job.not_before:%Y-%m-%dT%H:%M:%SZ}"
    if job.tenant in fleet.exhausted:
        return "tenant_limit", "its tenant has as many running, or used as many GPU hours this month, as it may"
    if not able:
        return "no_worker", f"no live worker can run it: it asks for {_asked(job)}, or names what none has"
    if job.id in fleet.reserved:
        worker = fleet.reserved[job.id].worker
        free = fleet.free(worker) if worker in fleet.ends else 0
        return "reserved", f"{worker} keeps its slots for it as they come free, {_of(free, job.slots)} so far"
    kept = [worker for worker in able if fleet.is_kept_from(job, worker)]
    free = max((fleet.free(worker) for worker in able if worker not in kept), default=0)
    if free >= job.slots and starts_at is not None and starts_at <= fleet.now:
        return "next", "a worker has room for it and will take it any moment"
    return "busy", _whom_it_waits_for(fleet, job, kept, free)


def _whom_it_waits_for(fleet: _Fleet, job: Any, kept: Sequence[str], free: int) -> str:
    """`kept` are the workers that are reserved for others; of those that are not, one has `free` slots."""
    if free < job.slots and any(fleet.free(worker) >= job.slots for worker in kept):
        return "the workers that have room for it keep it for jobs that have waited for longer"
    if free >= job.slots:
        return "jobs in front of it take the slots that are free"
    return f"all workers that can run it are at work: {_of(free, job.slots)} it needs are free"


def _asked(job: Any) -> str:
    return f"{job.slots} slot{'s' * (job.slots != 1)} of one worker"


def _of(free: int, needed: int) -> str:
    return f"{free} of the {needed} slot{'s' * (needed != 1)}"


def _fleet(connection: Connection, asked: Collection[str | None]) -> _Fleet:
    now = clock(connection)
    there_are = select(workers.c.id, workers.c.busy, _workers.USABLE.label("slots")).where(
        _workers.are_taking_jobs(now)
    )
    there = {row.id: row for row in connection.execute(there_are)}
    ends: defaultdict[str, list[datetime]] = defaultdict(list)
    for row in connection.execute(RUNS):
        end = expected_end(now, row.claimed_at, row.expected_end_at, row.max_runtime_seconds)
        ends[row.worker].append(end + STILL)
    for worker in there.values():  # of an older version, it has no holdings
        ends[worker.id] += [now + UNKNOWN_RUN + STILL] * (worker.busy - len(ends[worker.id]))
    known = [each for each in asked if each is not None]
    verdicts = connection.execute(select(abilities).where(abilities.c.worker.in_(there), abilities.c.demand.in_(known)))
    return _Fleet(
        now=now,
        ends={each: sorted([*ends[each], *[now] * (row.slots - len(ends[each]))]) for each, row in there.items()},
        verdicts={(row.worker, row.demand): row.able for row in verdicts},
        reserved={row.job: row for row in connection.execute(RESERVED)},
        exhausted=_quotas.exhausted(connection, now, locked=False),
    )


def _durations(connection: Connection, names: Collection[str]) -> dict[str, timedelta]:
    """How long the last jobs of each tenant took that succeeded, in the middle; none where none did."""
    given = texts(connection.dialect.name, "tenants")
    last = select(jobs.c.id).where(jobs.c.tenant == given.c.value, jobs.c.status == "succeeded")
    oldest = last.order_by(jobs.c.id.desc()).offset(RECENT - 1).limit(1).correlate(given).scalar_subquery()
    its_last = and_(
        jobs.c.tenant == given.c.value, jobs.c.status == "succeeded", jobs.c.id >= func.coalesce(oldest, "")
    )
    recent = select(jobs.c.tenant, jobs.c.claimed_at, jobs.c.ended_at)
    recent = recent.select_from(given.outerjoin(jobs, its_last))  # outer, or SQLite would go through all that succeeded
    took = defaultdict(list)
    for row in connection.execute(recent, {"tenants": json.dumps(sorted(names))}):
        if row.tenant is not None:
            took[row.tenant].append((row.ended_at - row.claimed_at).total_seconds())
    return {tenant: timedelta(seconds=statistics.median(each)) for tenant, each in took.items()}


def _starts(fleet: _Fleet, front: Sequence[Any], durations: Mapping[str, timedelta]) -> dict[str, datetime]:
    """When each job of the front of the queue would begin, one after the other, each where it can begin soonest.

    Before them come those that a worker is reserved for, which gives nothing to others until then.
    Where it is not known how long a tenant's jobs take, nothing is told of those for whom its slots would come free.
    """
    ends = {worker: list(each) for worker, each in fleet.ends.items()}
    starts: dict[str, datetime] = {}

    def begin(job_id: str, tenant: str, slots: int, worker: str, not_before: datetime) -> None:
        begins = starts[job_id] = max(ends[worker][slots - 1], not_before)
        taken = [begins + durations[tenant]] * slots if tenant in durations else []
        ends[worker] = sorted([*ends[worker][slots:], *taken])

    for kept in fleet.reserved.values():
        if len(ends.get(kept.worker, ())) >= kept.slots:
            begins = ends[kept.worker][kept.slots - 1]
            ends[kept.worker] = [max(begins, each) for each in ends[kept.worker]]
            begin(kept.job, kept.tenant, kept.slots, kept.worker, begins)
    for job in front:
        able = [worker for worker in fleet.able(job) if len(ends[worker]) >= job.slots]
        if job.id not in starts and job.tenant not in fleet.exhausted and able:
            worker = min(able, key=lambda each: (ends[each][job.slots - 1], each))
            begin(job.id, job.tenant, job.slots, worker, job.not_before or fleet.now)
    return starts
