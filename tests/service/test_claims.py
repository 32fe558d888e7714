from random import Random

import pytest
from sqlalchemy import Engine, update

from acmix.catalog import Catalog
from service.store.database import writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Outcome, WorkerCard
from service.store.tables import jobs
from service.store.tenants import Tenants
from tests.service.work import (
    at_once,
    claim,
    evaluation,
    let_lease_run_out,
    let_run,
    let_wait,
    metrics,
    rows,
    save,
    submit,
    trace,
)


def test_a_claim_begins_an_attempt_and_says_so(ledger: Ledger, reader: Reader) -> None:
    ledger.enrol(WorkerCard("worker-1", "node-a", 1, [], {}, Catalog()))
    submitted = submit(ledger)
    claimed = claim(ledger)
    job = claimed.job
    assert claimed.resume is None
    assert (job.id, job.status, job.phase, job.attempt, job.worker) == (
        submitted.id, "running", "starting", 1, "worker-1",
    )  # fmt: skip
    assert job.started_at == job.claimed_at
    [attempt] = reader.attempts(job.id)
    assert (attempt.number, attempt.worker, attempt.host) == (1, "worker-1", "node-a")
    assert (attempt.ended_at, attempt.resumed_from) == (None, None)
    event = reader.events(job.id)[-1]
    assert (event.number, event.attempt, event.type) == (2, 1, "status")
    assert event.data == {"status": "running", "worker": "worker-1", "resumed_from": None}


def test_an_empty_queue_gives_none(ledger: Ledger) -> None:
    assert ledger.claim("worker-1", gpus_free=1, can_run=lambda _: True) is None


def test_priority_goes_first_then_age(ledger: Ledger, reader: Reader) -> None:
    submitted = [submit(ledger, priority=priority) for priority in (0, 5, 0, -3, 5)]
    expected = [submitted[index].id for index in (1, 4, 0, 2, 3)]
    assert [job.id for job in reader.queue().data] == expected
    assert [reader.position(job_id) for job_id in expected] == [1, 2, 3, 4, 5]
    assert [claim(ledger).job.id for _ in expected] == expected


def test_ten_minutes_of_waiting_count_as_much_as_a_point_of_priority(
    ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    """However many urgent ones come after it, a job's turn comes."""
    waiting = [submit(ledger, priority=priority) for priority in (-100, 0, 1)]
    for job in waiting:
        let_wait(engine, job.id, minutes=25)
    newer = [submit(ledger, priority=priority) for priority in (3, 2)]
    expected = [waiting[2], newer[0], waiting[1], newer[1], waiting[0]]
    assert [job.id for job in reader.queue().data] == [job.id for job in expected]
    assert [claim(ledger).job.id for _ in expected] == [job.id for job in expected]


def test_a_claim_tells_how_long_the_attempts_before_it_ran(ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    first = claim(ledger)
    assert first.ran_seconds == 0
    let_run(engine, first.job.id, seconds=100)
    ledger.finish(first.job.id, 1, Outcome("drained"))
    let_run(engine, claim(ledger).job.id, seconds=20)
    ledger.finish(first.job.id, 2, Outcome("lost"))
    assert claim(ledger).ran_seconds == pytest.approx(120, abs=5)


def test_a_job_that_needs_more_gpus_than_are_free_waits(ledger: Ledger) -> None:
    large, auto, none = (submit(ledger, resources={"gpus": gpus}) for gpus in (2, "auto", 0))
    claimed = [ledger.claim("worker-1", gpus_free=free, can_run=lambda _: True) for free in (None, 1, 1, 2)]
    assert [found and found.job.id for found in claimed] == [auto.id, none.id, None, large.id]


@pytest.mark.parametrize(("asked", "free", "granted"), [("auto", 2, 1), ("auto", 0, 0), ("auto", None, 0), (2, 4, 2)])
def test_the_claim_settles_how_many_gpus_a_job_gets(
    asked: int | str, free: int | None, granted: int, ledger: Ledger
) -> None:
    job = submit(ledger, resources={"gpus": asked})
    claimed = ledger.claim("worker-1", gpus_free=free, can_run=lambda _: True)
    assert claimed is not None
    assert claimed.job.resolved_spec == {
        **job.resolved_spec,
        "resources": {**job.resolved_spec["resources"], "gpus": granted},
    }
    assert claimed.job.gpus == job.gpus


def test_what_a_worker_cannot_run_is_passed_over_however_much_of_it_there_is(ledger: Ledger) -> None:
    for _ in range(101):
        submit(ledger, name="strange", priority=1)
    fitting = submit(ledger, name="known")
    claimed = ledger.claim("worker-1", gpus_free=None, can_run=lambda spec: spec["name"] == "known")
    assert claimed is not None
    assert claimed.job.id == fitting.id
    assert ledger.claim("worker-1", gpus_free=None, can_run=lambda spec: spec["name"] == "known") is None


@pytest.mark.parametrize("seed", range(6))
def test_the_next_job_is_the_first_of_all_that_fit_whatever_the_queue(
    seed: int, ledger: Ledger, engine: Engine
) -> None:
    """The witness sorts all that are queued and takes the first that fits; the claim looks at lanes."""
    random = Random(seed)
    names, free = ("a", "b", "c", "d"), random.choice([None, 0, 1, 2])
    submitted = []
    for _ in range(40):
        wishes = {"resources": {"gpus": random.choice(["auto", 0, 1, 2, 8])}, "priority": random.choice([0, 0, 1, 9])}
        whose = ledger.of(random.choice(names))
        submitted.append(submit(whose, name=random.choice(["known", "strange"]), **wishes))
    queue = sorted(submitted, key=lambda job: (job.turn_at, job.id))
    Tenants(engine).limit("a", {"most_running": 0})
    held_back = {job.id for job in queue if random.random() < 0.3}
    with writing(engine).begin() as connection:
        later = queue[0].created_at.replace(year=2100)
        connection.execute(update(jobs).where(jobs.c.id.in_(held_back)).values(not_before=later))
    fitting = [
        job.id
        for job in queue
        if job.tenant != "a" and job.name == "known" and job.id not in held_back and (job.gpus or 0) <= (free or 0)
    ]
    claimed = []
    while found := ledger.claim("worker", gpus_free=free, can_run=lambda spec: spec["name"] == "known"):
        claimed.append(found.job.id)
    assert claimed == fitting


def test_fifty_jobs_claimed_by_eight_threads_are_claimed_once_each(ledger: Ledger, reader: Reader) -> None:
    submitted = {submit(ledger).id for _ in range(50)}

    def work() -> list[str]:
        claimed = []
        while found := ledger.claim("worker", gpus_free=None, can_run=lambda _: True):
            claimed.append(found.job.id)
        return claimed

    claimed = [job_id for several in at_once(*[work] * 8) for job_id in several]
    assert len(claimed) == 50
    assert set(claimed) == submitted
    assert {job.attempt for job in reader.jobs(limit=100).data} == {1}


def test_cancel_and_claim_at_once_leave_one_of_two_outcomes(ledger: Ledger, reader: Reader) -> None:
    for _ in range(10):
        job = submit(ledger)
        at_once(
            lambda job=job: ledger.request_cancel(job.id),  # type: ignore[misc]  # its default binds
            lambda: ledger.claim("worker", gpus_free=None, can_run=lambda _: True),
        )
        after = reader.job(job.id)
        assert (after.status, after.requested) in {("cancelled", None), ("running", "cancel")}
        assert [event.number for event in reader.events(job.id)] == [1, 2]


def test_the_next_attempt_goes_on_from_the_newest_checkpoint_and_no_curve_runs_back(
    ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.record(job.id, 1, [metrics(*range(1, 11)), trace(5), evaluation(10, 0.5, best=True)])
    kept, _ = save(ledger, job, 10, 0.5, best=True)
    ledger.record(job.id, 1, [metrics(11, 12), trace(12), evaluation(12, 0.9, best=True)])
    ledger.finish(job.id, 1, Outcome("lost"))
    resumed = claim(ledger)
    assert resumed.resume is not None
    assert (resumed.resume.id, resumed.resume.step, resumed.job.attempt) == (kept.id, 10, 2)
    assert reader.metrics(job.id)[0].step == list(range(1, 11))
    assert reader.traces(job.id)[0].step == [5]
    assert [data["step"] for data in reader.evaluations(job.id)] == [10]
    assert resumed.job.best == {"metric": "accuracy", "value": 0.5, "epoch": 1, "checkpoint": kept.id}
    resumed_from = {"attempt": 1, "step": 10, "checkpoint": kept.id}
    assert reader.events(job.id)[-1].data["resumed_from"] == resumed_from
    assert reader.attempts(job.id)[0].resumed_from == resumed_from
    assert len([event for event in reader.events(job.id) if event.type == "metrics"]) == 2


def test_without_a_checkpoint_the_next_attempt_begins_anew(ledger: Ledger, reader: Reader) -> None:
    submit(ledger)
    job = claim(ledger).job
    ledger.record(job.id, 1, [metrics(1), trace(1), evaluation(1, best=True)])
    ledger.finish(job.id, 1, Outcome("drained"))
    resumed = claim(ledger)
    assert resumed.resume is None
    assert resumed.job.best is None
    assert reader.metrics(job.id) == []
    assert reader.traces(job.id) == []
    assert reader.evaluations(job.id) == []


def test_started_at_is_that_of_the_first_attempt(ledger: Ledger) -> None:
    submit(ledger)
    first = claim(ledger).job
    ledger.finish(first.id, 1, Outcome("drained"))
    second = claim(ledger).job
    assert second.started_at == first.started_at


def test_a_claim_that_finds_nothing_changes_nothing(ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    before = rows(engine)
    assert ledger.claim("worker-1", gpus_free=None, can_run=lambda _: False) is None
    assert rows(engine) == before


def test_a_running_job_is_not_claimed_before_the_sweep_though_its_lease_ran_out(ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    job = claim(ledger).job
    let_lease_run_out(engine, job.id)
    assert ledger.claim("worker-2", gpus_free=None, can_run=lambda _: True) is None
    assert ledger.sweep() == [job.id]
    assert claim(ledger, "worker-2").job.attempt == 2
