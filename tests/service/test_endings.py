"""How attempts end: verdicts, budgets, backoff, the sweep."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from acmix.errors import Reason
from service.store.database import clock, writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Job, Outcome
from tests.service.work import claim, let_backoff_pass, let_lease_run_out, look, submit

DISK_FULL = Reason("disk_full", "the disk is full", "platform", retryable=True)
DIVERGED = Reason("diverged", "the loss is nan at step 7", "user")


@pytest.fixture
def running(ledger: Ledger) -> Job:
    submit(ledger)
    return claim(ledger).job


@pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled"])
def test_the_last_event_of_a_job_is_the_status_that_ends_it(
    kind: Any, running: Job, ledger: Ledger, reader: Reader
) -> None:
    reason = DIVERGED if kind == "failed" else None
    ended = ledger.finish(running.id, 1, Outcome(kind, reason, exit_code=1))
    assert ended == reader.job(running.id)
    assert (ended.status, ended.phase, ended.worker, ended.lease_expires_at) == (kind, None, "worker-1", None)
    last = reader.events(running.id)[-1]
    assert (last.type, last.number, last.data) == (
        "status",
        ended.last_event,
        {"status": kind, "reason": ended.status_reason},
    )
    assert last.at == ended.ended_at
    [attempt] = reader.attempts(running.id)
    assert (attempt.ended_at, attempt.exit_code, attempt.reason) == (ended.ended_at, 1, ended.status_reason)


def test_a_failure_that_is_worth_no_other_try_ends_the_job(running: Job, ledger: Ledger) -> None:
    failed = ledger.finish(running.id, 1, Outcome("failed", DIVERGED))
    assert (failed.status, failed.failures, failed.status_reason) == ("failed", 0, DIVERGED.as_json())


def test_a_failure_without_a_reason_is_internal(running: Job, ledger: Ledger) -> None:
    failed = ledger.finish(running.id, 1, Outcome("failed"))
    assert failed.status_reason is not None
    assert failed.status_reason["code"] == "internal"


def test_failures_are_tried_again_later_and_later_and_then_no_more(
    running: Job, ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    for failures, delay_seconds in ((1, 10), (2, 20)):
        waiting = ledger.finish(running.id, failures, Outcome("failed", DISK_FULL))
        assert (waiting.status, waiting.failures, waiting.status_reason) == ("queued", failures, DISK_FULL.as_json())
        told_at = reader.events(running.id)[-1].at
        assert waiting.not_before == told_at + timedelta(seconds=delay_seconds)
        assert look(ledger) is None
        assert ledger.long_queued(-60) == []
        let_backoff_pass(engine, running.id)
        assert ledger.long_queued(-60) == [running.id]
        again = claim(ledger).job
        assert (again.attempt, again.not_before, again.status_reason) == (failures + 1, None, None)
    failed = ledger.finish(running.id, 3, Outcome("failed", DISK_FULL))
    assert (failed.status, failed.failures) == ("failed", 3)


def test_five_losses_are_made_up_for_at_once_the_sixth_is_not(running: Job, ledger: Ledger, engine: Engine) -> None:
    for attempt in range(1, 6):
        let_lease_run_out(engine, running.id)
        assert ledger.sweep() == [running.id]
        assert claim(ledger).job.losses == attempt
    lost = ledger.finish(running.id, 6, Outcome("lost", signal=9))
    assert (lost.status, lost.losses, lost.failures) == ("failed", 6, 0)
    assert lost.status_reason is not None
    assert (lost.status_reason["code"], lost.status_reason["retryable"]) == ("worker_lost", False)


def test_drains_and_pauses_count_in_no_budget(running: Job, ledger: Ledger) -> None:
    for attempt in range(1, 10):
        drained = ledger.finish(running.id, attempt, Outcome("drained"))
        assert (drained.status, drained.failures, drained.losses, drained.not_before) == ("queued", 0, 0, None)
        claim(ledger)
    paused = ledger.finish(running.id, 10, Outcome("paused"))
    assert (paused.status, paused.failures, paused.losses, paused.status_reason) == ("paused", 0, 0, None)


def test_a_drained_or_lost_job_keeps_its_place_a_failed_one_lines_up_again(ledger: Ledger, reader: Reader) -> None:
    first, second = submit(ledger), submit(ledger)
    claim(ledger)
    ledger.finish(first.id, 1, Outcome("drained"))
    assert reader.position(first.id) == 1
    claim(ledger)
    ledger.finish(first.id, 2, Outcome("lost"))
    assert reader.position(first.id) == 1
    claim(ledger)
    ledger.finish(first.id, 3, Outcome("failed", DISK_FULL))
    assert [reader.position(job.id) for job in (first, second)] == [2, 1]


@pytest.mark.parametrize("kind", ["failed", "lost", "drained", "cancelled", "paused"])
def test_a_wish_for_cancel_is_met_by_every_end_but_success(kind: Any, running: Job, ledger: Ledger) -> None:
    ledger.request_cancel(running.id)
    ended = ledger.finish(running.id, 1, Outcome(kind, DISK_FULL if kind == "failed" else None))
    assert (ended.status, ended.requested) == ("cancelled", None)
    assert ended.status_reason is not None
    assert ended.status_reason["code"] == "cancelled_by_user"


def test_a_job_that_succeeded_before_the_cancel_was_seen_has_succeeded(running: Job, ledger: Ledger) -> None:
    ledger.request_cancel(running.id)
    ended = ledger.finish(running.id, 1, Outcome("succeeded"))
    assert (ended.status, ended.requested, ended.status_reason) == ("succeeded", None, None)


def test_a_wish_for_pause_is_not_forgotten_when_the_worker_is_lost(
    running: Job, ledger: Ledger, engine: Engine
) -> None:
    ledger.request_pause(running.id)
    let_lease_run_out(engine, running.id)
    ledger.sweep()
    assert look(ledger, "worker-2") is None
    resumed, _ = ledger.resume(running.id)
    assert (resumed.status, resumed.losses) == ("queued", 1)


def test_the_sweep_takes_only_what_ran_out(ledger: Ledger, reader: Reader, engine: Engine) -> None:
    dead, alive, queued = (submit(ledger) for _ in range(3))
    claim(ledger)
    claim(ledger)
    let_lease_run_out(engine, dead.id)
    assert ledger.sweep() == [dead.id]
    swept = reader.job(dead.id)
    assert (swept.status, swept.losses, swept.worker) == ("queued", 1, None)
    assert swept.status_reason is not None
    assert swept.status_reason["code"] == "worker_lost"
    assert reader.attempts(dead.id)[0].ended_at is not None
    assert [reader.job(job.id).status for job in (alive, queued)] == ["running", "queued"]
    assert ledger.sweep() == []


def test_the_sweep_grants_the_wish_of_a_job_whose_worker_is_gone(
    running: Job, ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    ledger.request_cancel(running.id)
    let_lease_run_out(engine, running.id)
    assert ledger.sweep() == [running.id]
    assert reader.job(running.id).status == "cancelled"


def test_a_lease_that_was_never_set_counts_from_the_claim(running: Job, ledger: Ledger, engine: Engine) -> None:
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE jobs SET lease_expires_at = NULL"))
    assert ledger.sweep() == []
    assert Ledger(engine, lease_seconds=-1).sweep() == [running.id]


def test_the_sweep_asks_no_clock_but_the_databases(
    running: Job, ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("time.time_ns", lambda: 4 * 10**18)
    ledger.heartbeat(running.id, 1)
    assert ledger.sweep() == []
    with engine.connect() as connection:
        now = clock(connection)
    renewed = Reader(engine).job(running.id).lease_expires_at
    assert renewed is not None
    assert timedelta(0) < renewed - now <= timedelta(seconds=60)


def test_jobs_queued_for_long_are_named_longest_first(ledger: Ledger) -> None:
    first, second = submit(ledger), submit(ledger, priority=5)
    assert ledger.long_queued(60) == []
    assert ledger.long_queued(-60) == [first.id, second.id]
    claim(ledger)
    assert ledger.long_queued(-60) == [first.id]
