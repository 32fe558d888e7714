"""How long a job stands still when something dies: its worker, or its run alone.

    python -m benchmarks.recovery [--times 10] [--lease-seconds 60]

`acmix up` with two workers trains the README's kind of job, a checkpoint every half second, and kills. Printed: from
the kill to the next attempt's claim and to its first step, medians and 95th percentiles, beside what bounds them: the
lease, and how long torch takes to import. Times of claims and steps are those of the database, whose clock is this
machine's.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from service.client import Client
from service.launcher import free_port

SPEC: dict[str, Any] = {
    "backbone": {"name": "resnet", "options": {"depths": [1, 1, 1, 1], "stem": "small", "width": 0.125}},
    "swaps": [{"layers": "*"}],
    "dataset": {"name": "digits"},
    "training": {"epochs": 2000, "batch_size": 64},
    "checkpoints": {"every_seconds": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--lease-seconds", type=float, default=60.0)
    given = parser.parse_args()
    print(f"importing what a run imports: {import_seconds():.1f} s")
    with service(given.lease_seconds) as (client, up):
        for what, kill in (("the run alone is killed", kill_run), ("its worker is killed", kill_worker)):
            claims, steps = zip(*(recovery(client, up, kill) for _ in range(given.times)), strict=True)
            print(f"{what}, {given.times} times: to the next claim {told(claims)}; to its first step {told(steps)}")


def recovery(client: Client, up: psutil.Process, kill: Callable[[psutil.Process], None]) -> tuple[float, float]:
    """Seconds from a kill in mid-training to the next attempt's claim, and to its first step."""
    job_id = client.submit(SPEC)["id"]
    wait_for(lambda: any(event["type"] == "checkpoint" for event in client.events(job_id)))
    killed_at = datetime.now(UTC)
    kill(up)
    found = wait_for(lambda: next((event for event in client.events(job_id) if is_step_of_second(event)), None))
    claim = next(event for event in client.events(job_id) if event["attempt"] == 2)
    client.cancel(job_id)
    wait_for(lambda: client.job(job_id)["status"] == "cancelled")
    wait_for(lambda: len(workers(up)) == 2)
    return seconds_since(killed_at, claim), seconds_since(killed_at, found)


def is_step_of_second(event: dict[str, Any]) -> bool:
    return bool(event["attempt"] == 2 and event["type"] == "metrics")


def seconds_since(moment: datetime, event: dict[str, Any]) -> float:
    return (datetime.fromisoformat(event["at"]) - moment).total_seconds()


def kill_run(up: psutil.Process) -> None:
    for process in up.children(recursive=True):
        if "--folder" in words(process):
            process.send_signal(signal.SIGKILL)


def kill_worker(up: psutil.Process) -> None:
    """The one that has a run."""
    for process in workers(up):
        if any("--folder" in words(child) for child in process.children()):
            process.send_signal(signal.SIGKILL)


def workers(up: psutil.Process) -> list[psutil.Process]:
    return [process for process in up.children(recursive=True) if words(process)[-2:] == ["worker", "train"]]


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def import_seconds() -> float:
    """Of three."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import acmix.training.run"], check=True)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def told(seconds: tuple[float, ...]) -> str:
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"{statistics.median(ordered):.2f} s, p95 {late:.2f} s"


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)
    return found


@contextmanager
def service(lease_seconds: float) -> Iterator[tuple[Client, psutil.Process]]:
    """`acmix up` with two workers, ready."""
    with tempfile.TemporaryDirectory(prefix="acmix-recovery-") as folder:
        port = free_port()
        command = [sys.executable, "-c", "from service.cli import main; main()", "up", "--workers", "2"]
        environment = {**os.environ, "LEASE_SECONDS": str(lease_seconds), "PLANNER_IDLE_SECONDS": "600"}
        up = subprocess.Popen(
            [*command, "--data", str(Path(folder) / "data"), "--port", str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert up.stdout is not None
        up.stdout.readline()
        try:
            with Client(f"http://127.0.0.1:{port}") as client:
                yield client, psutil.Process(up.pid)
        finally:
            up.terminate()
            up.wait()


if __name__ == "__main__":
    main()
