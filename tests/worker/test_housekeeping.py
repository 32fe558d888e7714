"""What runs once beside all workers: leases that ran out, jobs long queued, files that nobody names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import OperationalError

from service.store.backend import Backend
from service.store.database import clock
from service.store.pruning import Pruning
from service.store.rows import Job, Outcome
from service.store.tables import jobs
from tests.service.work import at_once, claim, let_lease_run_out, metrics, submit, until
from tests.worker.housekeepers import housekeeping
from worker.housekeeping import Housekeeper

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def housekeeper(backend: Backend) -> Iterator[Housekeeper]:
    housekeeper = Housekeeper(backend)
    yield housekeeper
    housekeeper.drain()
    housekeeper.stop()


def test_a_job_whose_lease_ran_out_is_queued_again_and_rung_for(backend: Backend, housekeeper: Housekeeper) -> None:
    lost, held = running(backend), running(backend)
    let_lease_run_out(backend.engine, lost.id)
    housekeeper.look()
    after = backend.reader.job(lost.id)
    assert (after.status, after.losses, after.not_before) == ("queued", 1, None)
    assert backend.reader.job(held.id).status == "running"
    assert rings(backend) == 1


@on_sqlite
def test_what_old_jobs_said_is_pruned_batch_by_batch_in_its_rounds(backend: Backend) -> None:
    ended = running(backend)
    backend.ledger.record(ended.id, ended.attempt, [metrics(1, 2)])
    backend.ledger.finish(ended.id, ended.attempt, Outcome("succeeded"))
    pruner = Pruning(backend.engine, keep_events_days=0, keep_series_days=0)
    housekeeper = Housekeeper(replace(backend, pruning=pruner))
    rounds = 0
    while backend.reader.job(ended.id).series_pruned_at is None:
        housekeeper.look()
        rounds += 1
    assert rounds == 4  # the events, that there are no more, the points, and that
    assert backend.reader.metrics(ended.id) == []
    assert {event.type for event in backend.reader.events(ended.id)} == {"status"}


@on_sqlite
def test_a_short_lease_is_swept_however_long_the_rounds_are_apart(backend: Backend) -> None:
    settings = replace(backend.settings, sweep_seconds=3600, lease_seconds=1)
    lost = running(backend)
    let_lease_run_out(backend.engine, lost.id)
    with housekeeping(replace(backend, settings=settings)):
        until(lambda: backend.reader.job(lost.id).status == "queued")


@on_sqlite
def test_the_living_are_spared_for_a_lease_after_a_start(backend: Backend, housekeeper: Housekeeper) -> None:
    """Of two jobs with leases run out, the one whose worker comes back with the housekeeper stays with it."""
    lost, held = running(backend), running(backend)
    let_lease_run_out(backend.engine, lost.id)
    let_lease_run_out(backend.engine, held.id)
    housekeeper.start()
    housekeeper.look()
    assert backend.reader.job(lost.id).status == "running"

    def is_queued() -> bool:
        backend.ledger.heartbeat(held.id, held.attempt)
        return backend.reader.job(lost.id).status == "queued"

    until(is_queued)
    assert (backend.reader.job(held.id).status, backend.reader.job(held.id).losses) == ("running", 0)


@on_sqlite
def test_the_living_are_spared_after_an_outage_too(
    backend: Backend, housekeeper: Housekeeper, caplog: pytest.LogCaptureFixture
) -> None:
    housekeeper.start()
    lost, held = running(backend), running(backend)
    rename(backend, "jobs", "jobs_away")

    def is_noticed() -> bool:
        housekeeper.ring()
        return "the database does not answer" in caplog.text

    until(is_noticed)
    rename(backend, "jobs_away", "jobs")
    let_lease_run_out(backend.engine, held.id)
    let_lease_run_out(backend.engine, lost.id)

    def is_queued() -> bool:
        backend.ledger.heartbeat(held.id, held.attempt)
        return backend.reader.job(lost.id).status == "queued"

    until(is_queued)
    assert (backend.reader.job(held.id).status, backend.reader.job(held.id).losses) == ("running", 0)


@on_sqlite
def test_an_outage_is_seen_at_every_look_and_the_living_are_spared_from_its_end_on(
    backend: Backend, housekeeper: Housekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the database could come back just before the sweep that was put off since an earlier look."""
    with pytest.raises(OperationalError), away(backend):
        housekeeper.look()
    housekeeper._spare_the_living()  # as its loop does
    monkeypatch.setattr("worker.housekeeping.time.monotonic", lambda: housekeeper._sweep_from - 0.1)
    with pytest.raises(OperationalError), away(backend):
        housekeeper.look()


@on_sqlite
def test_the_living_are_spared_where_all_stood_still_for_the_time_of_a_lease(
    backend: Backend, housekeeper: Housekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = running(backend)
    housekeeper.look()
    let_lease_run_out(backend.engine, lost.id)
    now = backend.reader.now()
    monkeypatch.setattr(housekeeper.reader, "now", lambda: now + timedelta(seconds=backend.settings.lease_seconds))
    housekeeper.look()
    assert backend.reader.job(lost.id).status == "running"


@on_sqlite
def test_a_job_long_queued_is_rung_for_again_but_not_at_every_look(backend: Backend, housekeeper: Housekeeper) -> None:
    submit(backend.ledger)
    housekeeper.look()
    assert rings(backend) == 0
    let_wait(backend.engine, submit(backend.ledger), seconds=60)
    again = Housekeeper(backend)
    again.look()
    again.look()
    assert rings(backend) == 1


def test_two_housekeepers_at_once_do_no_harm(backend: Backend) -> None:
    lost = [running(backend) for _ in range(10)]
    for job in lost:
        let_lease_run_out(backend.engine, job.id)
    at_once(*[Housekeeper(backend).look for _ in range(4)])
    after = [backend.reader.job(job.id) for job in lost]
    assert [(job.status, job.losses) for job in after] == [("queued", 1)] * 10
    assert rings(backend) == 10


@contextmanager
def away(backend: Backend) -> Iterator[None]:
    """The file of the database is none."""
    file = Path(str(backend.engine.url.database))
    aside = file.rename(file.with_suffix(".aside"))
    backend.engine.dispose()
    file.mkdir()
    try:
        yield
    finally:
        file.rmdir()
        aside.rename(file)
        backend.engine.dispose()


def rename(backend: Backend, table: str, to: str) -> None:
    """Without its table every query is refused, as by a database that is away."""
    with backend.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {to}"))


def running(backend: Backend) -> Job:
    submit(backend.ledger)
    return claim(backend.ledger).job


def let_wait(engine: Engine, job: Job, *, seconds: float) -> None:
    """Set back when it was queued, as if so much time had passed."""
    with engine.execution_options(writes=True).begin() as connection:
        queued_at = clock(connection) - timedelta(seconds=seconds)
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(queued_at=queued_at))


def rings(backend: Backend) -> int:
    """How many messages for workers wait in the broker."""
    with Redis(unix_socket_path=backend.settings.broker_url.removeprefix("redis+socket://")) as client:
        return int(client.llen("train"))
