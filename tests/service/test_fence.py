"""A zombie, an attempt only thought dead, can harm nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from acmix.events import Event
from service.store.errors import LeaseLost
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Job, Outcome
from tests.service.work import at_once, claim, evaluation, let_lease_run_out, metrics, rows, save, submit, trace

WRITES: dict[str, Callable[[Ledger, Job], Any]] = {
    "heartbeat": lambda ledger, job: ledger.heartbeat(job.id, job.attempt),
    "wish": lambda ledger, job: ledger.wish(job.id, job.attempt),
    "record": lambda ledger, job: ledger.record(job.id, job.attempt, [metrics(9), trace(9), evaluation(9, best=True)]),
    "record status": lambda ledger, job: ledger.record(
        job.id, job.attempt, [Event("status", "", {"status": "running"})]
    ),
    "commit_checkpoint": lambda ledger, job: save(ledger, job, 9),
    "log": lambda ledger, job: ledger.log(job.id, job.attempt, ["from beyond"]),
    "rewind": lambda ledger, job: ledger.rewind(job.id, job.attempt, None, why="unreadable"),
    "finish": lambda ledger, job: ledger.finish(job.id, job.attempt, Outcome("succeeded")),
}


def lost_attempt(ledger: Ledger, engine: Engine) -> Job:
    """An attempt with something to lose whose lease ran out, swept."""
    submit(ledger)
    zombie = claim(ledger, "worker-1").job
    ledger.record(zombie.id, 1, [metrics(1, 2), trace(2), evaluation(2, best=True)])
    save(ledger, zombie, 2)
    let_lease_run_out(engine, zombie.id)
    assert ledger.sweep() == [zombie.id]
    return zombie


@pytest.mark.parametrize("write", WRITES)
def test_a_zombie_changes_no_row_once_another_attempt_runs(write: str, ledger: Ledger, engine: Engine) -> None:
    zombie = lost_attempt(ledger, engine)
    claim(ledger, "worker-2")
    before = rows(engine)
    with pytest.raises(LeaseLost, match=f"attempt 1 no longer holds job {zombie.id}"):
        WRITES[write](ledger, zombie)
    assert rows(engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_zombie_changes_no_row_while_the_job_waits(write: str, ledger: Ledger, engine: Engine) -> None:
    zombie = lost_attempt(ledger, engine)
    before = rows(engine)
    with pytest.raises(LeaseLost):
        WRITES[write](ledger, zombie)
    assert rows(engine) == before


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled"])
def test_nobody_changes_an_ended_job(kind: Any, write: str, ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.finish(job.id, 1, Outcome(kind))
    before = rows(engine)
    with pytest.raises(LeaseLost):
        WRITES[write](ledger, job)
    assert rows(engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_an_attempt_of_a_deleted_job_has_lost_its_lease(write: str, ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.finish(job.id, 1, Outcome("succeeded"))
    ledger.delete(job.id)
    with pytest.raises(LeaseLost):
        WRITES[write](ledger, job)


def test_the_holder_may_go_on_past_its_lease_until_the_sweep_takes_it(ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    job = claim(ledger).job
    let_lease_run_out(engine, job.id)
    ledger.heartbeat(job.id, 1)
    assert ledger.sweep() == []


def test_sweep_and_finish_at_once_end_an_attempt_once(ledger: Ledger, reader: Reader, engine: Engine) -> None:
    for _ in range(10):
        submit(ledger)
        job = claim(ledger).job
        let_lease_run_out(engine, job.id)

        def finish(job: Job = job) -> bool:
            try:
                ledger.finish(job.id, 1, Outcome("succeeded"))
            except LeaseLost:
                return False
            return True

        finished, *swept = at_once(finish, *[lambda: bool(ledger.sweep())] * 3)
        assert [finished, *swept].count(True) == 1
        after = reader.job(job.id)
        assert (after.status, after.losses) == (("succeeded", 0) if finished else ("queued", 1))
        assert [event.number for event in reader.events(job.id)] == [1, 2, 3]
        ledger.request_cancel(job.id)
