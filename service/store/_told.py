"""Jobs as the API tells them: two statements for a page of any length, and no spec is read to be written again."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, bindparam, case, cast, func, select, tuple_

from service.store import _lanes
from service.store.database import among
from service.store.rows import ToldJob
from service.store.tables import jobs

AS_TEXT = ("spec", "resolved_spec", "devices", "versions", "metadata")
COLUMNS: list[ColumnElement[Any]] = [
    cast(jobs.c[name], Text).label(name) if name in AS_TEXT else jobs.c[name]
    for name in ToldJob._fields
    if name != "position"  # which is the last
]


@cache
def _one(*, of_tenant: bool) -> Select[Any]:
    """A job by its id; where it stands is counted in the same statement."""
    ahead = jobs.alias("ahead")
    before_it = tuple_(*(ahead.c[column.name] for column in _lanes.CLAIM_ORDER)) < tuple_(*_lanes.CLAIM_ORDER)
    place = select(1 + func.count()).select_from(ahead).where(ahead.c.status == "queued", before_it).scalar_subquery()
    position = case((jobs.c.status == "queued", place)).label("position")
    this = select(*COLUMNS, position).where(jobs.c.id == bindparam("id"))
    return this.where(jobs.c.tenant == bindparam("tenant")) if of_tenant else this


def one(connection: Connection, job_id: str, tenant: str | None) -> ToldJob | None:
    """That job, if it is that tenant's; None is any tenant."""
    statement = _one(of_tenant=tenant is not None)
    row = connection.execute(statement, {"id": job_id, "tenant": tenant}).one_or_none()
    return ToldJob(*row) if row else None


def page(connection: Connection, wanted: Select[Any]) -> list[ToldJob]:
    """Jobs as a statement of COLUMNS finds them."""
    rows = connection.execute(wanted).all()
    waiting = [row.id for row in rows if row.status == "queued"]
    positions = _positions(connection, waiting) if waiting else {}
    return [ToldJob(*row, positions.get(row.id)) for row in rows]


def _positions(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Where queued jobs stand in the queue of all tenants, 1 being next; one that has just been claimed is left out."""
    found = connection.execute(_places(connection.dialect.name), {"ids": list(ids)}).scalar_one()
    return json.loads(found) if found else {}


@cache
def _places(dialect: str) -> Select[Any]:
    """One object by id, as text: a hundred rows take as long to come as to be counted."""
    places = func.row_number().over(order_by=_lanes.CLAIM_ORDER).label("place")
    queue = select(jobs.c.id, places).where(jobs.c.status == "queued").subquery()
    as_object = func.json_object_agg if dialect == "postgresql" else func.json_group_object
    return select(cast(as_object(queue.c.id, queue.c.place), Text)).where(among(dialect, queue.c.id, "ids"))
