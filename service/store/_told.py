"""Jobs as the API tells them: two statements for a page of any length, and no spec is read to be written again."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, bindparam, case, cast, func, select, tuple_

from service.store import _lanes
from service.store.database import among
from service.store.rows import ToldJob, read
from service.store.tables import jobs

AS_TEXT = ("spec", "resolved_spec")
COLUMNS: list[ColumnElement[Any]] = [
    cast(jobs.c[each.name], Text).label(each.name) if each.name in AS_TEXT else jobs.c[each.name]
    for each in fields(ToldJob)
    if each.name != "position"
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
    row = connection.execute(statement, {"id": job_id, "tenant": tenant}).mappings().one_or_none()
    return read(ToldJob, row) if row else None


def page(connection: Connection, wanted: Select[Any]) -> list[ToldJob]:
    """Jobs as a statement of COLUMNS finds them."""
    rows = connection.execute(wanted).all()
    waiting = [row.id for row in rows if row.status == "queued"]
    positions = _positions(connection, waiting) if waiting else {}
    return [ToldJob(**row._mapping, position=positions.get(row.id)) for row in rows]


def _positions(connection: Connection, ids: Sequence[str]) -> Mapping[str, int]:
    """Where queued jobs stand in the queue of all tenants, 1 being next; one that has just been claimed is left out."""
    places = func.row_number().over(order_by=_lanes.CLAIM_ORDER).label("place")
    queue = select(jobs.c.id, places).where(jobs.c.status == "queued").subquery()
    wanted = select(queue.c.id, queue.c.place).where(among(connection.dialect.name, queue.c.id, "ids"))
    rows = connection.execute(wanted, {"ids": list(ids)})
    return {row.id: row.place for row in rows}
