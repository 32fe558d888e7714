"""What leases, batches of events and checkpoints cost a training: its samples a second over those of the bare loop.

    python -m benchmarks.upkeep [--rounds 3] [--epochs 20]

Three runs of one spec in a round, in an order that turns: a job of `acmix up` on PostgreSQL and Valkey with every
setting at its default; `python -m acmix run` by hand, which saves checkpoints and writes its events into the void;
and the bare loop, `for event in acmix.run(...)`, which throws its events away and saves at its end alone. All have as
many threads as the service gives. The rate is that of training's own steady state, from the end of the first epoch to
the end of the last, evaluations included. While another runs, the service is stopped (SIGSTOP).

Printed beside it are samples a second of the run's own processor time, which a noisy machine disturbs less, and
the processor time that the rest of the service, but for the database, took meanwhile.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.overhead import steady
from service.cli.up import EXAMPLE
from service.client import Client
from service.launcher import free_port

Spec = dict[str, Any]
NEVER = {"every_epochs": 100_000, "every_seconds": 1e7}
# tells the ends of epochs as the log of `acmix run` does, and nothing else
LOOP = """
import logging, sys
from pathlib import Path
from acmix import run, spec
from acmix.uncompiled import spare_the_compiler

logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
spare_the_compiler()
for event in run(spec.read(Path(sys.argv[1])), Path(sys.argv[2])):
    if event.type == "progress":
        logging.info("progress: %s", event.message)
"""


@dataclass(frozen=True)
class Rates:
    """Samples a second, samples a processor second of the run, and the service's processor seconds a second."""

    wall: float
    processor: float
    service: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    spec: Spec = {**EXAMPLE, "training": {"epochs": given.epochs}}
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    print(f"{os.cpu_count()} cores, {threads} threads a run, {given.epochs} epochs of the example; samples a second")
    with tempfile.TemporaryDirectory(prefix="upkeep-") as folder, service(Path(folder)) as (client, up):
        sides: dict[str, Callable[[], str]] = {
            "job": lambda: in_service(client, spec),
            "by hand": lambda: beside(up, ["-m", "acmix", "run"], spec, threads),
            "bare": lambda: beside(up, ["-c", LOOP], {**spec, "checkpoints": NEVER}, threads),
        }
        rounds = [measured(sides, number) for number in range(given.rounds)]
    for than in ("by hand", "bare"):
        for what in ("wall", "processor"):
            ratios = sorted(getattr(rates["job"], what) / getattr(rates[than], what) for rates in rounds)
            told = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            print(f"job / {than}, {what} time, median of {len(ratios)}: {told}")


def measured(sides: dict[str, Callable[[], str]], number: int) -> dict[str, Rates]:
    """Each side's rates in one round; who is first changes with its number."""
    order = [*sides][number % len(sides) :] + [*sides][: number % len(sides)]
    rates = {name: rates_of(sides[name]) for name in order}
    told = (f"{name} {each.wall:.0f} ({each.processor:.0f})" for name, each in rates.items())
    print(
        f"  {'  '.join(told)}  service {rates['job'].service:.3f}  load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return rates


def rates_of(run: Callable[[], str]) -> Rates:
    meter = Meter()
    meter.start()
    try:
        log = run()
    finally:
        meter.over.set()
        meter.join()
    samples, began, ended = steady(log)
    seconds = (ended - began).total_seconds()
    own, others = meter.taken(began, ended)
    return Rates(samples / seconds, samples / own, others / seconds)


class Meter(threading.Thread):
    """Notes every fifth of a second what processor time the run has taken, and what the rest of the service."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._noted: list[tuple[datetime, float, float]] = []

    def run(self) -> None:
        mine = psutil.Process()
        while not self.over.wait(0.2):
            runs, others = 0.0, 0.0
            for process in mine.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    took = process.cpu_times()
                    is_run = "spec.json" in " ".join(process.cmdline())
                    runs, others = runs + is_run * sum(took[:2]), others + (not is_run) * sum(took[:2])
            self._noted.append((datetime.now(), runs, others))  # local, as the log has it

    def taken(self, began: datetime, ended: datetime) -> tuple[float, float]:
        """By the run and by the rest, between the notes that are nearest to two moments."""
        first, last = (min(self._noted, key=lambda note: abs(note[0] - at)) for at in (began, ended))
        return last[1] - first[1], last[2] - first[2]


def in_service(client: Client, spec: Spec) -> str:
    """The log of such a job."""
    job = client.wait(client.submit(spec)["id"])
    assert job["status"] == "succeeded", job["status_reason"]
    assert job["attempt"] == 1
    return client.logs(job["id"])


def beside(up: psutil.Process, command: list[str], spec: Spec, threads: int) -> str:
    """The log of such a run in a process of its own, while the service stands still."""
    service = [up, *up.children(recursive=True)]
    with tempfile.TemporaryDirectory(prefix="upkeep-run-") as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec))
        arguments = [str(file), *(["--folder"] if "-m" in command else []), folder]
        for process in service:
            process.send_signal(signal.SIGSTOP)
        try:
            done = subprocess.run(
                [sys.executable, *command, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=True,
            )
        finally:
            for process in reversed(service):
                process.send_signal(signal.SIGCONT)
    return done.stderr


@contextmanager
def service(folder: Path) -> Iterator[tuple[Client, psutil.Process]]:
    """`acmix up` on a PostgreSQL and a Valkey, ready."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on import where XDG_RUNTIME_DIR is not set
        from pgserver.postgres_server import get_server
    database = get_server(folder / "postgresql", cleanup_mode="delete")
    port = free_port()
    command = [sys.executable, "-c", "from service.cli import main; main()", "up", "--port", str(port)]
    up = subprocess.Popen(
        [*command, "--data", str(folder / "data")],
        env={**os.environ, "DATABASE_URL": database.get_uri()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert up.stdout is not None
        up.stdout.readline()
        with Client(f"http://127.0.0.1:{port}") as client:
            yield client, psutil.Process(up.pid)
    finally:
        up.terminate()
        up.wait()
        database.cleanup()


if __name__ == "__main__":
    main()
