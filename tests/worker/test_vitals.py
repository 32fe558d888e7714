"""What worker and housekeeper count of what they do."""

import math
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from service import settings
from service.launcher import free_port
from service.store.backend import Backend
from service.store.vitals import REGISTRY
from tests.scrapes import Counted, Scrape, of
from tests.service.work import claim, let_lease_run_out, let_wait, submit, until
from tests.worker.runs import Attempts
from worker import vitals
from worker.housekeeping import Housekeeper

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
StandIn = Callable[[str], None]


@pytest.fixture
def counted() -> Counted:
    return Counted()


@on_sqlite
def test_an_attempt_is_counted_with_its_steps_its_events_and_what_it_stored(
    backend: Backend, attempts: Attempts, stand_in: StandIn, counted: Counted
) -> None:
    stand_in(
        """
        tell("metrics", epoch=1, step=[1, 2, 3], values={"train/loss": [0.5, 0.4, 0.3]})
        tell("progress", phase="training", samples_per_second=320.0)
        tell("metrics", epoch=1, step=[3], values={"val/loss": [0.3]})
        save(3)
        tell("status", status="succeeded")
        """
    )
    job = submit(backend.ledger, training={"batch_size": 32})
    let_wait(backend.engine, job.id, minutes=2)
    attempts.see_through(claim(backend.ledger))
    which = {"kind": "train", "task": "classification"}
    assert counted("acmix_attempts_started_total", kind="train") == 1
    assert counted("acmix_attempts_ended_total", outcome="succeeded", reason="none") == 1
    assert counted("acmix_jobs_ended_total", status="succeeded") == 1
    assert 119 < counted("acmix_job_start_delay_seconds_sum") < 150
    assert (counted("acmix_steps_total", **which), counted("acmix_samples_total", **which)) == (3, 96)
    assert counted("acmix_step_seconds_sum", **which) == pytest.approx(0.1)
    recorded = {
        kind: counted("acmix_events_recorded_total", type=kind) for kind in ("metrics", "progress", "checkpoint")
    }
    assert recorded == {"metrics": 2, "progress": 1, "checkpoint": 1}
    assert counted("acmix_record_seconds_count") >= 1
    assert counted("acmix_provision_seconds_count") == 1
    assert counted("acmix_checkpoint_store_seconds_count") == 1
    assert counted("acmix_checkpoint_stored_bytes_total") > 7
    assert counted("acmix_lease_renewals_total", result="ok") >= 1
    assert counted("acmix_lease_renewal_seconds_count") == counted("acmix_lease_renewals_total", result="ok")
    assert (counted("acmix_attempts_running"), counted("acmix_events_unrecorded")) == (0, 0)


@on_sqlite
def test_a_failed_attempt_is_counted_by_its_reason(
    backend: Backend, attempts: Attempts, stand_in: StandIn, counted: Counted
) -> None:
    reason = {"code": "diverged", "message": "the loss is nan", "blame": "user", "retryable": False}
    stand_in(f"tell('status', status='failed', reason={reason})")
    submit(backend.ledger)
    attempts.see_through(claim(backend.ledger))
    assert counted("acmix_attempts_ended_total", outcome="failed", reason="diverged") == 1


@on_sqlite
def test_an_attempt_that_was_given_to_another_is_counted_as_fenced(
    backend: Backend, attempts: Attempts, stand_in: StandIn, counted: Counted
) -> None:
    stand_in("tell('progress', phase='training')\nsleep()")
    job = submit(backend.ledger)
    zombie = attempts.begin(claim(backend.ledger))
    until(lambda: backend.reader.job(job.id).phase == "training")
    assert counted("acmix_attempts_running") == 1
    let_lease_run_out(backend.engine, job.id)
    backend.ledger.sweep()
    zombie.result(10)
    assert counted("acmix_leases_lost_total") == 1
    assert counted("acmix_attempts_ended_total", outcome="fenced") == 1


@on_sqlite
def test_events_wait_unrecorded_while_the_database_is_away(
    backend: Backend, attempts: Attempts, stand_in: StandIn, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("for _ in range(5):\n    tell('progress', phase='training')\nwait_for('go_on')\n")

    def away(*_: object, **__: object) -> None:
        raise OperationalError("", {}, Exception("away"))

    with monkeypatch.context() as patch:
        for write in ("record", "heartbeat"):
            patch.setattr(backend.ledger, write, away)
        submit(backend.ledger)
        attempts.begin(claim(backend.ledger))
        until(lambda: counted("acmix_events_unrecorded") == 5)
        until(lambda: counted("acmix_lease_renewals_total", result="failed") > 0)
    until(lambda: counted("acmix_events_unrecorded") == 0)
    assert counted("acmix_events_recorded_total", type="progress") == 5


@on_sqlite
def test_a_housekeepers_rounds_tell_when_the_last_one_was(
    backend: Backend, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(backend.ledger)
    claim(backend.ledger)
    let_lease_run_out(backend.engine, job.id)
    housekeeper = Housekeeper(backend)
    housekeeper.helpers = ()
    housekeeper.start()
    try:
        until(lambda: counted("acmix_jobs_swept_total") == 1)
        until(lambda: counted("acmix_housekeeping_rounds_total", result="ok") > 2)
        seen = of(REGISTRY)("acmix_housekeeping_last_round_timestamp_seconds")
        until(lambda: of(REGISTRY)("acmix_housekeeping_last_round_timestamp_seconds") > seen)
        assert counted("acmix_nudges_total", queue="train", result="sent") >= 1
    finally:
        housekeeper.drain()
        housekeeper.stop()


def test_vitals_are_told_on_a_port_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    given = settings.load({"ACMIX_DATA": str(tmp_path / "data"), "METRICS_PORT": str(port)})
    vitals.serve(given)
    found = Scrape(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    assert 0 < found("acmix_disk_free_bytes") < found("acmix_disk_size_bytes")
    assert found("process_cpu_seconds_total") > 0
    (tmp_path / "data").rmdir()
    found = Scrape(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    assert math.isnan(found("acmix_disk_free_bytes")), "and the others are told"
    assert found("process_cpu_seconds_total") > 0
    assert not any(name.endswith("_created") for name in found.names)


def test_work_goes_on_where_the_port_cannot_be_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        given = settings.load({"ACMIX_DATA": str(tmp_path)})
        vitals.serve(replace(given, metrics_port=port))
    assert f"METRICS_PORT {port} of 127.0.0.1 cannot be had" in caplog.text
    with suppress(httpx.TransportError):
        raise AssertionError(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
