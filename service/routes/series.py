"""Curves of a job: its metrics, and the traces of its ACmix layers."""

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from service import figures
from service.answers import LayerTrace, Metrics, Series, Traces
from service.depends import JobId, Store
from service.query import Names, Parameters, Range, accepts
from service.store import rows

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["series"])

TRACE_COLUMNS = ("alpha", "beta", "attention_rms", "convolution_rms")
CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}
SVG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/svg+xml": {"schema": {"type": "string"}}}}}


class MetricQuery(Range):
    names: Names = Field([], description="metric names, with commas between; all without")


class TraceQuery(Range):
    layers: Names = Field([], description="globs over layer names, with commas between; all without")


class FigureQuery(Parameters):
    style: Literal["depth", "trajectory"] = "depth"


@router.get("/metrics", response_model=Metrics, responses=CSV)
def metrics(job_id: JobId, store: Store, query: Annotated[MetricQuery, Query()], request: Request) -> Any:
    """Metrics over optimizer steps, as JSON or, by Accept, CSV."""
    store.reader.job(job_id)
    series = store.reader.metrics(
        job_id, names=query.names, x_from=query.x_from, x_to=query.x_to, max_points=query.max_points
    )
    if accepts(request, "text/csv"):
        points = ((each.name, *point) for each in series for point in zip(each.step, each.value, strict=True))
        return _csv(("name", "step", "value"), points)
    return _json(Metrics(series=[Series.model_validate(each) for each in series]))


@router.get("/traces", response_model=Traces, responses=CSV)
def traces(job_id: JobId, store: Store, query: Annotated[TraceQuery, Query()], request: Request) -> Any:
    """What every ACmix layer leaned on over optimizer steps, in depth order, as JSON or, by Accept, CSV."""
    store.reader.job(job_id)
    layers = store.reader.traces(
        job_id, layers=query.layers, x_from=query.x_from, x_to=query.x_to, max_points=query.max_points
    )
    if accepts(request, "text/csv"):
        return _csv(("layer", "depth", "step", *TRACE_COLUMNS), _trace_points(layers))
    return _json(Traces(layers=[LayerTrace.model_validate(layer) for layer in layers]))


@router.get("/traces.svg", responses=SVG, response_class=Response)
def traces_svg(job_id: JobId, store: Store, query: Annotated[FigureQuery, Query()]) -> Response:
    """The traces as a picture: log10 of abs(alpha / beta) by depth, or alpha and beta over steps."""
    job = store.reader.job(job_id)
    svg = figures.traces_svg(store.reader.traces(job_id, max_points=1000), query.style, title=job.name or job.id)
    return Response(svg, media_type="image/svg+xml")


def _trace_points(layers: Sequence[rows.LayerTrace]) -> Any:
    for layer in layers:
        columns = (getattr(layer, name) for name in TRACE_COLUMNS)
        for point in zip(layer.step, *columns, strict=True):
            yield (layer.layer, layer.depth, *point)


def _json(answer: Metrics | Traces) -> Response:
    """Written as it is: what is answered may have a million numbers, and has been looked at once."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _csv(header: Sequence[str], points: Any) -> Response:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(points)
    return Response(text.getvalue(), media_type="text/csv")
