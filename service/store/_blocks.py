"""Curves summed up by blocks of 128 steps, so that a million points are drawn from eight thousand rows.

A block is worked out anew from its points whenever some of them are written or removed, in the same transaction: it
can not drift from them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Subquery, bindparam, case, delete, func, select

from service.store.database import among, conflicting_insert_of, in_columns
from service.store.tables import metric_blocks, metric_points

BLOCK_STEPS = 128


class Blocks(NamedTuple):
    """Of each so many points their least and their greatest value, each with the first step that has it."""

    points: list[int]
    least: list[float]
    least_step: list[int]
    greatest: list[float]
    greatest_step: list[int]

    def part(self, start: int, stop: int | None) -> "Blocks":
        """Those from one to another, as of a list."""
        return Blocks._make(column[start:stop] for column in self)


def refresh(connection: Connection, job_id: str, names: Sequence[str], first_step: int, last_step: int) -> None:
    """Sum up the blocks of these curves that hold a step from first to last."""
    bounds = {"from_step": block_of(first_step) * BLOCK_STEPS, "to_step": (block_of(last_step) + 1) * BLOCK_STEPS}
    values = {"of_job": job_id, "names": list(names), **bounds}
    connection.execute(_refreshing(connection.dialect.name), values)


def cut(connection: Connection, job_id: str, last_step: int) -> None:
    """What is left once no points lie beyond a step."""
    of_job = metric_blocks.c.job == job_id
    last = metric_blocks.c.block >= block_of(last_step)
    names = connection.execute(select(metric_blocks.c.name).where(of_job, last).distinct()).scalars().all()
    connection.execute(delete(metric_blocks).where(of_job, last))
    refresh(connection, job_id, names, last_step, last_step)


def of_curves(
    connection: Connection, job_id: str, names: Sequence[str], x_from: int | None, x_to: int | None
) -> dict[str, tuple[list[int], Blocks]]:
    """By name, the numbers of its blocks and these, in order of steps; of all curves if no name is given."""
    table = metric_blocks.c
    within = [table.job == job_id, *([table.name.in_(names)] if names else [])]
    within += [] if x_from is None else [table.block >= block_of(x_from)]
    within += [] if x_to is None else [table.block <= block_of(x_to)]
    columns = [table.block, *(table[each] for each in Blocks._fields)]
    found = in_columns(connection, table.name, columns, within)
    return {name: (numbers, Blocks(*figures)) for name, (numbers, *figures) in found.items()}


def block_of(step: int) -> int:
    """The number of the block that a step is in."""
    return step // BLOCK_STEPS


@cache
def _refreshing(dialect: str) -> Any:
    ranked = _ranked(dialect)
    block = [ranked.c.name, ranked.c.block]
    summed = select(
        bindparam("of_job", type_=metric_blocks.c.job.type),
        *block,
        func.count(),
        func.min(ranked.c.value),
        func.max(case((ranked.c.from_least == 1, ranked.c.step))),
        func.max(ranked.c.value),
        func.max(case((ranked.c.from_greatest == 1, ranked.c.step))),
    ).group_by(*block)
    statement = conflicting_insert_of(dialect, metric_blocks).from_select(
        ["job", "name", "block", *Blocks._fields], summed
    )
    anew = {name: statement.excluded[name] for name in Blocks._fields}
    return statement.on_conflict_do_update(index_elements=["job", "name", "block"], set_=anew)


def _ranked(dialect: str) -> Subquery:
    """The points of the blocks, each with its place from the least and from the greatest of its block."""
    points = metric_points.c
    block = points.step // BLOCK_STEPS
    of_block = [points.name, block]
    places = [
        func.row_number().over(partition_by=of_block, order_by=[value, points.step]).label(label)
        for value, label in ((points.value, "from_least"), (points.value.desc(), "from_greatest"))
    ]
    within = (
        points.job == bindparam("of_job"),
        among(dialect, points.name, "names"),
        points.step >= bindparam("from_step"),
        points.step < bindparam("to_step"),
    )
    return select(points.name, points.step, points.value, block.label("block"), *places).where(*within).subquery()
