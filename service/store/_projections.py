"""What events leave beside themselves: points of curves, traces, evaluations, and how the job stands."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, update

from acmix.events import Event
from acmix.fleet import samples_a_step
from service.store import _blocks
from service.store.database import insert_or_replace, insert_or_replace_many
from service.store.rows import Job
from service.store.tables import attempts, evaluations, metric_points, trace_steps

LONGEST_SECONDS = 1e9  # that a run is expected to take, however slow it is


def project(connection: Connection, job: Job, now: datetime, said: Sequence[Event]) -> dict[str, Any]:
    """Write what the events leave in other tables; returns what they change in the job. Saying it twice is fine."""
    by_type: dict[str, list[Mapping[str, Any]]] = {}
    for event in said:
        by_type.setdefault(event.type, []).append(event.data)
    _write_points(connection, job, _points(job, by_type.get("metrics", ())))
    insert_or_replace(connection, trace_steps, _traces(job, by_type.get("trace", ())))
    insert_or_replace(connection, evaluations, _evaluations(job, by_type.get("evaluation", ())))
    changes = {
        **_progress(job, now, by_type.get("progress", ())),
        **_surroundings(by_type.get("status", ())),
        **_best(by_type.get("evaluation", ())),
    }
    if "devices" in changes:
        mine = (attempts.c.job == job.id) & (attempts.c.number == job.attempt)
        connection.execute(update(attempts).where(mine).values(devices=changes["devices"]))
    return changes


def best_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """A job's `best` by the evaluation that found it; its checkpoint comes with the commit."""
    metric = evaluation["metric"]
    value = evaluation["metrics"][metric]
    return {"metric": metric, "value": value, "epoch": evaluation.get("epoch"), "checkpoint": None}


def _write_points(connection: Connection, job: Job, points: Sequence[Mapping[str, Any]]) -> None:
    if not points:
        return
    insert_or_replace_many(connection, metric_points, points)
    steps = [point["step"] for point in points]
    _blocks.refresh(connection, job.id, sorted({point["name"] for point in points}), min(steps), max(steps))


def _points(job: Job, said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    points = {
        (name, step): value
        for data in said
        for name, values in data["values"].items()
        for step, value in zip(data["step"], values, strict=True)
    }
    return [{"job": job.id, "name": name, "step": step, "value": value} for (name, step), value in points.items()]


def _traces(job: Job, said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"job": job.id, "step": data["step"], "data": dict(data)} for data in said]


def _evaluations(job: Job, said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "job": job.id,
            "step": data["step"],
            "split": data["split"],
            "final": bool(data.get("final")),
            "best": _is_best(data),
            "data": dict(data),
        }
        for data in said
    ]


def _progress(job: Job, now: datetime, said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not said:
        return {}
    merged = {**(job.progress or {})}
    for data in said:
        merged.update(data)
    phase = merged.pop("phase", job.phase)
    return {"phase": phase, "progress": merged, "progress_at": now, **_expected_end(job, now, merged)}


def _expected_end(job: Job, now: datetime, progress: Mapping[str, Any]) -> dict[str, datetime]:
    """When the run will end by its present speed, evaluations not counted in, and within what it may take."""
    speed, steps = progress.get("samples_per_second"), progress.get("steps")
    if not speed or not steps or job.claimed_at is None:
        return {}
    left_seconds = (steps - progress.get("step", 0)) * samples_a_step(job.resolved_spec) / speed
    expected_at = now + timedelta(seconds=max(0.0, min(left_seconds, LONGEST_SECONDS)))
    if job.max_runtime_seconds is not None:
        expected_at = min(expected_at, job.claimed_at + timedelta(seconds=job.max_runtime_seconds))
    return {"expected_end_at": expected_at}


def _surroundings(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the run says of where it runs."""
    running = [data for data in said if data.get("status") == "running"]
    return {name: data[name] for data in running for name in ("versions", "devices") if name in data}


def _best(said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [data for data in said if _is_best(data)]
    return {"best": best_of(found[-1])} if found else {}


def _is_best(data: Mapping[str, Any]) -> bool:
    """The best so far on val; the final evaluation, on test, chooses nothing."""
    return bool(data.get("best")) and not data.get("final")
