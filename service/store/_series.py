"""Curves and traces, thinned out in SQL: a million points never leave the database to draw five hundred."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Subquery, Table, case, func, or_, select

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
    if names:
        within.append(metric_points.c.name.in_(names))
    points = select(metric_points.c.name, metric_points.c.step, metric_points.c.value).where(*within)
    if max_points is not None:
        points = _thinned(points.subquery(), max_points)
    series: dict[str, Series] = {}
    for name, step, value in connection.execute(points.order_by("name", "step")):
        curve = series.setdefault(name, Series(name, [], []))
        curve.step.append(step)
        curve.value.append(value)
    return [series[name] for name in sorted(series)]


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


def _thinned(points: Subquery, max_points: int) -> Select[Any]:
    """First and last of each curve and, of every bucket of equally many points between, the least and the greatest."""
    buckets = max(1, (max_points - 2) // 2)
    placed = _placed(points, points.c.step, points.c.name)
    between = (placed.c.place - 2) * buckets // func.nullif(placed.c.count - 2, 0)
    bucket = case((placed.c.place == 1, -1), (placed.c.place == placed.c.count, buckets), else_=between)
    bucketed = select(placed, bucket.label("bucket")).subquery()
    of_bucket = [bucketed.c.name, bucketed.c.bucket]
    least = func.row_number().over(partition_by=of_bucket, order_by=[bucketed.c.value, bucketed.c.step])
    greatest = func.row_number().over(partition_by=of_bucket, order_by=[bucketed.c.value.desc(), bucketed.c.step])
    ranked = select(bucketed, least.label("least"), greatest.label("greatest")).subquery()
    kept = or_(ranked.c.count <= max_points, ranked.c.least == 1, ranked.c.greatest == 1)
    return select(ranked.c.name, ranked.c.step, ranked.c.value).where(kept)


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
