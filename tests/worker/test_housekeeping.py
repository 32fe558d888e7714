"""What runs once beside all workers: leases that ran out, jobs long queued, files that nobody names."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine, update

from acmix import manifest
from service.store.backend import Backend
from service.store.database import clock
from service.store.ids import new_id
from service.store.rows import Job, Outcome
from service.store.tables import jobs
from tests.service.work import at_once, claim, let_lease_run_out, save, submit, until
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
    artifacts = backend.settings.data_folder / "artifacts"
    artifacts.rename(artifacts.with_name("away"))
    artifacts.write_text("a file where the folder should be")
    let_lease_run_out(backend.engine, held.id)
    let_lease_run_out(backend.engine, lost.id)

    def is_noticed() -> bool:
        backend.ledger.heartbeat(held.id, held.attempt)
        housekeeper.ring()
        return "the database or the store does not answer" in caplog.text

    until(is_noticed)
    artifacts.unlink()
    artifacts.with_name("away").rename(artifacts)
    let_lease_run_out(backend.engine, held.id)

    def is_queued() -> bool:
        backend.ledger.heartbeat(held.id, held.attempt)
        return backend.reader.job(lost.id).status == "queued"

    until(is_queued)
    assert (backend.reader.job(held.id).status, backend.reader.job(held.id).losses) == ("running", 0)


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


def test_files_of_deleted_jobs_go_and_those_of_others_stay(
    backend: Backend, housekeeper: Housekeeper, tmp_path: Path
) -> None:
    deleted, ended, held = running(backend), running(backend), running(backend)
    for job in (deleted, ended, held):
        save(backend.ledger, job, 10, key=stored(backend, job, tmp_path))
        stored(backend, job, tmp_path)  # an attempt was lost before it could commit this one
    for job in (deleted, ended):
        backend.ledger.finish(job.id, job.attempt, Outcome("succeeded"))
    backend.ledger.delete(deleted.id)
    housekeeper.look()
    assert backend.artifacts.prefixes("jobs") == sorted(f"jobs/{job.id}" for job in (ended, held))
    [kept] = backend.reader.checkpoints(ended.id)
    assert backend.artifacts.prefixes(f"jobs/{ended.id}/checkpoints") == [kept.key]
    assert len(backend.artifacts.prefixes(f"jobs/{held.id}/checkpoints")) == 2


@on_sqlite
def test_a_ring_makes_it_clean_at_once(backend: Backend, housekeeper: Housekeeper, tmp_path: Path) -> None:
    housekeeper.start()
    job = running(backend)
    housekeeper.look()
    stored(backend, job, tmp_path)
    backend.ledger.finish(job.id, job.attempt, Outcome("succeeded"))
    housekeeper.ring()
    until(lambda: backend.artifacts.prefixes(f"jobs/{job.id}/checkpoints") == [])


def test_two_housekeepers_at_once_do_no_harm(backend: Backend, tmp_path: Path) -> None:
    lost = [running(backend) for _ in range(10)]
    gone = [running(backend) for _ in range(10)]
    for job in gone:
        stored(backend, job, tmp_path)
        backend.ledger.finish(job.id, job.attempt, Outcome("succeeded"))
        backend.ledger.delete(job.id)
    for job in lost:
        let_lease_run_out(backend.engine, job.id)
    at_once(*[Housekeeper(backend).look for _ in range(4)])
    after = [backend.reader.job(job.id) for job in lost]
    assert [(job.status, job.losses) for job in after] == [("queued", 1)] * 10
    assert rings(backend) == 10
    assert backend.artifacts.prefixes("jobs") == []


def running(backend: Backend) -> Job:
    submit(backend.ledger)
    return claim(backend.ledger).job


def stored(backend: Backend, job: Job, tmp_path: Path) -> str:
    """Put the files of a checkpoint, and no row; returns its key."""
    folder = tmp_path / new_id("folder")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    manifest.write(folder, ["model.safetensors"])
    key = f"jobs/{job.id}/checkpoints/{new_id('ckpt')}"
    backend.artifacts.put_folder(key, folder)
    return key


def let_wait(engine: Engine, job: Job, *, seconds: float) -> None:
    """Set back when it was queued, as if so much time had passed."""
    with engine.execution_options(writes=True).begin() as connection:
        queued_at = clock(connection) - timedelta(seconds=seconds)
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(queued_at=queued_at))


def rings(backend: Backend) -> int:
    """How many messages for workers wait in the broker."""
    with Redis(unix_socket_path=backend.settings.broker_url.removeprefix("redis+socket://")) as client:
        return int(client.llen("train"))
