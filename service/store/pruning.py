"""What of jobs that ended long ago goes: events and log lines by one age, curves and traces by another.

How a job stood, its evaluations, checkpoints and warnings stay; and so do the numbers of the events that stay.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Column, ColumnElement, Connection, Engine, Select, Table, delete, select, true, tuple_, update

from service.store.database import clock, writing
from service.store.tables import events, jobs, log_lines, metric_points, trace_steps

BATCH_ROWS = 5000  # in one transaction, which holds up nobody for long
PASSING = ("progress", "metrics", "trace")  # types of events that curves, evaluations and the end say again
LONGEST_DAYS = 36_500.0


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
        return any(self._prune(kind) for kind in self._kinds)

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
