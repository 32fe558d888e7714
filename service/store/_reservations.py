"""Reservations: a job that was passed over for too long has a worker's slots kept for it as they come free."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, delete, func, insert, or_, select, update

from service.store import _workers
from service.store._lanes import QUEUED, Lane, Turn, due, passed_over
from service.store.database import one_at_a_time
from service.store.rows import Job
from service.store.states import expected_end
from service.store.tables import abilities, holdings, jobs, reservations, workers

MOST_NOTED = 100  # jobs that one claim notes as blocked
RESERVED_PART = 0.3  # of the workers alive, one at least; docs/scheduling.md has what others cost
WAITING = select(func.min(jobs.c.blocked_at), select(reservations.c.worker).exists()).where(
    QUEUED, jobs.c.blocked_at.is_not(None)
)
ABLE = (
    select(abilities.c.able)
    .where(abilities.c.worker == bindparam("worker"), abilities.c.demand == jobs.c.demand)
    .scalar_subquery()
    .label("able")
)
IS_RESERVED = select(reservations.c.worker).where(reservations.c.worker == workers.c.id).exists()
KEPT = (
    select(reservations, jobs.c.tenant, jobs.c.slots, ABLE)
    .join(jobs, jobs.c.id == reservations.c.job)
    .order_by(jobs.c.blocked_at, jobs.c.id)
)
RUNS = select(
    holdings.c.worker, holdings.c.slot, jobs.c.claimed_at, jobs.c.expected_end_at, jobs.c.max_runtime_seconds
).join(jobs, and_(jobs.c.id == holdings.c.job, jobs.c.attempt == holdings.c.attempt, jobs.c.status == "running"))


@dataclass(frozen=True)
class Reservation:
    """Of a worker for a job; `able` is whether the one that asks could run it, None where it was never asked."""

    worker: str
    job: str
    tenant: str
    slots: int
    reserved_at: datetime
    expected_at: datetime
    able: bool | None


def kept(connection: Connection, worker_id: str) -> list[Reservation]:
    """All of them, of the job that is blocked the longest first; `worker_id` is who asks."""
    found = connection.execute(KEPT, {"worker": worker_id}).mappings()
    return [Reservation(**row) for row in found]


def note_blocked(connection: Connection, now: datetime, passed: Sequence[Lane], taken: Job | None) -> None:
    """Jobs that were passed over at their turn for want of free slots; one that is being claimed is not.

    Of a tenant that was served, it was the turn of all that come before the one that was taken.
    """
    new = [lane.head.id for lane in passed if lane.blocked_at is None]
    if taken:
        turn = Turn(taken.turn_at, taken.id)
        theirs = (lane for lane in passed if lane.tenant == taken.tenant)
        new += (job for lane in theirs for job in passed_over(connection, now, lane, turn))
    new = list(dict.fromkeys(new))[:MOST_NOTED]
    if new:
        still = select(jobs.c.id).where(jobs.c.id.in_(new), QUEUED, jobs.c.blocked_at.is_(None))
        ids = connection.execute(still.with_for_update(skip_locked=True)).scalars().all()
        connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(blocked_at=now))


def are_due(connection: Connection, now: datetime, after: timedelta) -> bool:
    """Whether there may be a reservation to make, or one that has lapsed."""
    oldest, are_any = connection.execute(WAITING).one()
    return are_any or (oldest is not None and oldest <= now - after)


def look_after(connection: Connection, now: datetime, after: timedelta, exhausted: Collection[str]) -> None:
    """Lift what has lapsed, look anew at when others come free, and reserve for those blocked for longer than this."""
    one_at_a_time(connection, "reservations")
    _lapse(connection, now, exhausted)
    ends = _ends(connection, now)
    _correct(connection, now, ends)
    alive = select(func.count()).where(_workers.are_alive(now))
    most = max(1, round(RESERVED_PART * connection.execute(alive).scalar_one()))
    room = most - connection.execute(select(func.count()).select_from(reservations)).scalar_one()
    if room <= 0:
        return
    for job in _blocked(connection, now, after, exhausted):
        if _reserve(connection, now, job, ends):
            room -= 1
        if not room:
            return


def lift(connection: Connection, *, worker: str | None = None, job: str | None = None) -> None:
    """Of a worker that takes on nothing more, of a job that has left the queue."""
    connection.execute(delete(reservations).where(or_(reservations.c.worker == worker, reservations.c.job == job)))


def _lapse(connection: Connection, now: datetime, exhausted: Collection[str]) -> None:
    """Where the worker has gone, takes on nothing or has too few slots left of use; where the job waits no more."""
    good = select(jobs.c.id).join(workers, workers.c.id == reservations.c.worker)
    good = good.where(_workers.are_taking_jobs(now), jobs.c.slots <= _workers.USABLE)
    good = good.where(jobs.c.id == reservations.c.job, QUEUED, jobs.c.tenant.not_in(exhausted))
    connection.execute(delete(reservations).where(~good.exists()))


def _correct(connection: Connection, now: datetime, ends: Mapping[str, Sequence[datetime]]) -> None:
    """The runs in front may have told since that they end sooner: nothing is to begin there that lasts until later."""
    usable = _workers.USABLE.label("usable")
    rows = select(reservations.c.worker, reservations.c.expected_at, jobs.c.slots, usable)
    rows = rows.join(jobs, jobs.c.id == reservations.c.job).join(workers, workers.c.id == reservations.c.worker)
    rows = rows.where(jobs.c.slots <= _workers.USABLE)  # fewer may be of use since those without were lifted
    for row in connection.execute(rows).all():
        expected_at = _when(now, ends.get(row.worker, ()), row.usable, row.slots)
        if expected_at < row.expected_at:
            this = reservations.c.worker == row.worker
            connection.execute(update(reservations).where(this).values(expected_at=expected_at))


def _blocked(connection: Connection, now: datetime, after: timedelta, exhausted: Collection[str]) -> Iterator[Any]:
    """Those that have been for long, that no worker is reserved for and that one could be, the longest first.

    They are locked one by one.
    """
    is_served = select(reservations.c.job).where(reservations.c.job == jobs.c.id).exists()
    long_ago = (QUEUED, jobs.c.blocked_at.is_not(None), jobs.c.blocked_at <= now - after)
    wanted = select(jobs.c.id).where(*long_ago, ~is_served, jobs.c.tenant.not_in(exhausted))
    wanted = wanted.where(_could_be_reserved(now, jobs.c.demand, jobs.c.slots).exists())
    ids = connection.execute(wanted.order_by(jobs.c.blocked_at, jobs.c.id).limit(MOST_NOTED)).scalars().all()
    for job_id in ids:
        this = select(jobs.c.id, jobs.c.demand, jobs.c.slots).where(jobs.c.id == job_id, due(now))
        row = connection.execute(this.with_for_update(skip_locked=True)).one_or_none()
        if row is not None:
            yield row


def _reserve(connection: Connection, now: datetime, job: Any, ends: Mapping[str, Sequence[datetime]]) -> bool:
    """The worker that is able and where enough slots come free soonest; False where there is none to reserve."""
    able = _could_be_reserved(now, job.demand, job.slots)
    found = [(_when(now, ends.get(row.id, ()), row.slots, job.slots), row.id) for row in connection.execute(able)]
    if not found:
        return False
    expected_at, worker_id = min(found)
    row = {"worker": worker_id, "job": job.id, "reserved_at": now, "expected_at": expected_at}
    connection.execute(insert(reservations).values(**row))
    return True


def _could_be_reserved(now: datetime, demand: Any, slots: Any) -> Select[Any]:
    """Workers that take on jobs, are able, have as many slots and are not reserved, with how many they have."""
    return (
        select(workers.c.id, _workers.USABLE.label("slots"))
        .join(abilities, abilities.c.worker == workers.c.id)
        .where(abilities.c.demand == demand, abilities.c.able, slots <= _workers.USABLE, ~IS_RESERVED)
        .where(_workers.are_taking_jobs(now))
    )


def _ends(connection: Connection, now: datetime) -> dict[str, list[datetime]]:
    """When each slot that is held is expected to come free, by worker, the soonest first."""
    ends = defaultdict(list)
    for row in connection.execute(RUNS):
        end = expected_end(now, row.claimed_at, row.expected_end_at, row.max_runtime_seconds)
        ends[row.worker].append(end)
    return {worker: sorted(each) for worker, each in ends.items()}


def _when(now: datetime, ends: Sequence[datetime], slots: int, needed: int) -> datetime:
    """When so many of a worker's slots are free."""
    missing = needed - (slots - len(ends))
    return ends[missing - 1] if missing > 0 else now
