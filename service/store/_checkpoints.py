"""Checkpoints that are listed: which stay, which go, and what goes with them when a job goes back to one."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update

from service.store import _blocks
from service.store._projections import best_of
from service.store.errors import CheckpointNotFound
from service.store.rows import Checkpoint, Job, read
from service.store.tables import checkpoints, evaluations, metric_points, trace_steps

NEWEST_FIRST = (checkpoints.c.step.desc(), checkpoints.c.created_at.desc(), checkpoints.c.id.desc())
CURVES: tuple[Table, ...] = (metric_points, trace_steps, evaluations)


def listed(connection: Connection, job_id: str) -> list[Checkpoint]:
    """Checkpoints of a job, newest first."""
    mine = select(checkpoints).where(checkpoints.c.job == job_id).order_by(*NEWEST_FIRST)
    return [read(Checkpoint, row) for row in connection.execute(mine).mappings()]


def insert_row(connection: Connection, row: Mapping[str, Any]) -> list[Checkpoint]:
    """List a checkpoint in the place of one of the same step, saved when a run stopped there and went on.

    Returns the unlisted; not one under the same key, stored again: its files are the new one's.
    """
    former = [found for found in listed(connection, row["job"]) if found.step == row["step"]]
    _unlist(connection, former)
    connection.execute(insert(checkpoints).values(**row))
    return [found for found in former if found.key != row["key"]]


def retain(
    connection: Connection, job: Job, *, keep_best: int, keep_latest: int, metric: str, larger_is_better: bool
) -> list[Checkpoint]:
    """Unlist all but the best and the newest, and mark the very best and the very newest; returns the unlisted."""
    newest = listed(connection, job.id)
    best = _best_first(newest, metric, larger_is_better=larger_is_better)
    kept = {checkpoint.id for checkpoint in (*newest[:keep_latest], *best[:keep_best])}
    removed = [checkpoint for checkpoint in newest if checkpoint.id not in kept]
    _unlist(connection, removed)
    _mark(connection, job, best[0].id if best else None)
    return removed


def truncate(connection: Connection, job: Job, to: Checkpoint | None) -> tuple[list[Checkpoint], dict[str, Any]]:
    """Go back to a checkpoint, or to the start: nothing that is served lies beyond it.

    Returns the checkpoints unlisted and what changes in the job: its `best` as it was at that step.
    """
    newer = _newer(connection, job, to)
    _unlist(connection, newer)
    for table in CURVES:
        beyond = table.c.job == job.id
        connection.execute(delete(table).where(beyond & (table.c.step > to.step) if to else beyond))
    _blocks.cut(connection, job.id, to.step if to else -1)
    best = _best_so_far(connection, job)
    _mark(connection, job, best["checkpoint"] if best else None)
    return newer, {"best": best}


def resumed_from(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """What an event says of where an attempt resumes."""
    if checkpoint is None:
        return None
    return {"attempt": checkpoint.attempt, "step": checkpoint.step, "checkpoint": checkpoint.id}


def _best_first(newest: Sequence[Checkpoint], metric: str, *, larger_is_better: bool) -> list[Checkpoint]:
    """Those with a value of the metric, best first; of equals the later one, which trained longer."""
    sign = -1 if larger_is_better else 1
    return sorted(
        (checkpoint for checkpoint in newest if metric in checkpoint.metrics),
        key=lambda checkpoint: sign * checkpoint.metrics[metric],
    )


def _newer(connection: Connection, job: Job, to: Checkpoint | None) -> list[Checkpoint]:
    newest = listed(connection, job.id)
    if to is None:
        return newest
    ids = [checkpoint.id for checkpoint in newest]
    if to.id not in ids:
        raise CheckpointNotFound(to.id)
    return newest[: ids.index(to.id)]


def _best_so_far(connection: Connection, job: Job) -> dict[str, Any] | None:
    """The job's `best` by the evaluations that are left; its checkpoint is the one of that step, if still listed."""
    mine = (evaluations.c.job == job.id) & evaluations.c.best
    row = connection.execute(select(evaluations).where(mine).order_by(evaluations.c.step.desc()).limit(1)).first()
    if row is None:
        return None
    same_step = (found.id for found in listed(connection, job.id) if found.step == row.step)
    return {**best_of(row.data), "checkpoint": next(same_step, None)}


def _mark(connection: Connection, job: Job, best: str | None) -> None:
    newest = select(checkpoints.c.id).where(checkpoints.c.job == job.id).order_by(*NEWEST_FIRST).limit(1)
    latest = connection.execute(newest).scalar_one_or_none()
    marks = {"best": checkpoints.c.id == (best or ""), "latest": checkpoints.c.id == (latest or "")}
    connection.execute(update(checkpoints).where(checkpoints.c.job == job.id).values(**marks))


def _unlist(connection: Connection, unlisted: Sequence[Checkpoint]) -> None:
    ids = [checkpoint.id for checkpoint in unlisted]
    connection.execute(delete(checkpoints).where(checkpoints.c.id.in_(ids)))
