"""Curves and traces, thinned out: a million points never leave the database to draw five hundred."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Subquery, Table, func, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by

from service.store import _blocks
from service.store._blocks import BLOCK_STEPS, Block
from service.store.rows import LayerTrace, Series
from service.store.tables import metric_points, trace_steps

COLUMNS = ("alpha", "beta", "attention_rms", "convolution_rms")


def metrics(
    connection: Connection,
    job_id: str,
    names: Sequence[str],
    x_from: int | None,
    x_to: int | None,
    max_points: int | None,
) -> list[Series]:
    """As `Reader.metrics`."""
    within = _within(metric_points, job_id, x_from, x_to)
    if max_points is None:
        return _curves(connection, within, names)
    blocks = _blocks.of_curves(connection, job_id, names, x_from, x_to)
    coarse = [name for name, found in blocks.items() if _suffice([block for _, block in found], max_points)]
    fine = [name for name in blocks if name not in coarse]
    thinned = [_thinned(name, _pieces(connection, within, name, blocks[name]), max_points) for name in coarse]
    thinned += [_thinned_whole(curve, max_points) for curve in _curves(connection, within, fine)] if fine else []
    return sorted(thinned, key=lambda series: series.name)


def traces(
    connection: Connection, job_id: str, x_from: int | None, x_to: int | None, max_points: int | None
) -> list[LayerTrace]:
    """As `Reader.traces`, of all layers."""
    steps = select(trace_steps.c.step, trace_steps.c.data).where(*_within(trace_steps, job_id, x_from, x_to))
    if max_points is not None:
        steps = _evenly(steps.subquery(), max_points)
    layers: dict[str, LayerTrace] = {}
    for step, data in connection.execute(steps.order_by("step")):
        for depth, layer in enumerate(data["layers"]):
            trace = layers.setdefault(layer, LayerTrace(layer, depth, [], [], [], [], []))
            trace.step.append(step)
            for column in COLUMNS:
                getattr(trace, column).append(data[column][depth])
    return sorted(layers.values(), key=lambda trace: trace.depth)


def _within(table: Table, job_id: str, x_from: int | None, x_to: int | None) -> list[ColumnElement[bool]]:
    within: list[ColumnElement[bool]] = [table.c.job == job_id]
    if x_from is not None:
        within.append(table.c.step >= x_from)
    if x_to is not None:
        within.append(table.c.step <= x_to)
    return within


def _curves(connection: Connection, within: Sequence[ColumnElement[bool]], names: Sequence[str]) -> list[Series]:
    """Whole curves by name. PostgreSQL gives each as two arrays, ten thousand rows in one."""
    table = metric_points.c
    of_names = [*within, table.name.in_(names)] if names else within
    if connection.dialect.name == "postgresql":
        arrays = [func.array_agg(aggregate_order_by(column, table.step)) for column in (table.step, table.value)]
        rows = connection.execute(
            select(table.name, *arrays).where(*of_names).group_by(table.name).order_by(table.name)
        )
        return [Series(*row) for row in rows]
    points = select(table.name, table.step, table.value).where(*of_names)
    series: dict[str, Series] = {}
    for name, step, value in connection.execute(points.order_by(table.name, table.step)):
        curve = series.setdefault(name, Series(name, [], []))
        curve.step.append(step)
        curve.value.append(value)
    return list(series.values())


def _suffice(blocks: Sequence[Block], max_points: int) -> bool:
    """Whether the blocks between the first and the last are as many as buckets are wanted."""
    return sum(block.points for block in blocks) > max_points and len(blocks) - 2 >= _buckets(max_points)


def _pieces(
    connection: Connection,
    within: Sequence[ColumnElement[bool]],
    name: str,
    blocks: Sequence[tuple[int, Block]],
) -> list[Block]:
    """A curve as its points where it begins and ends, and its blocks between."""
    table = metric_points.c
    ends = select(func.min(table.step), func.max(table.step)).where(*within, table.name == name)
    first, last = (_blocks.block_of(step) for step in connection.execute(ends).one())
    outer = or_(*(table.step.between(n * BLOCK_STEPS, (n + 1) * BLOCK_STEPS - 1) for n in (first, last)))
    [curve] = _curves(connection, [*within, outer], [name])
    points = _points(curve)
    begins = sum(_blocks.block_of(step) == first for step in curve.step)
    return [*points[:begins], *(block for number, block in blocks if first < number < last), *points[begins:]]


def _points(curve: Series) -> list[Block]:
    return [Block(1, value, step, value, step) for step, value in zip(curve.step, curve.value, strict=True)]


def _thinned_whole(curve: Series, max_points: int) -> Series:
    return curve if len(curve.step) <= max_points else _thinned(curve.name, _points(curve), max_points)


def _thinned(name: str, pieces: Sequence[Block], max_points: int) -> Series:
    """First and last point and, of every bucket of equally many points between, the least and the greatest."""
    first, *between, last = pieces
    buckets, count, before = _buckets(max_points), sum(piece.points for piece in between), 0
    extremes: dict[int, Block] = {}
    for piece in between:
        bucket = before * buckets // count
        extremes[bucket] = _joined(extremes[bucket], piece) if bucket in extremes else piece
        before += piece.points
    kept = {first.least_step: first.least, last.least_step: last.least}
    for each in extremes.values():
        kept[each.least_step], kept[each.greatest_step] = each.least, each.greatest
    steps = sorted(kept)
    return Series(name, steps, [kept[step] for step in steps])


def _joined(block: Block, later: Block) -> Block:
    least = block if block.least <= later.least else later
    greatest = block if block.greatest >= later.greatest else later
    points = block.points + later.points
    return Block(points, least.least, least.least_step, greatest.greatest, greatest.greatest_step)


def _buckets(max_points: int) -> int:
    return max(1, (max_points - 2) // 2)


def _evenly(steps: Subquery, max_points: int) -> Select[Any]:
    """Steps evenly apart by their place in the row, first and last among them."""
    placed = _placed(steps, steps.c.step)
    gaps, all_gaps = max(1, max_points - 1), func.nullif(placed.c.count - 1, 0)
    enters_a_gap = (placed.c.place - 1) * gaps // all_gaps != (placed.c.place - 2) * gaps // all_gaps
    kept = or_(placed.c.count <= max_points, placed.c.place == 1, enters_a_gap)
    return select(placed.c.step, placed.c.data).where(kept)


def _placed(rows: Subquery, order: ColumnElement[Any], *of: ColumnElement[Any]) -> Subquery:
    """The rows, each with its place from 1 and the count of rows beside it, of the whole or of each partition."""
    place = func.row_number().over(partition_by=of or None, order_by=order)
    count = func.count().over(partition_by=of or None)
    return select(rows, place.label("place"), count.label("count")).subquery()
