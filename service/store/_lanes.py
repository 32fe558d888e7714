"""The queue in lanes: the jobs of one tenant with the same demand. A claim looks at the head of each lane.

However many jobs stand in a lane that must not or cannot be served now, they cost a claim one look at the first; and
it looks at the lanes of no more tenants than it takes until one of them has a job that fits.
"""

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)

from service.store.database import texts
from service.store.tables import abilities, holdings, jobs, tenants

CLAIM_ORDER = (jobs.c.turn_at, jobs.c.id)
TURNS = (jobs.c.status, jobs.c.tenant, *CLAIM_ORDER)
LANES = (jobs.c.status, jobs.c.tenant, jobs.c.demand, *CLAIM_ORDER)
SLOTS = func.coalesce(jobs.c.slots, func.nullif(jobs.c.gpus, 0), 1)  # that a job takes, also one of an older version
PAGE = 100
NOW = bindparam("now", type_=jobs.c.turn_at.type)
ONE: ColumnElement[int] = literal_column("1")
# Written out, or SQLite would not know that the index has all of them.
QUEUED = jobs.c.status == literal_column("'queued'")


@dataclass(frozen=True, order=True)
class Turn:
    """A job's place in claim order."""

    turn_at: datetime
    id: str


@dataclass(frozen=True)
class Lane:
    """A lane and what its first job takes. `able` is this worker's verdict on it, None where it was never asked.

    One without a demand is of jobs of an older version, which wrote none down.
    """

    tenant: str
    demand: str | None
    head: Turn
    slots: int
    max_runtime_seconds: float | None
    blocked_at: datetime | None
    able: bool | None


def due(now: ColumnElement[datetime] | datetime) -> ColumnElement[bool]:
    """Queued jobs that nothing holds back."""
    return and_(QUEUED, or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now))


DUE = due(NOW)


def fair_order(connection: Connection, exhausted: Container[str]) -> list[str]:
    """Tenants with a job queued: first who holds the fewest slots for its share, then by the turn of its first job."""
    row = connection.execute(_waiting(connection.dialect.name)).one()
    by_turn, held, shares = (json.loads(each) if each else {} for each in row)
    waiting = [tenant for tenant in by_turn if tenant not in exhausted]
    return sorted(waiting, key=lambda tenant: held.get(tenant, 0) / shares.get(tenant, 1.0))


def of_tenants(connection: Connection, now: datetime, worker_id: str, names: Sequence[str]) -> dict[str, list[Lane]]:
    """The lanes of these tenants that have a job due, each tenant's in claim order."""
    given = {"now": now, "worker": worker_id, "tenants": json.dumps(names)}
    found: dict[str, list[Lane]] = {name: [] for name in names}
    for row in connection.execute(_lanes(connection.dialect.name), given):
        found[row.tenant].append(
            Lane(
                row.tenant,
                row.demand,
                Turn(row.turn_at, row.id),
                row.slots or 1,
                row.max_runtime_seconds,
                row.blocked_at,
                row.able,
            )
        )
    return {name: sorted(lanes, key=lambda lane: lane.head) for name, lanes in found.items()}


def turns(connection: Connection, now: datetime, lane: Lane) -> Iterator[Turn]:
    """The jobs of a lane from its head on, which is known, a page at a time."""
    last = lane.head
    yield last
    this = {"now": now, "tenant": lane.tenant, "demand": lane.demand}
    while rows := connection.execute(LANE_PAGE, {**this, "after_turn": last.turn_at, "after_id": last.id}).all():
        yield from (Turn(row.turn_at, row.id) for row in rows)
        last = Turn(rows[-1].turn_at, rows[-1].id)


def passed_over(connection: Connection, now: datetime, lane: Lane, turn: Turn) -> Sequence[str]:
    """Jobs of a lane whose turn was before that of another, and not noted as blocked yet; the first of them."""
    this = {"now": now, "tenant": lane.tenant, "demand": lane.demand, "turn_at": turn.turn_at, "id": turn.id}
    return connection.execute(BEFORE, this).scalars().all()


def without_demand(connection: Connection, tenant: str) -> Sequence[Any]:
    """Queued jobs whose demand is not written down, with what tells it; the first of them."""
    return connection.execute(WITHOUT_DEMAND, {"tenant": tenant}).all()


@cache
def _waiting(dialect: str) -> Select[Any]:
    """Tenants with a job queued, by the turn of the first; what tenants hold; which have a share set.

    One look into the index for each tenant that waits, whatever lies between. All of it comes as JSON: a thousand rows
    take longer to come than to be found.
    """
    waiting = select(jobs.c.tenant, jobs.c.turn_at).where(jobs.c.id == _first(jobs.c.id, TURNS, QUEUED))
    found = waiting.cte("waiting", recursive=True)
    following, queued = jobs.alias("following"), jobs.alias("queued")
    order = [queued.c[column.name] for column in TURNS]
    behind = (queued.c.status == literal_column("'queued'"), queued.c.tenant > found.c.tenant)
    next_one = following.c.id == _first(queued.c.id, order, *behind)
    found = found.union_all(select(following.c.tenant, following.c.turn_at).join(found, next_one))
    by_turn = select(found.c.tenant).order_by(found.c.turn_at, found.c.tenant).subquery()
    held = select(holdings.c.tenant, func.count().label("slots")).group_by(holdings.c.tenant).subquery()
    is_postgresql = dialect == "postgresql"
    as_array = func.json_agg if is_postgresql else func.json_group_array
    as_object = func.json_object_agg if is_postgresql else func.json_group_object
    return select(
        select(cast(as_array(by_turn.c.tenant), Text)).scalar_subquery(),
        select(cast(as_object(held.c.tenant, held.c.slots), Text)).scalar_subquery(),
        select(cast(as_object(tenants.c.name, tenants.c.share), Text))
        .where(tenants.c.share.is_not(None))
        .scalar_subquery(),
    )


@cache
def _lanes(dialect: str) -> Select[Any]:
    """The head of every lane of some tenants. A tenant's last row has no demand: the lane of jobs without one."""
    given = texts(dialect, "tenants")
    first = _first(jobs.c.demand, LANES, QUEUED, jobs.c.tenant == given.c.value, jobs.c.demand.is_not(None))
    lanes = select(given.c.value.label("tenant"), first.label("demand")).cte("lanes", recursive=True)
    following = _first(jobs.c.demand, LANES, QUEUED, jobs.c.tenant == lanes.c.tenant, jobs.c.demand > lanes.c.demand)
    lanes = lanes.union_all(select(lanes.c.tenant, following).where(lanes.c.demand.is_not(None)))
    its = (DUE, jobs.c.tenant == lanes.c.tenant)
    head = case(
        (lanes.c.demand.is_(None), _first(jobs.c.id, LANES, *its, jobs.c.demand.is_(None))),
        else_=_first(jobs.c.id, LANES, *its, jobs.c.demand == lanes.c.demand),
    )
    # kept as one, or PostgreSQL would ask everything twice: whether it is there, and what it is
    heads = select(lanes.c.tenant, lanes.c.demand, head.label("id")).cte("heads")
    heads = heads.prefix_with("MATERIALIZED", dialect="postgresql")
    columns = (jobs.c.turn_at, jobs.c.slots, jobs.c.max_runtime_seconds, jobs.c.blocked_at)
    able = (
        select(abilities.c.able)
        .where(abilities.c.worker == bindparam("worker"), abilities.c.demand == heads.c.demand)
        .scalar_subquery()
        .label("able")
    )
    return select(heads, *columns, able).join(jobs, jobs.c.id == heads.c.id)


def _first(column: ColumnElement[Any], order: Sequence[Any], *these: ColumnElement[bool]) -> ScalarSelect[Any]:
    """Of the first of these jobs as they lie in an index, each tenant's or lane's in claim order."""
    return select(column).where(*these).order_by(*order).limit(ONE).scalar_subquery()


def _lane_page() -> Select[Any]:
    after = (bindparam("after_turn", type_=jobs.c.turn_at.type), bindparam("after_id", type_=jobs.c.id.type))
    behind = tuple_(*CLAIM_ORDER) > tuple_(*after)
    lane = (DUE, jobs.c.tenant == bindparam("tenant"), jobs.c.demand == bindparam("demand"))
    return select(*CLAIM_ORDER).where(*lane, behind).order_by(*LANES).limit(PAGE)


def _before() -> Select[Any]:
    turn = (bindparam("turn_at", type_=jobs.c.turn_at.type), bindparam("id", type_=jobs.c.id.type))
    before = tuple_(*CLAIM_ORDER) < tuple_(*turn)
    lane = (DUE, jobs.c.tenant == bindparam("tenant"), jobs.c.demand == bindparam("demand"))
    return select(jobs.c.id).where(*lane, jobs.c.blocked_at.is_(None), before).order_by(*LANES).limit(PAGE)


# Statements that are made once: to make one takes longer than to have it done.
LANE_PAGE = _lane_page()
BEFORE = _before()
WITHOUT_DEMAND = (
    select(jobs.c.id, jobs.c.gpus, jobs.c.resolved_spec)
    .where(QUEUED, jobs.c.tenant == bindparam("tenant"), jobs.c.demand.is_(None))
    .order_by(*LANES)
    .limit(PAGE)
    .with_for_update(skip_locked=True)
)
