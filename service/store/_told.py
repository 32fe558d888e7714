"""Jobs as the API tells them: two statements for a page of any length, and no spec is read to be written again."""

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    select,
    tuple_,
)

from service.store import _lanes
from service.store.database import texts
from service.store.rows import ToldJob
from service.store.tables import jobs, labels

AS_TEXT = ("spec", "resolved_spec", "devices", "versions", "metadata")
COLUMNS: list[ColumnElement[Any]] = [
    cast(jobs.c[name], Text).label(name) if name in AS_TEXT else jobs.c[name]
    for name in ToldJob._fields
    if name != "position"  # which is the last
]
LIMIT = bindparam("limit", type_=Integer)


@cache
def _one(*, of_tenant: bool) -> Select[Any]:
    """A job by its id; where it stands is counted in the same statement."""
    ahead = jobs.alias("ahead")
    before_it = tuple_(*(ahead.c[column.name] for column in _lanes.CLAIM_ORDER)) < tuple_(*_lanes.CLAIM_ORDER)
    queued = (ahead.c.status == "queued", ahead.c.tenant == jobs.c.tenant)
    place = select(1 + func.count()).select_from(ahead).where(*queued, before_it).scalar_subquery()
    position = case((jobs.c.status == "queued", place)).label("position")
    this = select(*COLUMNS, position).where(jobs.c.id == bindparam("id"))
    return this.where(jobs.c.tenant == bindparam("tenant")) if of_tenant else this


def one(connection: Connection, job_id: str, tenant: str | None) -> ToldJob | None:
    """That job, if it is that tenant's; None is any tenant."""
    statement = _one(of_tenant=tenant is not None)
    row = connection.execute(statement, {"id": job_id, "tenant": tenant}).one_or_none()
    return ToldJob._make(row) if row else None


@lru_cache(maxsize=128)
def newest(given: tuple[str, ...], labelled: int) -> Select[Any]:
    """Jobs, newest first, up to LIMIT. Its parameters: columns, `after`, and as many labels, key_0, value_0 and so on.

    Kept: to make one takes half as long as the database takes to answer it.
    """
    wanted = select(*COLUMNS).order_by(jobs.c.id.desc()).limit(LIMIT)
    for name in given:
        value: ColumnElement[Any] = bindparam(name)
        wanted = wanted.where(jobs.c.id < value if name == "after" else jobs.c[name] == value)
    for number in range(labelled):
        its = (labels.c.key == bindparam(f"key_{number}"), labels.c.value == bindparam(f"value_{number}"))
        wanted = wanted.where(exists().where(labels.c.job == jobs.c.id, *its))
    return wanted


def page(connection: Connection, wanted: Select[Any], given: Mapping[str, Any], tenant: str | None) -> list[ToldJob]:
    """Jobs as a statement of COLUMNS finds them, all of them that tenant's; None is of any."""
    rows = connection.execute(wanted, given).all()
    waiting = [row.id for row in rows if row.status == "queued"]
    positions = _positions(connection, waiting, tenant) if waiting else {}
    return [ToldJob._make((*row, positions.get(row.id))) for row in rows]


def _positions(connection: Connection, ids: Sequence[str], tenant: str | None) -> dict[str, int]:
    """Where queued jobs stand among their tenant's, 1 being next; one that has just been claimed is left out."""
    places = _places(connection.dialect.name, of_tenant=tenant is not None)
    found = connection.execute(places, {"ids": json.dumps(ids), "tenant": tenant}).scalar_one()
    return json.loads(found) if found else {}


@cache
def _places(dialect: str, *, of_tenant: bool) -> Select[Any]:
    """Of ids, a JSON array, their places, a JSON object: a hundred rows take as long to come as to be counted."""
    each = None if of_tenant else jobs.c.tenant
    places = func.row_number().over(partition_by=each, order_by=_lanes.CLAIM_ORDER).label("place")
    queued = select(jobs.c.id, places).where(_lanes.QUEUED)
    queue = (queued.where(jobs.c.tenant == bindparam("tenant")) if of_tenant else queued).subquery()
    as_object = func.json_object_agg if dialect == "postgresql" else func.json_group_object
    ids = texts(dialect, "ids")
    return select(cast(as_object(queue.c.id, queue.c.place), Text)).where(queue.c.id.in_(select(ids.c.value)))
