"""Curves and traces, thinned out: a million points never leave the database to draw five hundred."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Subquery, Table, func, or_, select

from service.store import _blocks
from service.store._blocks import BLOCK_STEPS, Blocks
from service.store.database import in_columns
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
    coarse = [name for name, (_, found) in blocks.items() if _suffice(found, max_points)]
    fine = [name for name in blocks if name not in coarse]
    thinned = [_thinned(name, _pieces(connection, within, name, *blocks[name]), max_points) for name in coarse]
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
    """Whole curves by name."""
    table = metric_points.c
    of_names = [*within, table.name.in_(names)] if names else within
    found = in_columns(connection, table.name, [table.step, table.value], of_names)
    return [Series(name, *columns) for name, columns in found.items()]


def _suffice(blocks: Blocks, max_points: int) -> bool:
    """Whether the blocks between the first and the last are as many as buckets are wanted."""
    return sum(blocks.points) > max_points and len(blocks.points) - 2 >= _buckets(max_points)


def _pieces(
    connection: Connection, within: Sequence[ColumnElement[bool]], name: str, numbers: Sequence[int], blocks: Blocks
) -> Blocks:
    """A curve as its points where it begins and ends, and its blocks between."""
    table = metric_points.c
    ends = select(func.min(table.step), func.max(table.step)).where(*within, table.name == name)
    first, last = (_blocks.block_of(step) for step in connection.execute(ends).one())
    outer = or_(*(table.step.between(n * BLOCK_STEPS, (n + 1) * BLOCK_STEPS - 1) for n in (first, last)))
    [curve] = _curves(connection, [*within, outer], [name])
    begins = bisect_left(curve.step, (first + 1) * BLOCK_STEPS)
    between = blocks.part(bisect_left(numbers, first + 1), bisect_left(numbers, last))
    points = _points(curve)
    parts: Any = zip(points.part(0, begins), between, points.part(begins, None), strict=True)
    return Blocks._make([*start, *middle, *end] for start, middle, end in parts)


def _points(curve: Series) -> Blocks:
    """Each a block of its own."""
    return Blocks([1] * len(curve.step), curve.value, curve.step, curve.value, curve.step)


def _thinned_whole(curve: Series, max_points: int) -> Series:
    return curve if len(curve.step) <= max_points else _thinned(curve.name, _points(curve), max_points)


def _thinned(name: str, pieces: Blocks, max_points: int) -> Series:
    """First and last point and, of every bucket of equally many points between, the least and the greatest."""
    between, buckets = pieces.part(1, -1), _buckets(max_points)
    before = [0, *accumulate(between.points)]
    bounds = [bisect_left(before, -(-bucket * before[-1] // buckets)) for bucket in range(buckets + 1)]
    kept = {pieces.least_step[end]: pieces.least[end] for end in (0, -1)}
    for start, stop in pairwise(bounds):
        if start < stop:
            low = min(range(start, stop), key=between.least.__getitem__)
            high = max(range(start, stop), key=between.greatest.__getitem__)
            kept[between.least_step[low]] = between.least[low]
            kept[between.greatest_step[high]] = between.greatest[high]
    steps = sorted(kept)
    return Series(name, steps, [kept[step] for step in steps])


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
