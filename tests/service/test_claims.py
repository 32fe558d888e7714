import json
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import IntegrityError

from acmix.catalog import Catalog
from acmix.fleet import Demand, demand_of
from service.store.database import writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Outcome, WorkerCard
from service.store.tables import demands, holdings, jobs, workers
from service.store.tenants import Tenants
from tests.service.work import (
    at_once,
    claim,
    evaluation,
    let_lease_run_out,
    let_run,
    let_wait,
    look,
    metrics,
    rows,
    save,
    submit,
    trace,
)

STRANGE = {"dataset": {"name": "cifar10"}}


def knows(demand: Demand, _resolved_spec: dict[str, Any]) -> bool:
    """Whatever is not STRANGE."""
    return demand.names["datasets"] == ("digits",)


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
    assert look(ledger, gpus=1) is None


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
    claimed = [look(ledger, "cpu"), *(look(ledger, "gpus", gpus=2, free=free) for free in ([1], [0], [0, 1]))]
    assert [found and found.job.id for found in claimed] == [auto.id, none.id, None, None]
    ledger.finish(none.id, 1, Outcome("succeeded"))
    taken = look(ledger, "gpus", gpus=2)
    assert taken is not None
    assert (taken.job.id, taken.slots) == (large.id, (0, 1))


@pytest.mark.parametrize(
    ("asked", "gpus", "granted", "slots"),
    [("auto", 2, 1, (0,)), ("auto", 0, 0, (0,)), (0, 4, 0, (0,)), (2, 4, 2, (0, 1))],
)
def test_the_claim_settles_how_many_gpus_a_job_gets_and_in_which_slots(
    asked: int | str, gpus: int, granted: int, slots: tuple[int, ...], ledger: Ledger
) -> None:
    job = submit(ledger, resources={"gpus": asked})
    claimed = look(ledger, gpus=gpus, free=range(max(1, gpus)))
    assert claimed is not None
    assert claimed.slots == slots
    assert claimed.job.resolved_spec == {
        **job.resolved_spec,
        "resources": {**job.resolved_spec["resources"], "gpus": granted},
    }
    assert claimed.job.gpus == job.gpus


def test_what_a_worker_cannot_run_is_passed_over_however_much_of_it_there_is(ledger: Ledger) -> None:
    for _ in range(101):
        submit(ledger, **STRANGE, priority=1)
    fitting = submit(ledger)
    claimed = look(ledger, can_run=knows)
    assert claimed is not None
    assert claimed.job.id == fitting.id
    assert look(ledger, can_run=knows) is None


def test_a_worker_is_asked_once_for_each_demand_and_anew_after_its_start(ledger: Ledger) -> None:
    asked: list[str] = []

    def can_run(demand: Demand, resolved_spec: dict[str, Any]) -> bool:
        assert demand == demand_of(resolved_spec)
        asked.append(demand.id)
        return knows(demand, resolved_spec)

    for name in ("one", "two"):
        submit(ledger, **STRANGE, name=name)
        submit(ledger.of("another"), name=name)
    assert [found and found.job.name for found in (look(ledger, can_run=can_run) for _ in range(3))] == [
        "one", "two", None,
    ]  # fmt: skip
    assert len(asked) == len(set(asked)) == 2
    ledger.enrol(WorkerCard("worker-1", "node-a", 1, [], {}, Catalog()))
    look(ledger, can_run=can_run)
    assert len(asked) == 3, "one demand is left in the queue"


def test_no_slot_is_given_twice(ledger: Ledger, engine: Engine) -> None:
    for _ in range(3):
        submit(ledger, resources={"gpus": 1})
    first = look(ledger, gpus=2)
    assert first is not None
    assert first.slots == (0,)
    assert look(ledger, gpus=2, free=[0]) is None, "the worker is wrong to say that it is free"
    second = look(ledger, gpus=2, free=[0, 1])
    assert second is not None
    assert second.slots == (1,)
    let_lease_run_out(engine, first.job.id)
    ledger.sweep()
    third = look(ledger, gpus=2, free=[0])
    assert third is not None
    assert (third.job.id, third.slots) == (first.job.id, (0,))


def test_who_holds_the_least_is_served_first_then_whose_turn_it_is(ledger: Ledger, engine: Engine) -> None:
    for tenant in ("a", "a", "a", "b", "b"):
        submit(ledger.of(tenant), resources={"gpus": 1})
    submit(ledger.of("c"), resources={"gpus": 1}, priority=-9)
    claims = [look(ledger, gpus=8) for _ in range(6)]
    assert [found and found.job.tenant for found in claims] == ["a", "b", "c", "a", "b", "a"]


def test_a_tenant_with_a_larger_share_gets_more(ledger: Ledger, engine: Engine) -> None:
    Tenants(engine).limit("b", {"share": 3})
    for tenant in ("a", "b"):
        for _ in range(6):
            submit(ledger.of(tenant), resources={"gpus": 1})
    claims = [look(ledger, gpus=8) for _ in range(8)]
    assert [found and found.job.tenant for found in claims] == list("abbbabbb")


def test_a_share_of_nothing_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="share=0 of tenant b will not do; a number above 0 would"):
        Tenants(engine).limit("b", {"share": 0})


def test_many_tenants_without_a_fitting_job_hide_none_of_one_that_has(ledger: Ledger) -> None:
    for number in range(40):
        submit(ledger.of(f"large-{number}"), resources={"gpus": 8})
    small = submit(ledger.of("small"), resources={"gpus": 1})
    claimed = look(ledger, gpus=8, free=[3])
    assert claimed is not None
    assert (claimed.job.id, claimed.slots) == (small.id, (3,))


def test_a_worker_that_drains_is_given_nothing(ledger: Ledger, engine: Engine) -> None:
    ledger.enrol(WorkerCard("worker-1", "node-a", 1, [], {}, Catalog()))
    submit(ledger)
    with writing(engine).begin() as connection:
        connection.execute(update(workers).values(draining="finish"))
    assert look(ledger) is None
    assert look(ledger, "worker-2") is not None


def test_a_drain_while_the_worker_enrols_again_holds(ledger: Ledger, reader: Reader) -> None:
    """Its row is written anew, but for what is ordered of it."""
    known = WorkerCard("worker-1", "node-a", 1, [], {}, Catalog())
    ledger.enrol(known)
    for _ in range(20):
        at_once(lambda: ledger.enrol(known), lambda: ledger.drain("worker-1", "requeue"))
        assert reader.worker("worker-1").draining == "requeue"
        ledger.take_back("worker-1")
        assert reader.worker("worker-1").draining is None


def test_what_an_older_version_left_held_is_given_back_by_a_sweep(ledger: Ledger, engine: Engine) -> None:
    """It ended the attempt and knew of no holdings; its worker has gone, and asks for that slot no more."""
    gone, kept = submit(ledger), submit(ledger)
    assert look(ledger, "gone", gpus=1) is not None
    assert look(ledger, "there", gpus=1) is not None
    with writing(engine).begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == gone.id).values(status="queued"))
    ledger.sweep()
    with engine.connect() as connection:
        assert connection.execute(select(holdings.c.worker, holdings.c.job)).all() == [("there", kept.id)]


def test_jobs_of_an_older_version_say_what_they_demand_once_a_worker_looks(ledger: Ledger, engine: Engine) -> None:
    large, small = submit(ledger, resources={"gpus": 2}), submit(ledger, resources={"gpus": 1})
    with writing(engine).begin() as connection:
        connection.execute(update(jobs).values(demand=None, slots=None))
        connection.execute(delete(demands))
    claimed = [look(ledger, gpus=2, free=free) for free in ([0], [0, 1])]
    assert [found and (found.job.id, found.slots) for found in claimed] == [(small.id, (0,)), None]
    ledger.finish(small.id, 1, Outcome("succeeded"))
    found = look(ledger, gpus=2)
    assert found is not None
    assert (found.job.id, found.slots) == (large.id, (0, 1))
    with engine.connect() as connection:
        kept = connection.execute(select(demands)).mappings().all()
    asked = {demand.id: demand.as_json() for demand in (demand_of(job.resolved_spec) for job in (large, small))}
    assert {row["id"]: row["demand"] for row in kept} == json.loads(json.dumps(asked))


def test_a_job_of_any_kind_of_worker_that_began_on_a_gpu_goes_on_where_there_is_none(
    ledger: Ledger, engine: Engine
) -> None:
    """Its spec says for now what it had there; it asks for what it asked for, and so do others like it."""
    begun = submit(ledger)
    assert look(ledger, "with-gpu", gpus=1) is not None
    ledger.finish(begun.id, 1, Outcome("drained"))
    found = look(ledger, "cpu-alone", gpus=0)
    assert found is not None
    assert (found.job.id, found.job.attempt, found.job.resolved_spec["resources"]["gpus"]) == (begun.id, 2, 0)
    ledger.finish(begun.id, 2, Outcome("drained"))
    with writing(engine).begin() as connection:  # as an older version would have left it
        connection.execute(update(jobs).values(demand=None, slots=None))
    assert look(ledger, "with-gpu-too", gpus=1) is not None
    ledger.finish(begun.id, 3, Outcome("drained"))
    assert look(ledger, "cpu-too", gpus=0) is not None


@pytest.mark.parametrize("seed", range(6))
def test_the_next_job_is_the_first_of_all_that_fit_whatever_the_queue(
    seed: int, ledger: Ledger, engine: Engine
) -> None:
    """The witness goes through all that are queued, tenant by tenant; the claim looks at lanes."""
    random = Random(seed)
    names, gpus = ("a", "b", "c", "d"), random.choice([0, 1, 2])
    submitted = []
    for _ in range(40):
        wishes = {"resources": {"gpus": random.choice(["auto", 0, 1, 2, 8])}, "priority": random.choice([0, 0, 1, 9])}
        whose = ledger.of(random.choice(names))
        submitted.append(submit(whose, **random.choice([{}, STRANGE]), **wishes))
    queue = sorted(submitted, key=lambda job: (job.turn_at, job.id))
    Tenants(engine).limit("a", {"most_running": 0})
    held_back = {job.id for job in queue if random.random() < 0.3}
    with writing(engine).begin() as connection:
        later = queue[0].created_at.replace(year=2100)
        connection.execute(update(jobs).where(jobs.c.id.in_(held_back)).values(not_before=later))
    due = [job for job in queue if job.tenant != "a" and job.id not in held_back]
    held: Counter[str] = Counter()
    while True:
        first = {job.tenant: job.turn_at for job in reversed(queue)}
        fitting = [job for job in due if job.resolved_spec["dataset"]["name"] == "digits" and (job.gpus or 0) <= gpus]
        order = sorted(fitting, key=lambda job: (held[job.tenant], first[job.tenant], job.tenant))
        found = look(ledger, "worker", gpus=gpus, free=range(100, 200) if gpus else None, can_run=knows)
        assert (found and found.job.id) == (order[0].id if order else None)
        if found is None:
            return
        due.remove(order[0])
        queue.remove(order[0])
        held[found.job.tenant] += len(found.slots)


def test_fifty_jobs_claimed_by_eight_threads_are_claimed_once_each(ledger: Ledger, reader: Reader) -> None:
    submitted = {submit(ledger).id for _ in range(50)}

    def work() -> list[str]:
        claimed = []
        while found := look(ledger, "worker"):
            claimed.append(found.job.id)
        return claimed

    claimed = [job_id for several in at_once(*[work] * 8) for job_id in several]
    assert len(claimed) == 50
    assert set(claimed) == submitted
    assert {job.attempt for job in reader.jobs(limit=100).data} == {1}


def test_slots_that_are_offered_several_times_at_once_are_given_once(ledger: Ledger, reader: Reader) -> None:
    for gpus in (1, 2, 1, 3, 1, 2, 1, 1):
        submit(ledger, resources={"gpus": gpus})

    def work() -> list[tuple[str, int]]:
        """On PostgreSQL the key of holdings refuses all of a claim that came too late; a worker looks again."""
        given = []
        while True:
            with suppress(IntegrityError):
                if not (found := look(ledger, "worker", gpus=8)):
                    return given
                given += [(found.job.id, slot) for slot in found.slots]

    given = [each for several in at_once(*[work] * 4) for each in several]
    assert sorted(slot for _, slot in given) == list(range(8))
    running = {job.id for job in reader.jobs(limit=100, status="running").data}
    assert {job_id for job_id, _ in given} == running


def test_cancel_and_claim_at_once_leave_one_of_two_outcomes(ledger: Ledger, reader: Reader) -> None:
    for _ in range(10):
        job = submit(ledger)
        at_once(
            lambda job=job: ledger.request_cancel(job.id),  # type: ignore[misc]  # its default binds
            lambda: look(ledger, "worker"),
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
    submit(ledger, **STRANGE)
    assert look(ledger, can_run=knows) is None, "its verdict is kept"
    before = rows(engine)
    assert look(ledger, can_run=knows) is None
    assert rows(engine) == before


def test_a_running_job_is_not_claimed_before_the_sweep_though_its_lease_ran_out(ledger: Ledger, engine: Engine) -> None:
    submit(ledger)
    job = claim(ledger).job
    let_lease_run_out(engine, job.id)
    assert look(ledger, "worker-2") is None
    assert ledger.sweep() == [job.id]
    assert claim(ledger, "worker-2").job.attempt == 2
