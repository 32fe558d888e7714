"""What of jobs that ended long ago goes: events and log lines by one age, curves and traces by another.

How a job stood, its evaluations, checkpoints and warnings stay; and so do the numbers of the events that stay. Workers
that have gone are forgotten as well, and what no job demands any more.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    delete,
    or_,
    select,
    true,
    tuple_,
    union,
    update,
)

from service.store.database import clock, writing
from service.store.tables import (
    abilities,
    demands,
    events,
    holdings,
    jobs,
    log_lines,
    metric_points,
    trace_steps,
    workers,
)

MOST_FORGOTTEN = 20  # workers and demands, at a time
BATCH_ROWS = 5000  # in one transaction, which holds up nobody for long
PASSING = ("progress", "metrics", "trace")  # types of events that curves, evaluations and the end say again
LONGEST_DAYS = 36_500.0
GONE_DAYS = 30.0  # after which a worker is forgotten; attempts keep its id and its host
UNUSED_DAYS = 1.0  # for so long a demand stays known that no job waits with


@dataclass(frozen=True)
class _Kind:
    """What goes by one age: rows of these tables, by their primary keys; and where a job says that they are gone."""

    days: float
    pruned_at: Column[datetime]
    rows: tuple[tuple[Table, ColumnElement[bool]], ...]


class Pruning:
    """What a housekeeper removes; an age of infinity keeps for ever. Safe twice."""

    def __init__(self, engine: Engine, keep_events_days: float, keep_series_days: float) -> None:
        self._writing = writing(engine)
        told = ((events, events.c.type.in_(PASSING)), (log_lines, true()))
        series = ((metric_points, true()), (trace_steps, true()))
        kinds = (
            _Kind(keep_events_days, jobs.c.events_pruned_at, told),
            _Kind(keep_series_days, jobs.c.series_pruned_at, series),
        )
        self._kinds = [kind for kind in kinds if kind.days != math.inf]

    def prune(self) -> bool:
        """Remove some thousand rows, of one job at most; whether there may be more to remove."""
        return any(self._prune(kind) for kind in self._kinds) or self._forget()

    def _forget(self) -> bool:
        """Some workers and demands, along with who was able to do what."""
        with self._writing.begin() as connection:
            now = clock(connection)
            gone = connection.execute(_gone(now)).scalars().all()
            unused = connection.execute(_unused(now)).scalars().all()
            if not (gone or unused):
                return False
            connection.execute(
                delete(abilities).where(or_(abilities.c.worker.in_(gone), abilities.c.demand.in_(unused)))
            )
            for worker_id in gone:
                connection.execute(delete(workers).where(workers.c.id == worker_id))
            connection.execute(delete(demands).where(demands.c.id.in_(unused)))
            return True

    def _prune(self, kind: _Kind) -> bool:
        with self._writing.begin() as connection:
            now = clock(connection)
            job_id = connection.execute(_oldest(kind, now)).scalar_one_or_none()
            if job_id is None:
                return False
            if not any(_remove(connection, table, job_id, which) for table, which in kind.rows):
                pruned = update(jobs).where(jobs.c.id == job_id).values({kind.pruned_at: now})
                connection.execute(pruned)
            return True


def _gone(now: datetime) -> Select[str]:
    long_ago = workers.c.seen_at < now - timedelta(days=GONE_DAYS)
    return select(workers.c.id).where(long_ago).order_by(workers.c.seen_at).limit(MOST_FORGOTTEN)


def _unused(now: datetime) -> Select[str]:
    """Demands of no job that is queued, paused or running. A job that comes meanwhile has its demand written anew."""
    known = select(jobs.c.demand).where(jobs.c.demand.is_not(None))
    waiting = [known.where(jobs.c.status == status) for status in ("queued", "paused")]
    used = union(*waiting, known.join(holdings, holdings.c.job == jobs.c.id))
    old = demands.c.created_at < now - timedelta(days=UNUSED_DAYS)
    return select(demands.c.id).where(old, demands.c.id.not_in(used)).limit(MOST_FORGOTTEN)


def _oldest(kind: _Kind, now: datetime) -> Select[str]:
    """The job that ended first of those whose time is over; one that another is at work on is passed over."""
    over = jobs.c.ended_at < now - timedelta(days=min(kind.days, LONGEST_DAYS))
    wanted = select(jobs.c.id).where(over, kind.pruned_at.is_(None)).order_by(jobs.c.ended_at).limit(1)
    return wanted.with_for_update(skip_locked=True)


def _remove(connection: Connection, table: Table, job_id: str, which: ColumnElement[bool]) -> int:
    """Remove a batch of a job's rows; how many went."""
    mine = (table.c.job == job_id) & which
    key = [column for column in table.primary_key if column.name != "job"]
    some = select(*key).where(mine).limit(BATCH_ROWS)
    return connection.execute(delete(table).where(mine, tuple_(*key).in_(some))).rowcount
