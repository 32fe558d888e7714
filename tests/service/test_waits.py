"""Why a queued job waits, as it is told."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from acmix.catalog import Catalog, Device
from acmix.errors import Reason
from service.store.database import clock, writing
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Claim, Job, Outcome, Wait, WorkerCard
from service.store.tables import abilities, jobs
from service.store.tenants import Tenants
from tests.service.work import let_run, look, submit


def card(worker_id: str, gpus: int) -> WorkerCard:
    devices = [Device(index=index, name="card", memory_bytes=2**34) for index in range(gpus)]
    return WorkerCard(worker_id, "host", gpus, devices, {}, Catalog())


@pytest.fixture
def busy(ledger: Ledger) -> Claim:
    """What a worker of four GPUs has at work: one job in three slots of it."""
    ledger.enrol(card("four", 4))
    submit(ledger, resources={"gpus": 3})
    claimed = look(ledger, "four", gpus=4)
    assert claimed is not None
    return claimed


def wait_of(reader: Reader, job: Job) -> Wait:
    return reader.waits([job.id])[job.id]


def test_what_fits_is_next(busy: Claim, ledger: Ledger, reader: Reader) -> None:
    job = submit(ledger, resources={"gpus": 1})
    wait = wait_of(reader, job)
    assert wait.code == "next"
    assert wait.estimated_start_at is not None
    assert wait.estimated_start_at <= reader.now()


def test_what_does_not_fit_waits_for_the_run_in_front(busy: Claim, ledger: Ledger, reader: Reader) -> None:
    job = submit(ledger, resources={"gpus": 2})
    wait = wait_of(reader, job)
    assert (wait.code, wait.message) == (
        "busy", "all workers that can run it are at work: 1 of the 2 slots it needs are free",
    )  # fmt: skip
    assert minutes_from_now(reader, wait.estimated_start_at) == pytest.approx(10, abs=1), "nothing is known of it yet"


def test_the_estimate_counts_in_those_before_it_and_how_long_the_tenants_jobs_take(
    busy: Claim, ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    let_run(engine, busy.job.id, seconds=3600)
    ledger.finish(busy.job.id, 1, Outcome("succeeded"))
    first, second = submit(ledger, resources={"gpus": 4}), submit(ledger, resources={"gpus": 4})
    waits = reader.waits([first.id, second.id])
    assert [waits[job.id].code for job in (first, second)] == ["next", "busy"]
    assert minutes_from_now(reader, waits[second.id].estimated_start_at) == pytest.approx(60, abs=1)


def test_what_nobody_can_run_is_told_so(busy: Claim, ledger: Ledger, reader: Reader) -> None:
    job = submit(ledger, resources={"gpus": 8})
    wait = wait_of(reader, job)
    assert (wait.code, wait.estimated_start_at) == ("no_worker", None)
    assert "8 slots of one worker" in wait.message
    unknown = submit(ledger, resources={"gpus": 1}, dataset={"name": "cifar10"})
    assert look(ledger, "four", gpus=4, free=[3], can_run=lambda *_: False) is None
    assert wait_of(reader, unknown).code == "no_worker"


def test_a_backoff_and_a_limit_are_told(busy: Claim, ledger: Ledger, reader: Reader, engine: Engine) -> None:
    limited = submit(ledger.of("lab"), resources={"gpus": 1})
    Tenants(engine).limit("lab", {"most_running": 0})
    assert wait_of(reader, limited).code == "tenant_limit"
    ledger.finish(busy.job.id, 1, Outcome("failed", Reason("disk_full", "no room", retryable=True)))
    held_back = wait_of(reader, busy.job)
    assert held_back.code == "held_back"
    assert reader.job(busy.job.id).not_before is not None


def test_a_reservation_is_told_with_its_worker(busy: Claim, ledger: Ledger, reader: Reader, engine: Engine) -> None:
    job = submit(ledger, resources={"gpus": 4})
    assert look(ledger, "four", gpus=4, free=[3]) is None
    let_be_blocked(engine, job, seconds=301)
    ledger.reserve()
    wait = wait_of(reader, job)
    assert (wait.code, wait.reserved and wait.reserved["worker"]) == ("reserved", "four")
    assert wait.message == "four keeps its slots for it as they come free, 1 of the 4 slots so far"


def test_what_a_reservation_keeps_from_others_is_told_and_when_they_would_begin(
    busy: Claim, ledger: Ledger, reader: Reader, engine: Engine
) -> None:
    large, small = submit(ledger, resources={"gpus": 4}), submit(ledger, resources={"gpus": 1}, priority=9)
    assert wait_of(reader, small).code == "next"
    let_be_blocked(engine, large, seconds=301)
    assert look(ledger, "four", gpus=4, free=[3], can_run=lambda *_: False) is None
    with writing(engine).begin() as connection:
        connection.execute(update(abilities).values(able=True))
    ledger.reserve()
    wait = wait_of(reader, small)
    assert (wait.code, wait.message) == (
        "busy", "the workers that have room for it keep it for jobs that have waited for longer",
    )  # fmt: skip
    assert wait.estimated_start_at is None, "nothing is known of how long the job takes that goes before it"
    assert minutes_from_now(reader, wait_of(reader, large).estimated_start_at) == pytest.approx(10, abs=1)
    let_run(engine, busy.job.id, seconds=3600)
    ledger.finish(busy.job.id, 1, Outcome("succeeded"))
    assert minutes_from_now(reader, wait_of(reader, small).estimated_start_at) == pytest.approx(60, abs=1)


def test_what_fits_behind_others_that_do_is_told_so(busy: Claim, ledger: Ledger, reader: Reader) -> None:
    first, second = submit(ledger, resources={"gpus": 1}), submit(ledger, resources={"gpus": 1})
    assert wait_of(reader, first).code == "next"
    assert (wait_of(reader, second).code, wait_of(reader, second).message) == (
        "busy", "jobs in front of it take the slots that are free",
    )  # fmt: skip


def test_a_worker_of_an_older_version_is_as_busy_as_it_says(ledger: Ledger, reader: Reader) -> None:
    """It writes down no holdings."""
    ledger.enrol(card("four", 4))
    ledger.seen("four", 4)
    job = submit(ledger, resources={"gpus": 1})
    wait = wait_of(reader, job)
    assert (wait.code, wait.message) == (
        "busy", "all workers that can run it are at work: 0 of the 1 slot it needs are free",
    )  # fmt: skip
    assert minutes_from_now(reader, wait.estimated_start_at) == pytest.approx(10, abs=1)


def test_slots_of_a_gpu_that_is_put_aside_count_for_nothing(busy: Claim, ledger: Ledger, reader: Reader) -> None:
    job = submit(ledger, resources={"gpus": 4})
    assert wait_of(reader, job).code == "busy"
    ledger.seen("four", 3, aside=1)
    assert wait_of(reader, job).code == "no_worker"


def test_the_queue_is_told_in_the_fair_order(busy: Claim, ledger: Ledger, reader: Reader, engine: Engine) -> None:
    """The tenant that holds three slots comes after the others' third; a page goes on behind the last."""
    Tenants(engine).limit("b", {"share": 2})
    wanted: list[Any] = []
    for tenant in ("default", "a", "a", "a", "a", "b", "b", "b"):
        wanted.append((tenant, submit(ledger.of(tenant), resources={"gpus": 1}).id))
    ids = [job_id for _, job_id in wanted]
    fair = [ids[at] for at in (1, 5, 6, 2, 7, 3, 0, 4)]
    assert [job.id for job in reader.queue().data] == fair
    first = reader.queue(limit=3)
    assert [job.id for job in first.data] == fair[:3]
    assert [job.id for job in reader.queue(after=first.next).data] == fair[3:]
    assert [job.id for job in reader.of("b").queue().data] == ids[5:]


def minutes_from_now(reader: Reader, at: datetime | None) -> float:
    assert at is not None
    return (at - reader.now()).total_seconds() / 60


def let_be_blocked(engine: Engine, job: Job, *, seconds: float) -> None:
    """As if a job had been blocked for so long already."""
    with writing(engine).begin() as connection:
        since = clock(connection) - timedelta(seconds=seconds)
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(blocked_at=since))
