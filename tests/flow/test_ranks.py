"""A job of several processes lives as one of a single process does."""

import signal
from typing import Any

import psutil

from tests.flow.service_process import Up, kill, small_job, wait_for


def two_ranks(**changes: Any) -> dict[str, Any]:
    return {**small_job(**changes), "resources": {"processes": 2}}


def ranks(service: Up) -> dict[int, psutil.Process]:
    """The processes that train, by rank."""
    found = [(process.environ().get("RANK"), process) for process in service.runs()]
    return {int(rank): process for rank, process in found if rank is not None}


def test_a_rank_that_dies_ends_the_attempt_and_the_next_goes_on_to_the_same_weights(service: Up) -> None:
    job_id = service.submit(two_ranks(epochs=8))
    wait_for(lambda: len(service.events(job_id, "checkpoint")) >= 2)
    dead = ranks(service)
    kill(dead[1])
    wait_for(lambda: not any(process.is_running() for process in dead.values()), within_seconds=15)
    job = service.ended(job_id)
    untouched = service.ended(service.submit(two_ranks(epochs=8)))
    assert (job["status"], job["attempt"], job["losses"], job["failures"]) == ("succeeded", 2, 1, 0)
    assert service.metrics(job_id) == service.metrics(untouched["id"])
    traces = [service.http.get(one["urls"]["traces"]).json() for one in (job, untouched)]
    assert traces[0] == traces[1]
    best = [service.http.get(f"/v1/checkpoints/{one['best']['checkpoint']}").json() for one in (job, untouched)]
    assert best[0]["sha256"] == best[1]["sha256"]
    (told,) = [event for event in service.events(job_id, "warning") if event["data"]["code"] == "rank_died"]
    assert (told["attempt"], told["data"]["rank"]) == (1, 1)
    first = service.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"][-1]
    assert (first["number"], first["signal"], first["devices"]) == (1, signal.SIGKILL, ["cpu", "cpu"])
    log = service.http.get(f"/v1/jobs/{job_id}/logs").text
    assert "[rank 0] " in log


def test_several_processes_are_paused_resumed_and_cancelled_as_one(service: Up) -> None:
    job_id = service.submit(two_ranks(epochs=5000))
    wait_for(lambda: service.events(job_id, "metrics"))
    assert service.http.post(f"/v1/jobs/{job_id}/pause").status_code == 202
    wait_for(lambda: service.job(job_id)["status"] == "paused", within_seconds=15)
    assert not service.runs()
    assert service.http.post(f"/v1/jobs/{job_id}/resume").status_code == 202
    wait_for(lambda: [event for event in service.events(job_id, "metrics") if event["attempt"] == 2])
    resumed = next(event for event in service.events(job_id, "status") if event["attempt"] == 2)
    assert resumed["data"]["resumed_from"]["step"] > 0
    assert service.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    job = service.ended(job_id, within_seconds=10)
    assert (job["status"], job["attempt"], job["failures"], job["losses"]) == ("cancelled", 2, 0, 0)
    wait_for(lambda: not service.runs(), within_seconds=5)
