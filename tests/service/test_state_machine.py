"""The ledger under whatever order of calls: what an ordinary run does, what zombies, sweeps and users do in between."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine, delete, select, true

from acmix.errors import Reason
from service.store import _journal
from service.store.database import writing
from service.store.errors import JobNotEnded, JobNotFound, LeaseLost, MoveRefused
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Claim, Job, Outcome
from service.store.states import ENDED, MOVES
from service.store.tables import holdings, jobs, metadata, reservations
from tests.service.test_waits import card, let_be_blocked
from tests.service.work import let_backoff_pass, let_lease_run_out, look, metrics, rows, save, submit

RETRYABLE = Reason("disk_full", "the disk is full", retryable=True)
HOPELESS = Reason("diverged", "the loss is nan", "user")
OUTCOMES = (
    Outcome("succeeded"),
    Outcome("failed", RETRYABLE),
    Outcome("failed", HOPELESS),
    Outcome("lost"),
    Outcome("drained"),
)


PROFILE = settings(max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_whatever_the_order_of_calls_the_promises_of_the_ledger_hold(engine: Engine) -> None:
    run_state_machine_as_test(lambda: Calls(engine), settings=PROFILE)


def test_without_the_fence_they_do_not(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfenced(connection: Connection, job_id: str, _attempt: int) -> Job:
        return _journal.lock(connection, job_id, true())

    monkeypatch.setattr(_journal, "lock_held", unfenced)
    unshrunk = settings(PROFILE, phases=[Phase.generate], database=None, max_examples=200)
    with pytest.raises((AssertionError, pytest.fail.Exception, JobNotFound, BaseExceptionGroup)):
        run_state_machine_as_test(lambda: Calls(engine), settings=unshrunk)


class Calls(RuleBasedStateMachine):
    """Claims are kept when they are over: whoever holds one is a zombie then, and tries to write."""

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        with writing(engine).begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
        self.engine = engine
        self.ledger = Ledger(engine)
        for worker in ("worker-1", "worker-2"):
            self.ledger.enrol(card(worker, 2))
        self.reader = Reader(engine)
        self.seen: dict[str, Job] = {}

    @rule(target=jobs, priority=st.integers(-2, 2), gpus=st.sampled_from([1, 1, 2]))
    def submit(self, priority: int, gpus: int) -> str:
        return submit(self.ledger, priority=priority, resources={"gpus": gpus}).id

    @rule(target=claims, worker=st.sampled_from(["worker-1", "worker-2"]))
    def claim(self, worker: str) -> Any:
        claimed = look(self.ledger, worker, gpus=2)
        return multiple() if claimed is None else claimed

    @rule(job_id=jobs)
    def be_passed_over(self, job_id: str) -> None:
        """For longer than it takes until a worker is reserved for it."""
        if job_id in self.seen and self.seen[job_id].status == "queued":
            let_be_blocked(self.engine, self.reader.job(job_id), seconds=301)
        self.ledger.reserve()

    @rule(claim=claims, steps=st.integers(1, 3))
    def train(self, claim: Claim, steps: int) -> None:
        """Goes on from wherever the attempt is."""
        at = self._reached(claim)
        self._as_holder(claim, lambda: self.ledger.record(*_held(claim), [metrics(*range(at + 1, at + steps + 1))]))

    @rule(claim=claims)
    def save(self, claim: Claim) -> None:
        self._as_holder(claim, lambda: save(self.ledger, claim.job, self._reached(claim), keep_latest=2))

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        self._as_holder(claim, lambda: self.ledger.heartbeat(*_held(claim)))

    @rule(claim=claims)
    def print_something(self, claim: Claim) -> None:
        self._as_holder(claim, lambda: self.ledger.log(*_held(claim), ["a line"]))

    @rule(claim=claims, outcome=st.sampled_from(OUTCOMES))
    def finish(self, claim: Claim, outcome: Outcome) -> None:
        self._as_holder(claim, lambda: self.ledger.finish(*_held(claim), outcome))

    @rule(claim=claims)
    def rewind(self, claim: Claim) -> None:
        self._as_holder(claim, lambda: self.ledger.rewind(*_held(claim), None, why="none can be read"))

    @rule(job_id=jobs)
    def lose(self, job_id: str) -> None:
        if job_id in self.seen and self.seen[job_id].status == "running":
            let_lease_run_out(self.engine, job_id)
        self.ledger.sweep()

    @rule(job_id=jobs)
    def wait(self, job_id: str) -> None:
        if job_id in self.seen and self.seen[job_id].status == "queued":
            let_backoff_pass(self.engine, job_id)

    @rule(job_id=jobs, wish=st.sampled_from(["request_cancel", "request_pause", "resume"]))
    def ask(self, job_id: str, wish: str) -> None:
        with suppress(JobNotFound, MoveRefused):
            getattr(self.ledger, wish)(job_id)

    @rule(job_id=consumes(jobs))
    def remove(self, job_id: str) -> None:
        with suppress(JobNotFound, JobNotEnded):
            self.ledger.delete(job_id)
            self.seen.pop(job_id, None)

    @invariant()
    def every_row_is_as_promised(self) -> None:
        for job in [self.reader.job(each.id) for each in self.reader.jobs(limit=200).data]:
            before = self.seen.get(job.id)
            if job != before:
                self._check_row(job)
            if before and job != before:
                self._check_move(before, job)
            self.seen[job.id] = job

    @invariant()
    def slots_are_held_for_what_runs_and_kept_for_what_waits(self) -> None:
        with self.engine.connect() as connection:
            running = select(jobs.c.id, jobs.c.attempt, jobs.c.worker, jobs.c.slots).where(jobs.c.status == "running")
            expected = [tuple(row)[:3] for row in connection.execute(running) for _ in range(row.slots)]
            held = connection.execute(select(holdings)).all()
            queued = set(connection.execute(select(jobs.c.id).where(jobs.c.status == "queued")).scalars())
            kept = set(connection.execute(select(reservations.c.job)).scalars())
        assert sorted((row.job, row.attempt, row.worker) for row in held) == sorted(expected)
        assert len({(row.worker, row.slot) for row in held}) == len(held)
        assert all(0 <= row.slot < 2 for row in held)
        assert kept <= queued

    def _check_move(self, before: Job, job: Job) -> None:
        assert before.status not in ENDED  # such a row never changes
        assert job.status == before.status or job.status in MOVES[before.status]
        assert job.attempt in (before.attempt, before.attempt + 1)
        assert job.last_event >= before.last_event
        assert (job.failures, job.losses) >= (before.failures, before.losses)

    def _check_row(self, job: Job) -> None:
        is_running = job.status == "running"
        assert (job.lease_expires_at is not None) == is_running
        assert not is_running or job.worker is not None
        assert (job.ended_at is not None) == (job.status in ENDED)
        assert job.requested is None or is_running
        numbers = [event.number for event in self.reader.events(job.id)]
        assert numbers == list(range(1, job.last_event + 1))
        attempts = [event.attempt for event in self.reader.events(job.id)]
        assert attempts == sorted(attempts)
        open_attempts = [attempt.number for attempt in self.reader.attempts(job.id) if attempt.ended_at is None]
        assert open_attempts == ([job.attempt] if is_running else [])
        curve = next((series.step for series in self.reader.metrics(job.id)), [])
        assert curve == list(range(1, len(curve) + 1))
        kept = self.reader.checkpoints(job.id)
        assert len(kept) <= 2
        assert all(checkpoint.step <= len(curve) for checkpoint in kept)

    def _as_holder(self, claim: Claim, write: Any) -> None:
        """Who does not hold the job any more is refused, and leaves no trace."""
        job = self.seen.get(claim.job.id)
        if job and job.status == "running" and job.attempt == claim.job.attempt:
            write()
            return
        before = rows(self.engine)
        with pytest.raises(LeaseLost):
            write()
        assert rows(self.engine) == before

    def _reached(self, claim: Claim) -> int:
        return len(next((series.step for series in self.reader.metrics(claim.job.id)), []))


def _held(claim: Claim) -> tuple[str, int]:
    return claim.job.id, claim.job.attempt
