import itertools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any, get_args

import pytest
from sqlalchemy import Engine

from acmix.errors import Reason
from service.store.errors import JobNotEnded, LeaseLost, MoveRefused
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Job, Outcome, Status
from service.store.states import ACTIONS, ENDED, MOVES, STATUSES, allowed_actions, judge
from tests.service.work import claim, let_lease_run_out, look, rows, submit

OUTCOMES = ("succeeded", "failed", "lost", "drained", "cancelled", "paused")
RETRYABLE = Reason("disk_full", "the disk is full", "platform", retryable=True)


def job_that_is(status: Status, ledger: Ledger) -> Job:
    """A job brought to this status by legal moves alone."""
    job = submit(ledger)
    if status == "queued":
        return job
    if status == "paused":
        return ledger.request_pause(job.id)[0]
    job = claim(ledger).job
    return job if status == "running" else ledger.finish(job.id, 1, Outcome(status))


ACTS: dict[str, Callable[[Ledger, Job], Any]] = {
    "cancel": lambda ledger, job: ledger.request_cancel(job.id),
    "pause": lambda ledger, job: ledger.request_pause(job.id),
    "resume": lambda ledger, job: ledger.resume(job.id),
    "delete": lambda ledger, job: ledger.delete(job.id),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("status", STATUSES)
def test_an_action_is_taken_where_the_table_allows_it_and_else_changes_nothing(
    status: Status, act: Any, ledger: Ledger, engine: Engine
) -> None:
    job = job_that_is(status, ledger)
    before = rows(engine)
    is_allowed = act in allowed_actions(status)
    with nullcontext() if is_allowed else suppress(MoveRefused, JobNotEnded):
        ACTS[act](ledger, job)
    assert (rows(engine) != before) == is_allowed


@pytest.mark.parametrize("status", sorted(ENDED))
def test_a_refusal_names_the_status_and_what_would_do(status: Status, ledger: Ledger) -> None:
    job = job_that_is(status, ledger)
    for refused in (ledger.request_pause, ledger.resume):
        with pytest.raises(MoveRefused, match=f"is {status} and takes no .*; it takes: retry, delete"):
            refused(job.id)


@pytest.mark.parametrize("kind", [*OUTCOMES, "claim", "sweep"])
@pytest.mark.parametrize("status", STATUSES)
def test_every_move_of_a_worker_or_the_sweep_is_in_the_table(
    status: Status, kind: Any, ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    job = job_that_is(status, ledger)
    let_lease_run_out(engine, job.id)
    before = rows(engine)
    if kind == "sweep":
        ledger.sweep()
    elif kind == "claim":
        look(ledger, "worker-2")
    elif status == "running":
        ledger.finish(job.id, job.attempt, Outcome(kind))
    else:
        with pytest.raises(LeaseLost):
            ledger.finish(job.id, job.attempt, Outcome(kind))
    after = reader.job(job.id).status
    if rows(engine) == before:
        assert after == status
    else:
        assert after in MOVES[status]


def test_allowed_actions_follow_the_table() -> None:
    assert allowed_actions("running") == ["cancel", "pause"]
    assert allowed_actions("failed") == ["retry", "delete"]
    assert {status for status in STATUSES if "delete" in allowed_actions(status)} == ENDED
    assert set(MOVES) == set(STATUSES) == set(get_args(Status))
    assert all(statuses <= set(STATUSES) for statuses in ACTIONS.values())


def test_every_verdict_is_a_legal_move_within_budget(ledger: Ledger) -> None:
    submit(ledger)
    job = claim(ledger).job
    reasons = (None, RETRYABLE, replace(RETRYABLE, retryable=False))
    for kind, reason, requested, failures, losses in itertools.product(
        OUTCOMES, reasons, (None, "cancel", "pause"), range(4), range(7)
    ):
        spent = replace(job, requested=requested, failures=failures, losses=losses)  # type: ignore[arg-type]  # a literal
        verdict = judge(spent, Outcome(kind, reason), max_failures=2, max_losses=5)  # type: ignore[arg-type]  # a literal
        assert verdict.status in MOVES["running"]
        assert 0 <= verdict.failures - failures <= 1
        assert 0 <= verdict.losses - losses <= 1
        if verdict.status in {"queued", "paused"} and kind in {"failed", "lost"}:
            assert verdict.failures <= 2 or kind == "lost"
            assert verdict.losses <= 5 or kind == "failed"
        if requested == "cancel":
            assert verdict.status == ("succeeded" if kind == "succeeded" else "cancelled")
        if requested == "pause":
            assert verdict.status != "queued"
