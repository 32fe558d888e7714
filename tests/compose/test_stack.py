"""docker-compose.yml as it stands, in real containers: a job, killed containers, an upgrade, a back-up, a restore.

`make compose-test` builds the images and runs this where an engine is; tests/compose/engine.sh makes one of podman.
"""

import hashlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.launcher import free_port
from tests.flow.service_process import small_job, wait_for

PROJECT = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
SERVICES = {"api", "worker-cpu", "housekeeper", "postgres", "redis", "s3"}
ENDED = ("succeeded", "failed", "cancelled")

pytestmark = pytest.mark.release


@dataclass
class Stack:
    """The services of one compose project. `http` speaks to its api, with the first admin key."""

    environment: dict[str, str]
    http: httpx.Client

    def compose(self, *arguments: str) -> str:
        return self._run(str(COMPOSE), *arguments)

    def script(self, name: str, folder: Path) -> str:
        return self._run("sh", str(PROJECT / "docker" / name), str(folder))

    def up(self, *services: str) -> None:
        self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "300", *services)

    def running(self) -> set[str]:
        return set(self.compose("ps", "--services", "--status", "running").split())

    def submit(self, **changes: Any) -> str:
        answer = self.http.post("/v1/jobs", json=small_job(**changes))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/jobs/{job_id}"))

    def ended(self, job_id: str) -> dict[str, Any]:
        return wait_for(
            lambda: (job := self.job(job_id))["status"] in ENDED and job, within_seconds=300, every_seconds=0.5
        )

    def get(self, path: str) -> Any:
        """The JSON at a path, once a service that starts or waits for its database answers."""

        def answered() -> httpx.Response | None:
            try:
                response = self.http.get(path)
            except httpx.TransportError:
                return None
            assert response.status_code in (200, 503), response.text
            return response if response.status_code == 200 else None

        found = wait_for(answered, within_seconds=120, every_seconds=0.5)
        assert found is not None
        return found.json()

    def wait_at_work(self, job_id: str) -> None:
        wait_for(lambda: self.get(f"/v1/jobs/{job_id}/checkpoints")["data"], within_seconds=300, every_seconds=0.5)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=PROJECT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The cpu and s3 profiles, up and healthy; at the end nothing is left of it."""
    folder = tmp_path_factory.mktemp("compose")
    secrets, datasets = folder / "secrets", folder / "datasets"
    datasets.mkdir()
    subprocess.run(["sh", str(PROJECT / "docker" / "secrets.sh"), str(secrets)], check=True)
    port = free_port()
    environment = {
        **os.environ,
        "COMPOSE": str(COMPOSE),
        "COMPOSE_PROJECT_NAME": f"acmix-test-{os.getpid()}",
        "COMPOSE_PROFILES": "cpu,s3",
        "COMPOSE_ENV_FILES": os.devnull,
        "SECRETS": str(secrets),
        "DATA_ROOT": str(datasets),
        "ACMIX_PORT": str(port),
        "ARTIFACTS_URL": "s3://acmix",
        "WORKER_SHM_SIZE": "512mb",
        "LEASE_SECONDS": "5",
        "ACMIX_SWEEP_SECONDS": "1",
    }
    key = (secrets / "admin_key").read_text().strip()
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False
    ) as http:
        made = Stack(environment, http)
        try:
            made.up()
            yield made
        finally:
            sys.stderr.write(made.compose("logs", "--no-color", "--tail", "40"))
            made.compose("down", "--volumes", "--timeout", "20")
            assert not made.running()


def test_every_service_is_up_and_healthy_and_the_key_of_the_secret_is_an_admins(stack: Stack) -> None:
    assert stack.running() == SERVICES
    assert stack.get("/readyz") == {"status": "ready"}
    assert stack.http.get("/v1/jobs", headers={"Authorization": ""}).status_code == 401
    assert stack.http.get("/v1/webhooks").status_code == 200


def test_a_job_trains_and_all_of_it_is_served(stack: Stack) -> None:
    job = stack.ended(stack.submit(epochs=2))
    assert job["status"] == "succeeded", job["status_reason"]
    assert stack.get(job["urls"]["results"])["final"]["split"] == "test"
    assert len(stack.get(job["urls"]["traces"])["layers"]) == 4
    _check_downloads(stack, job["id"])


def test_processes_are_nobodys_root_and_cannot_write_where_they_run(stack: Stack) -> None:
    for service in ("api", "worker-cpu", "housekeeper"):
        assert stack.compose("exec", "--no-TTY", service, "id", "--user").strip() == "10001"
        tried = "touch /opt/acmix/x 2>/dev/null || echo refused"
        assert stack.compose("exec", "--no-TTY", service, "sh", "-c", tried).strip() == "refused"
    has_torch = "python -c 'import torch' 2>/dev/null && echo yes || echo no"
    assert stack.compose("exec", "--no-TTY", "api", "sh", "-c", has_torch).strip() == "no"


@pytest.mark.parametrize("service", ["worker-cpu", "postgres", "redis", "s3", "housekeeper", "api"])
def test_a_killed_container_loses_no_job(stack: Stack, service: str) -> None:
    job_id = stack.submit(epochs=8)
    stack.wait_at_work(job_id)
    stack.compose("kill", service)
    stack.up("--no-deps", service)
    job = stack.ended(job_id)
    assert (job["status"], job["failures"]) == ("succeeded", 0), job["status_reason"]
    assert job["attempt"] == (2 if service == "worker-cpu" else 1)
    events = stack.get(f"/v1/jobs/{job_id}/events?limit=1000")["data"]
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    (loss,) = stack.get(f"/v1/jobs/{job_id}/metrics?names=train/loss")["series"]
    assert loss["step"] == list(range(1, len(loss["step"]) + 1))


def test_an_upgrade_in_the_order_of_the_guide_loses_no_job_and_answers_no_500(stack: Stack) -> None:
    job_id = stack.submit(epochs=12)
    stack.wait_at_work(job_id)
    with _asking(stack) as answers:
        stack.compose("run", "--rm", "--no-deps", "--no-TTY", "migrate")
        for service in ("housekeeper", "worker-cpu", "api"):
            stack.up("--no-deps", "--force-recreate", service)
        other = wait_for(lambda: _submitted(stack), within_seconds=60, every_seconds=0.5)
    sys.stderr.write(f"\nan upgrade under load answered {dict(answers)}\n")
    assert not [status for status in answers if isinstance(status, int) and status >= 500 and status != 503]
    assert answers[200] > 50
    for each in (job_id, other):
        job = stack.ended(each)
        assert (job["status"], job["failures"], job["losses"]) == ("succeeded", 0, 0), job["status_reason"]


def test_back_up_wipe_and_restore_lose_nothing(stack: Stack, tmp_path: Path) -> None:
    stack.ended(stack.submit(epochs=2, metadata={"study": "depth"}))
    running = stack.submit(epochs=40)
    stack.wait_at_work(running)
    before = _all_served(stack)
    told = stack.script("backup.sh", tmp_path / "backup")
    sys.stderr.write(told)
    reached = stack.job(running)["attempt"]
    stack.compose("down", "--volumes", "--timeout", "1")
    stack.script("restore.sh", tmp_path / "backup")
    stack.up()
    after = _all_served(stack)
    assert {key: after[key] for key in before} == before
    for job_id in before:
        _check_downloads(stack, job_id)
    job = stack.ended(running)
    assert (job["status"], job["attempt"]) == ("succeeded", reached + 1), job["status_reason"]
    (loss,) = stack.get(f"/v1/jobs/{running}/metrics?names=train/loss")["series"]
    assert loss["step"] == list(range(1, len(loss["step"]) + 1))


def _all_served(stack: Stack) -> dict[str, Any]:
    """What is told of every job that has ended."""
    found = {}
    for job in stack.get("/v1/jobs?limit=100")["data"]:
        if job["status"] in ENDED:
            parts = {part: stack.get(job["urls"][part]) for part in ("results", "metrics", "traces", "checkpoints")}
            found[job["id"]] = {"job": job, **parts, "events": stack.get(f"/v1/jobs/{job['id']}/events?limit=1000")}
    assert found
    return found


def _check_downloads(stack: Stack, job_id: str) -> None:
    """Every checkpoint's bytes are those of its hash."""
    for checkpoint in stack.get(f"/v1/jobs/{job_id}/checkpoints")["data"]:
        content = stack.http.get(f"/v1/checkpoints/{checkpoint['id']}/content").content
        assert hashlib.sha256(content).hexdigest() == checkpoint["sha256"]


def _submitted(stack: Stack) -> str | None:
    try:
        return stack.submit(epochs=1)
    except (AssertionError, httpx.TransportError):
        return None


@contextmanager
def _asking(stack: Stack) -> Iterator[Counter[int | str]]:
    """Lists jobs again and again meanwhile; counts the answers by status, and what got none by its error."""
    answers: Counter[int | str] = Counter()
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(
            base_url=stack.http.base_url, headers=stack.http.headers, timeout=30, trust_env=False
        ) as http:
            while not over.wait(0.02):
                try:
                    response = http.get("/v1/jobs")
                except httpx.TransportError as error:
                    answers[type(error).__name__] += 1
                else:
                    answers[response.status_code] += 1
                    assert response.status_code != 503 or "Retry-After" in response.headers

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
