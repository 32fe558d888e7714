"""What Prometheus is told of the service, and who may ask."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text, update

from acmix.errors import Reason
from service import vitals
from service.launcher import free_port
from service.store.database import clock, writing
from service.store.rows import Outcome
from service.store.tables import workers
from tests.scrapes import Scrape
from tests.service.deployed import Deployed, deployed, served
from tests.service.test_access import bearer, key_for
from tests.service.work import claim, let_wait, look, submit, until

TOKEN = "a token of more than sixteen".replace(" ", "-")
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def scrape(api: Deployed, **headers: str) -> Scrape:
    api.app.state.counted._taken_at = float("-inf")  # as if the last one had been long ago
    response = api.http.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(response.text)


# Requests


@on_sqlite
def test_requests_are_counted_by_the_template_of_their_path_and_never_by_the_path(api: Deployed) -> None:
    route = {"method": "GET", "route": "/v1/jobs/{job_id}"}
    before = scrape(api)
    for last in "ABC":
        api.http.get(f"/v1/jobs/job_01J9ZK6Q5W8Y3T4V7XB2D0M1N{last}")
    api.http.get("/v1/nowhere/at/all")
    api.http.request("FROB", "/v1/jobs/job_01J9ZK6Q5W8Y3T4V7XB2D0M1NA")
    after = scrape(api)
    requests = "acmix_http_requests_total"
    assert after(requests, **route, status="404") - before(requests, **route, status="404") == 3
    seconds = "acmix_http_request_seconds"
    assert after(f"{seconds}_count", **route) - before(f"{seconds}_count", **route) == 3
    assert after(f"{seconds}_bucket", **route, le="+Inf") - before(f"{seconds}_bucket", **route, le="+Inf") == 3
    assert after(requests, route="none", status="404") - before(requests, route="none", status="404") == 1
    assert after(requests, method="other", status="405") - before(requests, method="other", status="405") == 1
    labels = {value for each in after.samples for value in each.labels.values()}
    assert not any("01J9ZK6Q5W" in value or "nowhere" in value or "FROB" in value for value in labels)


@on_sqlite
def test_a_request_is_in_flight_until_it_is_answered(api: Deployed) -> None:
    assert scrape(api)("acmix_http_requests_in_flight") == 1, "the scrape itself"
    arrived, go_on = threading.Event(), threading.Event()

    @api.app.get("/slow")
    def slow() -> None:
        arrived.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=api.http.get, args=("/slow",))
    thread.start()
    assert arrived.wait(30)
    assert scrape(api)("acmix_http_requests_in_flight") == 2
    go_on.set()
    thread.join()
    assert scrape(api)("acmix_http_requests_in_flight") == 1


@on_sqlite
def test_an_open_stream_is_counted_until_its_reader_leaves(api: Deployed) -> None:
    api.enrol()
    job = api.submit()
    with served(api.app) as url, httpx.Client(base_url=url) as http:
        with http.stream("GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": here"
            assert scrape(api)("acmix_streams_open") == 1
        until(lambda: scrape(api)("acmix_streams_open") == 0)


# What the database knows


def test_the_queue_is_told_with_the_age_of_the_first_job_that_could_be_claimed(api: Deployed) -> None:
    first, second, held_back = (submit(api.ledger) for _ in range(3))
    let_wait(api.app.state.backend.engine, first.id, minutes=10)
    let_wait(api.app.state.backend.engine, second.id, minutes=5)
    let_wait(api.app.state.backend.engine, held_back.id, minutes=60)
    begun = claim(api.ledger).job
    assert begun.id == held_back.id
    api.ledger.finish(begun.id, 1, Outcome("failed", Reason("internal", "once more", retryable=True)))
    claim(api.ledger)
    found = scrape(api)
    assert {status: found("acmix_jobs", status=status) for status in ("queued", "running", "paused")} == {
        "queued": 2,
        "running": 1,
        "paused": 0,
    }
    assert found("acmix_queue_due_jobs") == 1
    assert 290 < found("acmix_queue_oldest_due_seconds") < 400
    assert found("acmix_tenant_jobs", tenant="default", status="queued") == 2
    assert found("acmix_database_up") == 1


def test_what_a_tenants_limits_hold_back_waits_for_no_worker(api: Deployed) -> None:
    api.app.state.backend.tenants.limit("default", {"most_running": 0})
    submit(api.ledger)
    found = scrape(api)
    assert (found("acmix_jobs", status="queued"), found("acmix_queue_due_jobs")) == (1, 0)


def test_a_worker_is_alive_lost_or_gone(api: Deployed) -> None:
    api.enrol(gpus=2)
    api.ledger.seen("worker-1", 1)
    found = scrape(api)
    assert [found(f"acmix_{name}") for name in ("workers_alive", "workers_lost", "slots", "slots_busy")] == [1, 0, 2, 1]
    with writing(api.app.state.backend.engine).begin() as connection:
        then = clock(connection).timestamp() - 120
        connection.execute(update(workers).values(seen_at=clock(connection).fromtimestamp(then).astimezone()))
    found = scrape(api)
    assert [found(f"acmix_{name}") for name in ("workers_alive", "workers_lost", "slots")] == [0, 1, 0]
    api.ledger.leave("worker-1")
    found = scrape(api)
    assert (found("acmix_workers_alive"), found("acmix_workers_lost")) == (0, 0)


def test_the_first_job_that_a_worker_has_room_for_is_told_of_apart(api: Deployed) -> None:
    """That what fits nowhere waits is no fault of anybody's."""
    engine, ledger = api.app.state.backend.engine, api.ledger
    api.enrol(gpus=2)
    ledger.seen("worker-1", 1)
    large, small = submit(ledger, resources={"gpus": 2}), submit(ledger, resources={"gpus": 1})
    let_wait(engine, large.id, minutes=60)
    assert scrape(api)("acmix_queue_oldest_fitting_seconds") == pytest.approx(0, abs=60), "not the large one"
    let_wait(engine, small.id, minutes=30)

    def fitting() -> float:
        found = scrape(api)
        assert found("acmix_queue_oldest_due_seconds") == pytest.approx(3600, abs=120)
        return found("acmix_queue_oldest_fitting_seconds")

    assert fitting() == pytest.approx(1800, abs=120)
    ledger.seen("worker-1", 1, aside=1)
    assert scrape(api)("acmix_slots_aside") == 1
    assert fitting() == 0, "the one slot that is free is of a GPU put aside"
    ledger.seen("worker-1", 1)
    assert look(ledger, "worker-1", gpus=2, free=[1], can_run=lambda *_: False) is None
    assert fitting() == 0, "the worker says that it is not able"


def test_a_drained_worker_is_counted_apart_from_those_alive_and_is_never_lost(api: Deployed) -> None:
    api.enrol(gpus=2)
    api.ledger.seen("worker-1", 1)
    api.ledger.drain("worker-1", "finish")
    names = ("workers_alive", "workers_drained", "workers_lost", "slots", "slots_busy")
    found = scrape(api)
    assert [found(f"acmix_{name}") for name in names] == [0, 1, 0, 0, 0]
    with writing(api.app.state.backend.engine).begin() as connection:
        then = clock(connection).timestamp() - 120
        connection.execute(update(workers).values(seen_at=clock(connection).fromtimestamp(then).astimezone()))
    found = scrape(api)
    assert [found(f"acmix_{name}") for name in names] == [0, 0, 0, 0, 0]


@on_sqlite
def test_ended_jobs_are_counted_by_status_and_reason_from_zero(api: Deployed) -> None:
    ended = "acmix_jobs_ended_total"
    before = scrape(api)
    assert {"status": "failed", "reason": "stalled"} in [each.labels for each in before.samples if each.name == ended]
    for outcome in (
        Outcome("succeeded"),
        Outcome("failed", Reason("diverged", "the loss is nan")),
        Outcome("failed", Reason("a_reason_of_tomorrow", "who knows")),
        Outcome("drained"),
    ):
        job = submit(api.ledger)
        claim(api.ledger)
        api.ledger.finish(job.id, 1, outcome)
    api.http.post(f"/v1/jobs/{job.id}/cancel")
    api.http.post(f"/v1/jobs/{job.id}/cancel")
    after = scrape(api)

    def risen(**labels: str) -> float:
        return after(ended, **labels) - before(ended, **labels)

    assert (risen(status="succeeded", reason="none"), risen(status="failed", reason="diverged")) == (1, 1)
    assert risen(status="failed", reason="other") == 1
    assert risen(status="cancelled", reason="cancelled_by_user") == 1
    assert risen() == 4


@on_sqlite
def test_scrapes_that_follow_each_other_count_once(api: Deployed) -> None:
    assert scrape(api)("acmix_jobs", status="queued") == 0
    submit(api.ledger)
    assert Scrape(api.http.get("/metrics").text)("acmix_jobs", status="queued") == 0
    assert scrape(api)("acmix_jobs", status="queued") == 1


def test_with_the_database_away_the_process_tells_of_itself(broker_url: str, tmp_path: Path) -> None:
    settings = {"METRICS_TOKEN": TOKEN}
    with deployed("postgresql://user:secret@127.0.0.1:1/none", broker_url, tmp_path, **settings) as api:
        api.http.get("/healthz")
        found = scrape(api, **bearer(TOKEN))
        assert found("acmix_database_up") == 0
        assert "acmix_jobs" not in found.names
        assert found("acmix_http_request_seconds_count", route="/healthz") >= 1
        assert found("process_resident_memory_bytes") > 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_with_the_database_locked_the_process_tells_of_itself_within_seconds(api: Deployed) -> None:
    scrape(api)
    with writing(api.app.state.backend.engine).begin() as connection:
        connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        assert scrape(api)("acmix_database_up") == 0
        assert time.monotonic() - began < 8, "a scrape may take ten seconds"
    until(lambda: scrape(api)("acmix_database_up") == 1)


def test_a_database_that_hangs_keeps_no_scrape_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "PATIENCE_SECONDS", 0.05)
    over, began = threading.Event(), []

    def hang() -> Any:
        began.append(threading.current_thread())
        over.wait(30)
        return "the census"

    counted = vitals.Counted(hang)
    assert [counted.census() for _ in range(3)] == [None, None, None]
    assert len(began) == 1, "one question hangs at a time"
    over.set()
    until(lambda: counted.census() == "the census")
    assert all(thread.daemon for thread in began), "the process ends without it"


# Who may ask


@on_sqlite
def test_it_takes_a_key_with_the_scope_admin_once_keys_are_in_use(api: Deployed) -> None:
    assert api.http.get("/metrics").status_code == 200, "this machine, and no key was made"
    key = key_for(api, "admin")
    assert api.http.get("/metrics").status_code == 401
    assert api.http.get("/metrics", headers=bearer(key_for(api, "jobs:read"))).status_code == 403
    assert api.http.get("/metrics", headers=bearer(key)).status_code == 200


@on_sqlite
def test_the_token_opens_the_vitals_alone_and_from_anywhere(database_url: str, broker_url: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with deployed(database_url, broker_url, tmp_path, METRICS_TOKEN_FILE=str(tmp_path / "token")) as api:
        key_for(api)
        there = TestClient(api.app, client=("10.9.8.7", 50000), base_url="http://api:8000")
        assert there.get("/metrics", headers=bearer(TOKEN)).status_code == 200
        assert there.get("/v1/jobs", headers=bearer(TOKEN)).status_code == 401
        for wrong in (TOKEN[:-1], f"{TOKEN}x", "", TOKEN.upper()):
            assert there.get("/metrics", headers=bearer(wrong)).status_code == 401
        assert there.get("/metrics", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
        assert there.get("/metrics").status_code == 401


@on_sqlite
def test_without_a_token_none_is_taken(api: Deployed) -> None:
    assert api.http.get("/metrics", headers=bearer("")).status_code == 401


# Several processes behind one port


@contextmanager
def two_processes(tmp_path: Path, broker_url: str) -> Iterator[str]:
    port = free_port()
    environment = {"ACMIX_DATA": str(tmp_path), "BROKER_URL": broker_url, "METRICS_TOKEN": TOKEN, "LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "service", "--port", str(port), "--processes", "2"]
    with (tmp_path / "log").open("wb") as log:
        environment["TMPDIR"] = str(tmp_path)
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_the_counts_of_all_processes_are_in_one_scrape_and_outlive_them(broker_url: str, tmp_path: Path) -> None:
    with two_processes(tmp_path, broker_url) as url:

        def writers() -> set[int]:
            """Processes that have answered something."""
            return {int(file.stem.rpartition("_")[2]) for file in tmp_path.glob("acmix-vitals-*/histogram_*.db")}

        def asked() -> Scrape:
            return Scrape(httpx.get(f"{url}/metrics", headers=bearer(TOKEN), timeout=10).text)

        def is_up() -> bool:
            try:
                return httpx.get(f"{url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        def count() -> float:
            return asked()("acmix_http_requests_total", route="/healthz", status="200")

        until(is_up, seconds=60)
        until(lambda: httpx.get(f"{url}/healthz").status_code == 200 and len(writers()) == 2, seconds=60)
        before = count()
        for _ in range(40):
            assert httpx.get(f"{url}/healthz").status_code == 200
        assert {count() - before for _ in range(10)} == {40}, "whichever of the two is asked"
        ids = {each.labels["pid"] for each in asked().samples if each.name == "process_cpu_seconds_total"}
        assert ids == {str(pid) for pid in writers()}

        killed = min(writers())
        os.kill(killed, signal.SIGKILL)

        def is_buried() -> bool:
            return is_up() and "acmix_database_up" in asked().names and killed not in writers()

        until(is_buried, seconds=60)
        assert count() >= before + 40, "what the dead one counted stays"
        assert asked()("acmix_http_requests_in_flight") == 1
    assert list(tmp_path.glob("acmix-vitals-*")) == [], "what they shared is gone with them"
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {each["role"] for each in said} == {"api"}, "uvicorn's parent, too, says nothing but JSON"
