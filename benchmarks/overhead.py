"""What the service costs a job: samples a second in the service over those of the bare loop, paired in one run.

    python -m benchmarks.overhead [--rounds 5] [--epochs 20]

The same spec runs alternately as a job of an `acmix up` that is otherwise idle, and as `python -m acmix run` by hand,
with as many CPU threads as the service gives. Both print the same log, and the rate is read off its time stamps: steps
from the end of the first epoch to the end of the last, evaluation and checkpoints included. While the bare loop runs,
the service is stopped (SIGSTOP), so that neither disturbs the other.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from service.cli.up import EXAMPLE
from service.client import Client
from service.launcher import free_port

SAMPLES_AN_EPOCH = 1257
STAMP = re.compile(r"^(\S+ \S+) INFO progress: epoch (\d+) of (\d+), step (\d+) of")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    spec: dict[str, Any] = {**EXAMPLE, "training": {"epochs": arguments.epochs}}
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    print(f"{os.cpu_count()} cores, {threads} threads a run, {arguments.epochs} epochs of the example")
    with tempfile.TemporaryDirectory(prefix="acmix-overhead-") as folder:
        ratios = measure(spec, Path(folder), threads, arguments.rounds)
    print(f"service / bare loop, median of {len(ratios)}: {statistics.median(ratios):.3f}")


def measure(spec: dict[str, Any], folder: Path, threads: int, rounds: int) -> list[float]:
    port = free_port()
    command = [sys.executable, "-c", "from service.cli import main; main()", "up", "--port", str(port)]
    with subprocess.Popen([*command, "--data", str(folder / "data")], stdout=subprocess.PIPE, text=True) as up:
        try:
            assert up.stdout is not None
            up.stdout.readline()
            client = Client(f"http://127.0.0.1:{port}")
            return [_pair(client, up, spec, folder, threads, number) for number in range(rounds)]
        finally:
            up.terminate()


def _pair(
    client: Client, up: subprocess.Popen[str], spec: dict[str, Any], folder: Path, threads: int, number: int
) -> float:
    """One run of each, the first of the two by turns; their ratio."""
    rates = {}
    for which in ("service", "bare") if number % 2 else ("bare", "service"):
        log = _in_service(client, spec) if which == "service" else _bare(up, spec, folder / f"bare-{number}", threads)
        rates[which] = samples_a_second(log)
    ratio = rates["service"] / rates["bare"]
    print(f"  service {rates['service']:6.0f}  bare {rates['bare']:6.0f} samples/s  ratio {ratio:.3f}", flush=True)
    return ratio


def samples_a_second(log: str) -> float:
    """From the end of the first epoch to the end of the last, off the log's time stamps."""
    samples, began, ended = steady(log)
    return samples / (ended - began).total_seconds()


def steady(log: str) -> tuple[int, datetime, datetime]:
    """Samples from the end of the first epoch to the end of the last, and both moments, in local time."""
    ends: dict[int, datetime] = {}
    for line in log.splitlines():
        if found := STAMP.match(line):
            ends[int(found[2])] = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")
    first, last = min(ends), max(ends)
    return (last - first) * SAMPLES_AN_EPOCH, ends[first], ends[last]


def _in_service(client: Client, spec: dict[str, Any]) -> str:
    job = client.wait(client.submit(spec)["id"])
    assert job["status"] == "succeeded", job["status_reason"]
    return client.logs(job["id"])


def _bare(up: subprocess.Popen[str], spec: dict[str, Any], folder: Path, threads: int) -> str:
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "acmix", "run", str(folder / "spec.json"), "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    service = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
    for process in service:
        process.send_signal(signal.SIGSTOP)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        for process in reversed(service):
            process.send_signal(signal.SIGCONT)
    return done.stderr


if __name__ == "__main__":
    main()
