"""The census: what the database knows of how the service stands, counted for whoever watches it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, case, func, select, text

from service.store import _lanes, _quotas, _reservations, _workers
from service.store.database import clock
from service.store.states import ENDED, STATUSES
from service.store.tables import abilities, datasets, deliveries, jobs, plans, predictions, usage, workers

STATEMENT_SECONDS = 2
LOST = timedelta(minutes=15)  # after which a worker that never took its leave is history
LIVE = tuple(status for status in STATUSES if status not in ENDED)


@dataclass(frozen=True)
class Census:
    """Jobs that have not ended are counted by tenant and status; `due_jobs` are those that nothing holds back.

    Of these, the first that a worker has room for is told of besides. Workers that are drained are counted apart from
    those alive, and their slots with nobody's.
    """

    jobs: Mapping[tuple[str, str], int]
    due_jobs: int
    oldest_due_seconds: float
    oldest_fitting_seconds: float
    workers_alive: int
    workers_drained: int
    workers_lost: int
    slots: int
    slots_busy: int
    slots_aside: int
    pending_deliveries: int
    oldest_delivery_seconds: float
    unanswered: Mapping[str, int]
    gpu_hours: Mapping[str, float]


def take(engine: Engine) -> Census:
    """Counted now, in one transaction that gives up after some seconds. Ended jobs are not gone through."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'"))
        now = clock(connection)
        due_jobs, due_since, fitting_since = _due(connection, now)
        pending, pending_since = _pending(connection, now)
        return Census(
            jobs=_live(connection),
            due_jobs=due_jobs,
            oldest_due_seconds=_age_seconds(due_since, now),
            oldest_fitting_seconds=_age_seconds(fitting_since, now),
            **_fleet(connection, now),
            pending_deliveries=pending,
            oldest_delivery_seconds=_age_seconds(pending_since, now),
            unanswered=_unanswered(connection),
            gpu_hours=_gpu_hours(connection, now),
        )


def _live(connection: Connection) -> dict[tuple[str, str], int]:
    counted = select(jobs.c.tenant, jobs.c.status, func.count()).where(jobs.c.status.in_(LIVE))
    rows = connection.execute(counted.group_by(jobs.c.tenant, jobs.c.status)).all()
    return {(tenant, status): count for tenant, status, count in rows}


def _due(connection: Connection, now: datetime) -> tuple[int, datetime | None, datetime | None]:
    """How many, since when the first, and since when the first that a worker which takes on jobs has room for.

    What a tenant's limits hold back waits for no worker. A worker that was never asked may be able.
    """
    since = func.min(func.coalesce(jobs.c.not_before, jobs.c.queued_at)).label("since")
    exhausted = _quotas.exhausted(connection, now, locked=False)
    due = (_lanes.due(now), jobs.c.tenant.not_in(exhausted))
    kinds = select(jobs.c.demand, func.min(_lanes.SLOTS).label("slots"), func.count().label("many"), since).where(*due)
    asked = kinds.group_by(jobs.c.demand, jobs.c.slots, jobs.c.gpus).subquery()
    verdict = (abilities.c.worker == workers.c.id, abilities.c.demand == asked.c.demand)
    is_unable = select(abilities.c.worker).where(*verdict, ~abilities.c.able).correlate(workers, asked).exists()
    has_room = select(workers.c.id).where(
        _workers.are_taking_jobs(now),
        _workers.USABLE - workers.c.busy >= asked.c.slots,
        ~is_unable,
        ~_reservations.IS_RESERVED,
    )
    fitting = case((has_room.exists(), asked.c.since))
    row = connection.execute(select(func.sum(asked.c.many), func.min(asked.c.since), func.min(fitting))).one()
    return row[0] or 0, row[1], row[2]


def _fleet(connection: Connection, now: datetime) -> dict[str, int]:
    """How many are there, how many of them are drained, how many were lost lately, and the slots of the first."""
    there = select(workers.c.seen_at, workers.c.slots, workers.c.slots_aside, workers.c.busy, workers.c.draining)
    rows = connection.execute(there.where(_workers.THERE, workers.c.seen_at > now - LOST)).all()
    seen = [row for row in rows if row.seen_at >= now - _workers.ALIVE]
    alive = [row for row in seen if row.draining is None]
    return {
        "workers_alive": len(alive),
        "workers_drained": len(seen) - len(alive),
        "workers_lost": sum(row.draining is None for row in rows) - len(alive),
        "slots": sum(row.slots for row in alive),
        "slots_busy": sum(row.busy for row in alive),
        "slots_aside": sum(row.slots_aside or 0 for row in alive),
    }


def _pending(connection: Connection, now: datetime) -> tuple[int, datetime | None]:
    """Deliveries to come, and since when the first of them is due."""
    pending = select(func.count(), func.min(deliveries.c.not_before)).where(deliveries.c.status == "pending")
    row = connection.execute(pending).one()
    return row[0], row[1] if row[1] is not None and row[1] <= now else None


def _unanswered(connection: Connection) -> dict[str, int]:
    """Requests to the housekeeper that wait for an answer, and data sets for their check."""
    asked = {
        table.name: select(func.count()).select_from(table).where(table.c.answered_at.is_(None))
        for table in (plans, predictions)
    }
    checks = select(func.count()).select_from(datasets).where(datasets.c.status == "checking")
    return {what: connection.execute(count).scalar_one() for what, count in {**asked, "checks": checks}.items()}


def _gpu_hours(connection: Connection, now: datetime) -> dict[str, float]:
    """Of attempts that ended this month, by tenant."""
    this_month = select(usage.c.tenant, usage.c.gpu_seconds).where(usage.c.month == _quotas.month_of(now))
    return {row.tenant: row.gpu_seconds / _quotas.HOUR_SECONDS for row in connection.execute(this_month)}


def _age_seconds(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since else 0.0
