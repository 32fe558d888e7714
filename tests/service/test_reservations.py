"""A job that was passed over for too long has a worker's slots kept for it."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from service.store.database import clock, writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Claim, Job, Outcome
from service.store.tables import reservations, workers
from service.store.tenants import Tenants
from tests.service.test_waits import card, let_be_blocked
from tests.service.work import look, submit


@pytest.fixture
def busy(ledger: Ledger) -> Claim:
    """What a worker of four GPUs has at work: one job in one slot of it."""
    ledger.enrol(card("four", 4))
    submit(ledger, resources={"gpus": 1})
    claimed = look(ledger, "four", gpus=4)
    assert claimed is not None
    return claimed


@pytest.fixture
def reserved(busy: Claim, ledger: Ledger, engine: Engine) -> Job:
    """A job that needs all of that worker, which is reserved for it."""
    job = submit(ledger, resources={"gpus": 4})
    assert look(ledger, "four", gpus=4) is None
    let_be_blocked(engine, job, seconds=301)
    ledger.reserve()
    assert kept(engine) == {"four": job.id}
    return job


def kept(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {row.worker: row.job for row in connection.execute(select(reservations))}


def test_what_is_passed_over_for_want_of_slots_is_blocked_from_then_on(
    busy: Claim, ledger: Ledger, reader: Reader
) -> None:
    large, other = submit(ledger, resources={"gpus": 4}), submit(ledger, resources={"gpus": 4})
    small = submit(ledger, resources={"gpus": 1}, priority=-1)
    after = submit(ledger, resources={"gpus": 4}, priority=-2)
    assert look(ledger, "unable", gpus=4, free=[3], can_run=lambda *_: False) is None
    assert reader.job(large.id).blocked_at is None, "no worker that could run it has passed it over"
    taken = look(ledger, "four", gpus=4)
    assert taken is not None
    assert taken.job.id == small.id
    since = reader.job(large.id).blocked_at
    assert since is not None
    assert reader.job(other.id).blocked_at == since
    assert look(ledger, "four", gpus=4) is None
    assert reader.job(large.id).blocked_at == since
    assert reader.job(after.id).blocked_at is None, "it was not its turn"


def test_a_job_that_has_just_been_blocked_has_nothing_kept(busy: Claim, ledger: Ledger, engine: Engine) -> None:
    job = submit(ledger, resources={"gpus": 4})
    assert look(ledger, "four", gpus=4) is None
    let_be_blocked(engine, job, seconds=290)
    ledger.reserve()
    assert kept(engine) == {}


def test_a_reserved_worker_gives_its_slots_to_nobody_else(reserved: Job, busy: Claim, ledger: Ledger) -> None:
    urgent = [submit(ledger, resources={"gpus": 1}, priority=100) for _ in range(2)]
    assert look(ledger, "four", gpus=4) is None
    elsewhere = look(ledger, "another", gpus=1)
    assert elsewhere is not None
    assert elsewhere.job.id == urgent[0].id
    ledger.finish(busy.job.id, 1, Outcome("succeeded"))
    claimed = look(ledger, "four", gpus=4)
    assert claimed is not None
    assert (claimed.job.id, claimed.slots) == (reserved.id, (0, 1, 2, 3))


def test_but_to_what_is_sure_to_end_before_the_job_could_begin(reserved: Job, ledger: Ledger) -> None:
    """A run that has told nothing is expected to last ten minutes."""
    submit(ledger, resources={"gpus": 1, "max_runtime_seconds": 700}, dataset={"name": "cifar10"})
    short = submit(ledger, resources={"gpus": 1, "max_runtime_seconds": 400})
    claimed = look(ledger, "four", gpus=4)
    assert claimed is not None
    assert claimed.job.id == short.id
    assert look(ledger, "four", gpus=4) is None


def test_another_worker_with_room_takes_the_job_at_once(reserved: Job, ledger: Ledger, engine: Engine) -> None:
    urgent = submit(ledger.of("another"), resources={"gpus": 1}, priority=100)
    claimed = [look(ledger, worker, gpus=4) for worker in ("other", "other")]
    assert [found and found.job.id for found in claimed] == [urgent.id, None], "it has one slot less"
    third = look(ledger, "third", gpus=4)
    assert third is not None
    assert third.job.id == reserved.id
    assert kept(engine) == {}


@pytest.mark.parametrize("way", ["cancelled", "paused", "left", "lost", "drains", "a GPU put aside", "exhausted"])
def test_a_reservation_lapses_with_its_reason(way: str, reserved: Job, ledger: Ledger, engine: Engine) -> None:
    def set_workers(**values: Any) -> None:
        with writing(engine).begin() as connection:
            connection.execute(update(workers).values(**values))

    if way == "cancelled":
        ledger.request_cancel(reserved.id)
    elif way == "paused":
        ledger.request_pause(reserved.id)
    elif way == "left":
        ledger.leave("four")
    elif way == "lost":
        set_workers(seen_at=reserved.created_at.replace(year=2020))
    elif way == "drains":
        set_workers(draining="finish")
    elif way == "a GPU put aside":
        ledger.seen("four", 1, aside=1)
    else:
        Tenants(engine).limit("default", {"most_running": 0})
    ledger.reserve()
    assert kept(engine) == {}


def test_the_worker_is_reserved_where_enough_slots_come_free_soonest(
    busy: Claim, ledger: Ledger, engine: Engine
) -> None:
    """Of a run that may take no longer than a minute it is known that its slot is free then."""
    ledger.enrol(card("quick", 4))
    submit(ledger, resources={"gpus": 1, "max_runtime_seconds": 60})
    assert look(ledger, "quick", gpus=4) is not None
    job = submit(ledger, resources={"gpus": 4})
    assert [look(ledger, worker, gpus=4) for worker in ("four", "quick")] == [None, None]
    let_be_blocked(engine, job, seconds=301)
    ledger.reserve()
    assert kept(engine) == {"quick": job.id}


def test_no_worker_is_reserved_that_has_too_few_gpus_left_of_use(busy: Claim, ledger: Ledger, engine: Engine) -> None:
    """It would keep its others idle for good."""
    job = submit(ledger, resources={"gpus": 4})
    assert look(ledger, "four", gpus=4) is None
    ledger.seen("four", 1, aside=1)
    let_be_blocked(engine, job, seconds=301)
    ledger.reserve()
    assert kept(engine) == {}
    ledger.seen("four", 1, aside=0)
    ledger.reserve()
    assert kept(engine) == {"four": job.id}


def test_a_reservation_goes_by_what_the_runs_in_front_tell_now(
    reserved: Job, busy: Claim, ledger: Ledger, engine: Engine
) -> None:
    """One that seemed to take ten days and takes ten minutes: what lasts for days must not begin there meanwhile."""
    ten_days = 864_000
    with writing(engine).begin() as connection:
        late = clock(connection) + timedelta(seconds=ten_days)
        connection.execute(update(reservations).values(expected_at=late))
    submit(ledger, resources={"gpus": 1, "max_runtime_seconds": ten_days - 1000})
    ledger.reserve()
    assert look(ledger, "four", gpus=4) is None
    ledger.finish(busy.job.id, 1, Outcome("succeeded"))
    claimed = look(ledger, "four", gpus=4)
    assert claimed is not None
    assert claimed.job.id == reserved.id


def test_however_many_wait_for_a_worker_that_has_gone_one_that_is_there_is_reserved(
    busy: Claim, ledger: Ledger, engine: Engine
) -> None:
    ledger.enrol(card("eight", 8))
    for _ in range(101):
        let_be_blocked(engine, submit(ledger, resources={"gpus": 8}), seconds=5000)
    job = submit(ledger, resources={"gpus": 4}, priority=9)
    assert look(ledger, "four", gpus=4) is None
    let_be_blocked(engine, job, seconds=301)
    ledger.leave("eight")
    ledger.reserve()
    assert kept(engine) == {"four": job.id}


def test_however_many_are_passed_over_the_first_are_noted_first(
    busy: Claim, ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    passed = [submit(ledger, resources={"gpus": 4}) for _ in range(130)]
    for _ in range(2):
        submit(ledger, resources={"gpus": 1})

    def noted() -> list[int]:
        return [number for number, job in enumerate(passed) if reader.job(job.id).blocked_at is not None]

    assert look(ledger, "four", gpus=4, free=[1]) is not None
    assert noted() == list(range(100))
    assert look(ledger, "four", gpus=4, free=[2]) is not None
    assert noted() == list(range(130))


def test_what_was_drained_and_comes_back_before_what_is_noted_is_noted_too(
    ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    ledger.enrol(card("four", 4))
    first, second, third = (submit(ledger, resources={"gpus": 4}) for _ in range(3))
    for worker in ("a", "b"):
        assert look(ledger, worker, gpus=4) is not None
    submit(ledger, resources={"gpus": 1})
    assert look(ledger, "four", gpus=4, free=[0]) is not None
    assert reader.job(third.id).blocked_at is not None
    for drained in (first, second):
        ledger.finish(drained.id, 1, Outcome("drained"))
    submit(ledger, resources={"gpus": 1})
    assert look(ledger, "four", gpus=4, free=[1]) is not None
    assert all(reader.job(job.id).blocked_at for job in (first, second, third))


def test_a_sweep_reserves_as_well(busy: Claim, ledger: Ledger, engine: Engine) -> None:
    job = submit(ledger, resources={"gpus": 4})
    assert look(ledger, "four", gpus=4) is None
    let_be_blocked(engine, job, seconds=301)
    ledger.sweep()
    assert kept(engine) == {"four": job.id}
