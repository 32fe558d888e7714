"""The queue in lanes: the jobs of one tenant that ask for as many GPUs. A claim looks at the head of each lane.

However many jobs stand in a lane that must not or cannot be served now, they cost a claim one look at the first.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)

from service.store.tables import jobs

CLAIM_ORDER = (jobs.c.turn_at, jobs.c.id)
LANES = (jobs.c.tenant, jobs.c.gpus, *CLAIM_ORDER)
PAGE = 100
NOW = bindparam("now", type_=jobs.c.turn_at.type)
# Written out, or SQLite would not know that the index has all of them.
QUEUED = jobs.c.status == literal_column("'queued'")


@dataclass(frozen=True, order=True)
class Turn:
    """A job's place in claim order."""

    turn_at: datetime
    id: str


def due(now: ColumnElement[datetime] | datetime) -> ColumnElement[bool]:
    """Queued jobs that nothing holds back."""
    return and_(QUEUED, or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now))


DUE = due(NOW)


def in_turn(connection: Connection, now: datetime, gpus_free: int, exhausted: Container[str]) -> Iterator[str]:
    """Ids of due jobs that fit the free GPUs, of tenants that are not exhausted, in claim order."""
    if connection.dialect.name == "postgresql":
        connection.execute(UNSORTED)
    heads = connection.execute(HEADS, {"now": now, "gpus_free": gpus_free}).all()
    lanes = [_lane(connection, now, head) for head in heads if head.tenant not in exhausted]
    return (turn.id for turn in merge(*lanes))


def _lane(connection: Connection, now: datetime, head: Any) -> Iterator[Turn]:
    """The jobs of a lane from its head on, which is known, a page at a time."""
    last = Turn(head.turn_at, head.id)
    yield last
    this = {"now": now, "tenant": head.tenant, "gpus": head.gpus}
    page = AUTO_PAGE if head.gpus is None else ASKED_PAGE
    while rows := connection.execute(page, {**this, "after_turn": last.turn_at, "after_id": last.id}).all():
        yield from (Turn(row.turn_at, row.id) for row in rows)
        last = Turn(rows[-1].turn_at, rows[-1].id)


def _waiting() -> Any:
    """Every tenant who has a job queued: one look into the index for each, whatever lies between."""
    tenants = select(_first(jobs.c.tenant, QUEUED).label("tenant")).cte("waiting", recursive=True)
    following = _first(jobs.c.tenant, QUEUED, jobs.c.tenant > tenants.c.tenant)
    return tenants.union_all(select(following).where(tenants.c.tenant.is_not(None)))


def _numbers() -> Any:
    """How many GPUs a job that fits may ask for by number: 0 and more."""
    numbers = select(literal_column("0").label("gpus")).cte("numbers", recursive=True)
    free = bindparam("gpus_free", type_=Integer)
    return numbers.union_all(select(numbers.c.gpus + 1).where(numbers.c.gpus < free))


def _heads() -> Select[Any]:
    """The first job due of every lane that fits.

    Subqueries rather than joins: by its guess of how many there are the planner would read and sort the whole table.
    """
    waiting, numbers = _waiting(), _numbers()
    auto = jobs.c.gpus.is_(None)
    asked = jobs.c.gpus.between(numbers.c.gpus, numbers.c.gpus)
    of_auto = select(
        waiting.c.tenant,
        literal(None, Integer).label("gpus"),
        _first(jobs.c.id, DUE, jobs.c.tenant == waiting.c.tenant, auto).label("id"),
    )
    of_asked = select(
        waiting.c.tenant,
        numbers.c.gpus,
        _first(jobs.c.id, DUE, jobs.c.tenant == waiting.c.tenant, asked).label("id"),
    ).select_from(waiting.join(numbers, true()))
    # kept as one, or PostgreSQL would ask everything twice: whether it is there, and what it is
    heads = union_all(of_auto, of_asked).cte("heads").prefix_with("MATERIALIZED", dialect="postgresql")
    its_turn = select(jobs.c.turn_at).where(jobs.c.id == heads.c.id).scalar_subquery()
    return select(heads.c.tenant, heads.c.gpus, heads.c.id, its_turn.label("turn_at")).where(heads.c.id.is_not(None))


def _first(column: ColumnElement[Any], *these: ColumnElement[bool]) -> ScalarSelect[Any]:
    """Of the first of these jobs as the lanes lie in the index, each in claim order."""
    return select(column).where(*these).order_by(*LANES).limit(literal_column("1")).scalar_subquery()


def _page_of(lane: ColumnElement[bool], *from_: ColumnElement[Any]) -> Select[Any]:
    after = (bindparam("after_turn", type_=jobs.c.turn_at.type), bindparam("after_id", type_=jobs.c.id.type))
    these = select(*CLAIM_ORDER).where(DUE, jobs.c.tenant == bindparam("tenant"), lane)
    columns = LANES[-2 - len(from_) :]
    return these.where(tuple_(*columns) > tuple_(*from_, *after)).order_by(*LANES).limit(PAGE)


# Statements that are made once: to make one takes longer than to have it done.
HEADS = _heads()
# What it knows of a queue that has just grown is out of date: only what gives the order by itself is to be considered.
UNSORTED = text("SELECT set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true)")
GPUS = bindparam("gpus", type_=Integer)
AUTO_PAGE = _page_of(jobs.c.gpus.is_(None))
ASKED_PAGE = _page_of(jobs.c.gpus <= GPUS, GPUS)
