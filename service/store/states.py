"""The life of a job as plain data: the table of legal moves, who may ask for what, how an end is judged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, get_args

from acmix.errors import Reason
from service.store.rows import DatasetStatus, DeliveryStatus, EventType, Job, Outcome, Status

Action = Literal["cancel", "pause", "resume", "retry", "delete"]
DatasetAction = Literal["upload", "delete"]

MOVES: Mapping[Status, frozenset[Status]] = {
    "queued": frozenset({"running", "paused", "cancelled", "failed"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "paused", "queued"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
STATUSES: tuple[Status, ...] = get_args(Status)
ENDED: frozenset[Status] = frozenset(status for status, moves in MOVES.items() if not moves)
ACTIONS: Mapping[Action, frozenset[Status]] = {
    "cancel": frozenset({"queued", "running", "paused"}),
    "pause": frozenset({"queued", "running"}),
    "resume": frozenset({"paused"}),
    "retry": ENDED,
    "delete": ENDED,
}

DATASET_STATUSES: tuple[DatasetStatus, ...] = get_args(DatasetStatus)
DATASET_ACTIONS: Mapping[DatasetAction, frozenset[DatasetStatus]] = {
    "upload": frozenset({"empty", "uploading"}),
    "delete": frozenset({"empty", "uploading", "ready", "rejected"}),
}

DELIVERY_STATUSES: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)  # what a webhook may ask to be told
END_TYPES = tuple(kind for kind in EVENT_TYPES if kind.removeprefix("job.") in ENDED)  # what it is told by default

CANCELLED_BY_USER = Reason("cancelled_by_user", "a user cancelled it", "user")
WORKER_LOST = Reason("worker_lost", "its worker was not heard of until the lease ran out", retryable=True)
INTERNAL = Reason("internal", "the attempt failed and gave no reason")
FIRST_BACKOFF_SECONDS = 5.0
UNKNOWN_RUN = timedelta(minutes=10)
AGING_SECONDS = 600  # of waiting count as much as a point of priority


def allowed_actions(status: Status) -> list[Action]:
    """What may be asked of a job of this status, in the order of the table."""
    return [action for action, statuses in ACTIONS.items() if status in statuses]


def allowed_dataset_actions(status: DatasetStatus) -> list[DatasetAction]:
    """What may be asked of a data set of this status."""
    return [action for action, statuses in DATASET_ACTIONS.items() if status in statuses]


def turn_at(priority: int, queued_at: datetime) -> datetime:
    """When a job's turn is, among those that wait: all of them age alike, so that their order never changes."""
    return queued_at - timedelta(seconds=AGING_SECONDS * priority)


def expected_end(
    now: datetime, claimed_at: datetime, told_at: datetime | None, max_runtime_seconds: float | None
) -> datetime:
    """When a run is expected to end, no earlier than now: as its progress told, and within what it may take.

    One that has told nothing is expected to last as long again as it has, and 10 minutes at least.
    """
    expected_at = told_at or now + max(now - claimed_at, UNKNOWN_RUN)
    if max_runtime_seconds is not None:
        expected_at = min(expected_at, claimed_at + timedelta(seconds=max_runtime_seconds))
    return max(now, expected_at)


@dataclass(frozen=True)
class Verdict:
    """Where a job goes when its attempt has ended; `delay_seconds` holds a queued one back."""

    status: Status
    reason: Reason | None
    failures: int
    losses: int
    delay_seconds: float = 0.0


def judge(job: Job, outcome: Outcome, *, max_failures: int, max_losses: int) -> Verdict:
    """The verdict on a running job whose attempt ended so. A wish for cancel is met by every end but success."""
    if job.requested == "cancel" and outcome.kind != "succeeded":
        return Verdict("cancelled", CANCELLED_BY_USER, job.failures, job.losses)
    if outcome.kind == "failed":
        verdict = _failed(job, outcome.reason or INTERNAL, max_failures)
    elif outcome.kind == "lost":
        verdict = _lost(job, outcome.reason or WORKER_LOST, max_losses)
    elif outcome.kind == "drained":
        verdict = Verdict("queued", outcome.reason, job.failures, job.losses)
    else:
        reason = outcome.reason or (CANCELLED_BY_USER if outcome.kind == "cancelled" else None)
        verdict = Verdict(outcome.kind, reason, job.failures, job.losses)
    if verdict.status == "queued" and job.requested == "pause":
        return replace(verdict, status="paused", delay_seconds=0.0)
    return verdict


def _failed(job: Job, reason: Reason, max_failures: int) -> Verdict:
    if not reason.retryable:
        return Verdict("failed", reason, job.failures, job.losses)
    failures = job.failures + 1
    if failures > max_failures:
        return Verdict("failed", reason, failures, job.losses)
    return Verdict("queued", reason, failures, job.losses, FIRST_BACKOFF_SECONDS * 2**failures)


def _lost(job: Job, reason: Reason, max_losses: int) -> Verdict:
    losses = job.losses + 1
    if losses <= max_losses:
        return Verdict("queued", reason, job.failures, losses)
    too_often = f"its attempts were lost {losses} times, the last one because: {reason.message}"
    return Verdict("failed", replace(WORKER_LOST, message=too_often, retryable=False), job.failures, losses)
