"""What must not harm a job: a killed worker, a lost or doubled message, a stopped and restarted service."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

from service.store.queue import Queue
from tests.flow.service_process import Up, kill, small_job, up, wait_for


def test_a_worker_killed_in_mid_epoch_loses_nothing(service: Up) -> None:
    job_id = service.submit(small_job(epochs=5))
    wait_for(lambda: len(service.events(job_id, "checkpoint")) >= 2 and service.runs())
    run = service.runs()[0]
    kill(service.workers()[0])
    wait_for(lambda: not run.is_running(), within_seconds=5)
    job = service.ended(job_id)
    untouched = service.ended(service.submit(small_job(epochs=5)))

    assert (job["status"], job["attempt"], job["losses"]) == ("succeeded", 2, 1)
    assert service.metrics(job_id) == service.metrics(untouched["id"])
    traces = [service.http.get(one["urls"]["traces"]).json() for one in (job, untouched)]
    assert traces[0] == traces[1]
    assert _final_sha256(service, job) == _final_sha256(service, untouched)
    events = service.events(job_id)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    second = next(event for event in events if event["attempt"] == 2)
    assert second["data"]["resumed_from"]["attempt"] == 1
    assert {event["attempt"] for event in events} == {0, 1, 2}


def test_a_run_killed_by_a_signal_goes_on_under_the_next_attempt(service: Up) -> None:
    job_id = service.submit(small_job(epochs=4))
    wait_for(lambda: service.events(job_id, "checkpoint") and service.runs())
    kill(service.runs()[0])
    job = service.ended(job_id)
    assert (job["status"], job["attempt"], job["losses"]) == ("succeeded", 2, 1)
    first = service.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"][-1]
    assert (first["number"], first["signal"]) == (1, signal.SIGKILL)


def test_a_doubled_message_trains_once(tmp_path: Path) -> None:
    with up(tmp_path, "--workers", "2") as service:
        queue = Queue(_broker_url(service))
        for _ in range(20):
            assert queue.nudge_train()
        job_ids = [service.submit(small_job(epochs=1, limit_train_batches=4)) for _ in range(3)]
        for _ in range(20):
            assert queue.nudge_train()
        queue.close()
        jobs = [service.ended(job_id) for job_id in job_ids]
        assert [job["status"] for job in jobs] == ["succeeded"] * 3
        assert [job["attempt"] for job in jobs] == [1] * 3


def test_a_lost_message_loses_no_job(service: Up) -> None:
    """The broker is killed just before a job is posted, so that no message goes out: the worker looks by itself."""
    broker = next(child for child in _children(service) if "valkey-server" in child.name())
    kill(broker)
    job_id = service.submit(small_job(epochs=1, limit_train_batches=4))
    assert service.ended(job_id)["attempt"] == 1
    assert service.job(job_id)["status"] == "succeeded"


def test_stopping_the_service_leaves_a_running_job_to_go_on_at_the_next_start(tmp_path: Path) -> None:
    with up(tmp_path) as service:
        job_id = service.submit(small_job(epochs=400))
        wait_for(lambda: service.events(job_id, "checkpoint"))
        children = _children(service)
        assert service.stop() < 10
        assert not [child for child in children if child.is_running()]
    with up(tmp_path) as service:
        wait_for(lambda: [event for event in service.events(job_id, "metrics") if event["attempt"] == 2])
        job = service.job(job_id)
        assert (job["status"], job["attempt"], job["failures"], job["losses"]) == ("running", 2, 0, 0)
        resumed = next(event for event in service.events(job_id) if event["attempt"] == 2)
        assert resumed["data"]["resumed_from"]["step"] > 0


def test_a_child_that_dies_is_started_again(service: Up) -> None:
    api = next(child for child in _children(service) if child.cmdline()[1:3] == ["-m", "service"])
    kill(api)
    wait_for(lambda: _answers(service))
    assert service.http.get("/v1/workers").json()["data"]


def test_a_second_up_on_the_same_data_is_refused_with_a_sentence(service: Up) -> None:
    second = Up(service.data, {})
    out, error = second.process.communicate(timeout=60)
    second.http.close()
    assert second.process.returncode == 1
    assert out == ""
    assert f"{service.data} is in use by acmix up, process" in error
    assert "Traceback" not in error


def test_an_address_that_others_reach_is_refused_until_there_is_a_key(tmp_path: Path) -> None:
    refused = Up(tmp_path, {}, "--host", "0.0.0.0")
    _, error = refused.process.communicate(timeout=60)
    refused.http.close()
    assert refused.process.returncode == 1
    assert "make an API key first, with `acmix keys create`" in error
    assert "Traceback" not in error

    made = _acmix("keys", "create", "--data", str(tmp_path), "--scope", "jobs:read")
    assert "it is the first" in made.stderr
    key = made.stdout.strip()
    with up(tmp_path, "--host", "0.0.0.0") as service:
        assert service.http.get("/v1/jobs").status_code == 401
        without = _acmix("cancel", "job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", "--url", str(service.http.base_url), check=False)
        assert "ACMIX_API_KEY is where it is taken from" in without.stderr
        assert service.http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200

        (listed,) = _acmix("keys", "list", "--data", str(tmp_path)).stdout.splitlines()
        assert key.split("_")[1] in listed
        assert key not in listed
        assert _acmix("keys", "revoke", listed.split("\t")[0], "--data", str(tmp_path)).stdout == "revoked\n"
        assert service.http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    log = "".join(file.read_text() for file in (tmp_path / "logs").iterdir())
    assert key not in log


def _acmix(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from service.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def _children(service: Up) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children(recursive=True)


def _answers(service: Up) -> bool:
    try:
        return service.http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _broker_url(service: Up) -> str:
    worker = service.workers()[0]
    return str(worker.environ()["BROKER_URL"])


def _final_sha256(service: Up, job: dict) -> str:
    checkpoints = service.http.get(job["urls"]["checkpoints"]).json()["data"]
    return next(str(checkpoint["sha256"]) for checkpoint in checkpoints if checkpoint["latest"])
