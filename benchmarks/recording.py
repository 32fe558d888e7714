"""What tracing a training and recording it into PostgreSQL cost, by the step.

    python -m benchmarks.recording [--rounds 3] [--epochs 20] [--slice 2] [--itself]

Two runs of one spec, which save checkpoints when they evaluate and no more, with as many threads as the service
gives: a job of `acmix up` on PostgreSQL and Valkey whose layers are traced every ten steps and whose events, curves,
traces, log and checkpoints are stored; and the bare loop, `for event in acmix.run(...)`, without a trace, which throws
its events away.

Both are under way at once, and by turns of `--slice` seconds one of them stands still (SIGSTOP), the whole service
with its job: what else the machine does, which is a tenth more or less from one minute to the next, so falls on both
alike. A run's rate is that of its steady state, from the end of the first epoch to the end of the last, evaluations
included, over the time that it had of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals

import psutil

from benchmarks.overhead import steady
from benchmarks.upkeep import LOOP, NEVER, Spec, in_service, service
from service.cli.up import EXAMPLE
from service.client import Client

UNTRACED = {"every_steps": 100_000}


@dataclass(frozen=True)
class Side:
    """One of the two: what is to stand still with all its children, and what gives its log at its end."""

    root: psutil.Process
    run: Callable[[], str]


@dataclass
class Turns:
    """When each of two runs was let on; those of a run do not overlap."""

    taken: dict[str, list[tuple[datetime, datetime]]] = field(default_factory=lambda: {"recorded": [], "bare": []})

    def add(self, name: str, began: datetime) -> None:
        self.taken[name].append((began, datetime.now()))  # local, as the log has it

    def seconds(self, name: str, began: datetime, ended: datetime) -> float:
        """What a run had of the time between two moments."""
        parts = ((max(began, first), min(ended, last)) for first, last in self.taken[name])
        return sum((last - first).total_seconds() for first, last in parts if last > first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--slice", type=float, default=2.0, help="seconds of a turn")
    parser.add_argument("--itself", action="store_true", help="the bare loop beside itself: what the same differ by")
    given = parser.parse_args()
    spec: Spec = {**EXAMPLE, "training": {"epochs": given.epochs}, "checkpoints": NEVER}
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    print(f"{os.cpu_count()} cores, {threads} threads a run, {given.epochs} epochs of the example; samples a second")
    costs = []
    with tempfile.TemporaryDirectory(prefix="recording-") as folder, service(Path(folder)) as (client, up):
        in_service(client, {**spec, "training": {"epochs": 2}})  # until then a new service is still setting up
        for _ in range(given.rounds):
            with bare(spec, threads) as second, bare(spec, threads) if given.itself else job(client, up, spec) as first:
                rates = side_by_side({"recorded": first, "bare": second}, given.slice)
            costs.append(rates["bare"] / rates["recorded"] - 1)
            told = "  ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
            print(f"  {told}  {costs[-1]:.2%}  load {os.getloadavg()[0]:.1f}", flush=True)
    told = f"{statistics.median(costs):.2%} ({min(costs):.2%} to {max(costs):.2%})"
    print(f"tracing and recording cost of a step's time, median of {len(costs)}: {told}")


@contextmanager
def job(client: Client, up: psutil.Process, spec: Spec) -> Iterator[Side]:
    """A job that is traced and recorded; its process is the service with all that it starts."""
    yield Side(up, lambda: in_service(client, {**spec, "trace": {"every_steps": 10}}))


@contextmanager
def bare(spec: Spec, threads: int) -> Iterator[Side]:
    """The bare loop, which has begun."""
    with tempfile.TemporaryDirectory(prefix="recording-bare-") as folder:
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps({**spec, "trace": UNTRACED}))
        loop = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(file), folder],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Side(psutil.Process(loop.pid), lambda: loop.communicate()[1])
        finally:
            loop.kill()
            loop.wait()


def side_by_side(sides: dict[str, Side], seconds: float) -> dict[str, float]:
    """Samples a second of each."""
    logs: dict[str, str] = {}

    def run(name: str) -> None:
        logs[name] = sides[name].run()

    threads = {name: threading.Thread(target=run, args=(name,)) for name in sides}
    for thread in threads.values():
        thread.start()
    turns = by_turns(threads, {name: side.root for name, side in sides.items()}, seconds)
    rates = {}
    for name, log in logs.items():
        samples, began, ended = steady(log)
        rates[name] = samples / turns.seconds(name, began, ended)
    return {name: rates[name] for name in sides}


def by_turns(threads: dict[str, threading.Thread], roots: dict[str, psutil.Process], seconds: float) -> Turns:
    """Let one on while the other stands still, until both have ended."""
    turns = Turns()
    _tell(roots["bare"], SIGSTOP)
    name = "recorded"
    while any(thread.is_alive() for thread in threads.values()):
        began = datetime.now()
        threads[name].join(seconds)
        turns.add(name, began)
        other = "bare" if name == "recorded" else "recorded"
        if threads[other].is_alive():
            if threads[name].is_alive():
                _tell(roots[name], SIGSTOP)
            _tell(roots[other], SIGCONT)
            name = other
    _tell(roots["recorded"], SIGCONT)
    return turns


def _tell(root: psutil.Process, what: Signals) -> None:
    """Those who start others first when they are to stand still, and last when they are to go on."""
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes if what == SIGSTOP else reversed(processes):
        try:
            process.send_signal(what)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    main()
