"""A whole service for tests: what is asked of any, and `acmix up` as a child process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from service.launcher import free_port

T = TypeVar("T")
QUICK = {"LEASE_SECONDS": "3", "ACMIX_SWEEP_SECONDS": "0.3", "ACMIX_IDLE_LOOK_SECONDS": "1"}
UNPLANNED = {"PLANNER_IDLE_SECONDS": "600"}  # nobody asks for a plan: a warm planner would take half a minute of a core


class Service:
    """One that is reached by HTTP, on this machine: `http` speaks to it, its files lie in two folders."""

    def __init__(self, url: str, *, artifacts: Path, attempts: Path, headers: Mapping[str, str] | None = None) -> None:
        self.http = httpx.Client(base_url=url, headers=headers, timeout=30)
        self.artifacts = artifacts
        self.attempts = attempts

    def below(self) -> list[psutil.Process]:
        """All its processes."""
        raise NotImplementedError

    def submit(self, spec: dict[str, Any]) -> str:
        answer = self.http.post("/v1/jobs", json=spec)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ended(self, job_id: str, *, within_seconds: float = 120) -> dict[str, Any]:
        """The job once it has ended."""
        ended = ("succeeded", "failed", "cancelled")
        return wait_for(
            lambda: (job := self.job(job_id))["status"] in ended and job,
            within_seconds=within_seconds,
            every_seconds=0.25,
        )

    def events(self, job_id: str, kind: str | None = None) -> list[dict[str, Any]]:
        """All events, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["number"] if found else 0
            page = self.http.get(f"/v1/jobs/{job_id}/events", params={"after": after, "limit": 200}).json()
            found += page["data"]
            if not page["has_more"]:
                return [event for event in found if kind in (None, event["type"])]

    def metrics(self, job_id: str) -> dict[str, dict[int, float]]:
        series = self.http.get(f"/v1/jobs/{job_id}/metrics").json()["series"]
        return {one["name"]: dict(zip(one["step"], one["value"], strict=True)) for one in series}

    def runs(self) -> list[psutil.Process]:
        """Trainers below this service: the processes of attempts, and their own children."""
        return [process for process in self.below() if _is_run(process)]

    def workers(self) -> list[psutil.Process]:
        return [process for process in self.below() if _command(process)[-2:] == ["worker", "train"]]


class Up(Service):
    """A running `acmix up`. `http` speaks to it."""

    def __init__(self, data: Path, environment: dict[str, str], *arguments: str) -> None:
        self.data = data
        self.port = free_port()
        command = [sys.executable, "-c", "from service.cli import main; main()", "up", "--data", str(data)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        super().__init__(f"http://127.0.0.1:{self.port}", artifacts=data / "artifacts", attempts=data / "attempts")

    def wait_ready(self) -> str:
        """The line it prints once /readyz is green."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        return line.strip()

    def stop(self) -> float:
        """SIGTERM; how many seconds it took."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - began

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def up(data: Path, *arguments: str, **environment: str) -> Iterator[Up]:
    """A service on a data folder, ready; ended at the end, with its logs shown if it would not end."""
    service = Up(data, {**QUICK, **UNPLANNED, **environment}, *arguments)
    try:
        service.wait_ready()
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()
        service.http.close()
        for pipe in (service.process.stdout, service.process.stderr):
            if pipe:
                pipe.close()


def wait_for(condition: Callable[[], T], *, within_seconds: float = 60, every_seconds: float = 0.05) -> T:
    """What the condition returns once that is true. To ask costs the service some milliseconds of what it has."""
    deadline = time.monotonic() + within_seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_seconds} s"
        pause.wait(every_seconds)
    return found


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def small_job(**changes: Any) -> dict[str, Any]:
    """A job of some seconds. `epochs` and other training options by keyword; `checkpoints` as in the spec."""
    checkpoints = changes.pop("checkpoints", {})
    metadata = changes.pop("metadata", {})
    spec = {
        "backbone": {"name": "resnet", "options": {"depths": [1, 1, 1, 1], "stem": "small", "width": 0.125}},
        "swaps": [{"layers": "*"}],
        "dataset": {"name": "digits"},
        "training": {"epochs": 3, "batch_size": 64, **changes},
        "trace": {"every_steps": 5},
        "checkpoints": checkpoints,
        "metadata": metadata,
    }
    return dict(json.loads(json.dumps(spec)))


def _is_run(process: psutil.Process) -> bool:
    return _command(process)[1:4] == ["-m", "acmix", "run"]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
