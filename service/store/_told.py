"""Jobs as the API tells them: two statements for a page of any length, and no spec is read to be written again."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, case, cast, func, select, tuple_

from service.store import _claims
from service.store.rows import ToldJob, read
from service.store.tables import jobs

AS_TEXT = ("spec", "resolved_spec")
COLUMNS: list[ColumnElement[Any]] = [
    cast(jobs.c[each.name], Text).label(each.name) if each.name in AS_TEXT else jobs.c[each.name]
    for each in fields(ToldJob)
    if each.name != "position"
]


def one(connection: Connection, this: ColumnElement[bool]) -> ToldJob | None:
    """The job that this names; where it stands is counted in the same statement."""
    ahead = jobs.alias("ahead")
    behind_it = tuple_(*(ahead.c[column.name] for column in _claims.CLAIM_ORDER)) < tuple_(*_claims.CLAIM_ORDER)
    place = select(1 + func.count()).select_from(ahead).where(ahead.c.status == "queued", behind_it).scalar_subquery()
    position = case((jobs.c.status == "queued", place)).label("position")
    row = connection.execute(select(*COLUMNS, position).where(this)).mappings().one_or_none()
    return read(ToldJob, row) if row else None


def told(connection: Connection, rows: Sequence[Row[Any]]) -> list[ToldJob]:
    """Rows of COLUMNS, each with its place in the queue."""
    waiting = [row.id for row in rows if row.status == "queued"]
    positions = _positions(connection, waiting) if waiting else {}
    return [ToldJob(**row._mapping, position=positions.get(row.id)) for row in rows]


def _positions(connection: Connection, ids: Sequence[str]) -> Mapping[str, int]:
    """Where queued jobs stand in the queue of all tenants, 1 being next; one that has just been claimed is left out."""
    places = func.row_number().over(order_by=_claims.CLAIM_ORDER).label("place")
    queue = select(jobs.c.id, places).where(jobs.c.status == "queued").subquery()
    rows = connection.execute(select(queue.c.id, queue.c.place).where(queue.c.id.in_(ids)))
    return {row.id: row.place for row in rows}
