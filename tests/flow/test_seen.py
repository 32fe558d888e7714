"""One job followed through the logs of all processes, and the vitals of each while it trains."""

import json
from pathlib import Path
from typing import Any

import httpx

from service.launcher import free_port
from tests.flow.service_process import small_job, up
from tests.scrapes import Scrape

REQUEST_ID = "call-from-the-lab-7"


def records(data: Path, process: str) -> list[dict[str, Any]]:
    """Every line of its log, each of which must be JSON."""
    return [json.loads(line) for line in (data / "logs" / f"{process}.log").read_text().splitlines()]


def test_a_request_is_found_again_in_the_logs_and_the_work_in_the_vitals(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    with up(data, LOG_FORMAT="json", METRICS_PORT=str(port)) as service:
        answer = service.http.post("/v1/jobs", json=small_job(epochs=1), headers={"X-Request-Id": REQUEST_ID})
        job_id = answer.json()["id"]
        assert service.ended(job_id)["status"] == "succeeded"
        housekeeper, worker = (Scrape(httpx.get(f"http://127.0.0.1:{port + place}/metrics").text) for place in (0, 1))
        api = Scrape(service.http.get("/metrics").text)
        printed = service.http.get(f"/v1/jobs/{job_id}/logs").text
    assert worker("acmix_attempts_ended_total", outcome="succeeded", reason="none") == 1
    assert worker("acmix_jobs_ended_total", status="succeeded") == 1
    assert (worker("acmix_steps_total"), worker("acmix_samples_total")) == (20, 20 * 64)
    assert worker("acmix_checkpoint_stored_bytes_total") > 0
    assert housekeeper("acmix_housekeeping_rounds_total", result="ok") > 0
    assert api("acmix_http_requests_total", method="POST", route="/v1/jobs", status="201") == 1
    assert (api("acmix_database_up"), api("acmix_workers_alive")) == (1, 1)

    of_api, of_worker = (
        [each for each in records(data, name) if each.get("request_id") == REQUEST_ID] for name in ("api", "worker-0")
    )
    [posted] = [each for each in of_api if each["logger"] == "service.requests"]
    assert (posted["job"], posted["status"], posted["tenant"]) == (job_id, 201, "default")
    supervised = [each for each in of_worker if each["logger"] == "worker.supervise"]
    assert supervised[0]["message"] == f"{job_id} attempt 1 starts"
    for each in of_worker:
        assert (each["role"], each["job"], each["attempt"], each["tenant"]) == ("worker", job_id, "1", "default")
        assert each["worker"].startswith("wk_")
    said = [each["message"] for each in of_worker if each["logger"] == "acmix.run"]
    assert said == printed.splitlines(), "what the run printed, once for its job and once for the log"
    assert any(line.endswith(f"attempt 1 of {job_id}, posted by request {REQUEST_ID}") for line in said)
    assert {each["role"] for each in records(data, "housekeeper")} == {"housekeeper"}
