"""A job on the terminal: its progress while it trains, its result, and its layers in a table."""

import math
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from service.client import Client


def follow(console: Console, client: Client, job_id: str) -> None:
    """A progress bar from the job's stream of events, until it has ended."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("queued", total=1.0)
        for event in client.follow(job_id):
            _advance(bar, task, event)


def _advance(bar: Progress, task: Any, event: dict[str, Any]) -> None:
    data = event["data"]
    if event["type"] == "progress" and data.get("steps"):
        bar.update(task, completed=data["step"], total=data["steps"], description=_stand(data))
    elif event["type"] == "evaluation":
        bar.console.print(f"epoch {data['epoch']}  {event['message']}", highlight=False)
    elif event["type"] in ("status", "warning"):
        bar.update(task, description=event["message"])


def _stand(progress: dict[str, Any]) -> str:
    return f"{progress['phase']}, {progress['epoch']} of {progress['epochs']} epochs done"


def show_result(console: Console, client: Client, job_id: str) -> None:
    job, results = client.job(job_id), client.results(job_id)
    console.print(f"[bold]{job['status']}[/]", end="  ")
    if job["status_reason"]:
        console.print(job["status_reason"]["message"], highlight=False, markup=False)
    if results["final"]:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in results["final"]["metrics"].items())
        console.print(f"test of the best checkpoint (epoch {job['best']['epoch']}): {figures}", highlight=False)
    _print_traces(console, client.traces(job_id)["layers"])


def _print_traces(console: Console, layers: list[dict[str, Any]]) -> None:
    """A row a layer, in depth order: alpha and beta at the last traced step, and what the layer leans on."""
    if not layers:
        return
    table = Table(title=f"after step {layers[0]['step'][-1]}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True)
    for name in ("alpha", "beta", "alpha/beta", "rms att.", "rms conv."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("leans on", no_wrap=True)
    for layer in layers:
        alpha, beta, *rms = (_last(layer[name]) for name in ("alpha", "beta", "attention_rms", "convolution_rms"))
        ratio = abs(alpha / beta) if beta else math.inf
        figures = (f"{value:.3f}" for value in (alpha, beta, ratio, *rms))
        table.add_row(layer["layer"], *figures, _leaning(ratio))
    console.print(table)


def _leaning(ratio: float) -> str:
    if math.isnan(ratio):
        return "-"
    return "[dark_orange3]attention[/]" if ratio > 1 else "[blue]convolution[/]"


def _last(values: list[float | None]) -> float:
    """A figure that was not finite is null in JSON."""
    return math.nan if values[-1] is None else values[-1]
