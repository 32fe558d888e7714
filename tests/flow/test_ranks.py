"""A job of several processes lives as one of a single process does."""

import signal
from typing import Any

import psutil
import pytest

from tests.flow.service_process import Up, kill, small_job, wait_for


def two_ranks(**changes: Any) -> dict[str, Any]:
    return {**small_job(**changes), "resources": {"processes": 2}}


def ranks(service: Up) -> dict[int, psutil.Process]:
    """The processes that train, by rank."""
    found = [(process.environ().get("RANK"), process) for process in service.runs()]
    return {int(rank): process for rank, process in found if rank is not None}


def test_the_death_of_a_rank_and_a_cancel_are_those_of_the_whole_job(service: Up) -> None:
    job_id = service.submit(two_ranks(epochs=5000))
    wait_for(lambda: service.events(job_id, "checkpoint"))
    dead = ranks(service)
    kill(dead[1])
    wait_for(lambda: not any(process.is_running() for process in dead.values()), within_seconds=15)

    wait_for(lambda: _trains(service, job_id, attempt=2))
    (told,) = [event for event in service.events(job_id, "warning") if event["data"]["code"] == "rank_died"]
    assert (told["attempt"], told["data"]["rank"]) == (1, 1)
    first = service.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"][-1]
    assert (first["number"], first["signal"], first["devices"]) == (1, signal.SIGKILL, ["cpu", "cpu"])
    assert "[rank 0] " in service.http.get(f"/v1/jobs/{job_id}/logs").text
    assert service.http.get(f"/v1/jobs/{job_id}/traces").json()["layers"]

    assert service.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    job = service.ended(job_id, within_seconds=10)
    assert (job["status"], job["attempt"], job["failures"], job["losses"]) == ("cancelled", 2, 0, 1)
    wait_for(lambda: not service.runs(), within_seconds=5)


@pytest.mark.release
def test_several_processes_are_paused_and_resumed_as_one(service: Up) -> None:
    job_id = service.submit(two_ranks(epochs=5000))
    wait_for(lambda: service.events(job_id, "metrics"))
    assert service.http.post(f"/v1/jobs/{job_id}/pause").status_code == 202
    wait_for(lambda: service.job(job_id)["status"] == "paused", within_seconds=15)
    assert not service.runs()
    assert service.http.post(f"/v1/jobs/{job_id}/resume").status_code == 202
    wait_for(lambda: _trains(service, job_id, attempt=2))
    resumed = [event["data"].get("resumed_from") for event in service.events(job_id, "status")]
    assert max(each["step"] for each in resumed if each) > 0
    service.http.post(f"/v1/jobs/{job_id}/cancel")
    job = service.ended(job_id, within_seconds=10)
    assert (job["attempt"], job["failures"], job["losses"]) == (2, 0, 0)


def _trains(service: Up, job_id: str, *, attempt: int) -> bool:
    return any(event["attempt"] == attempt for event in service.events(job_id, "metrics"))
