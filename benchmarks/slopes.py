"""What each thing that the service does costs the database: the slopes that docs/scale.md computes with.

    python -m benchmarks.slopes [--times 300] [--jobs 50] [--layers 8]

A PostgreSQL of its own from the pgserver wheel, with its usual durability, and the real ledger. Every write that a job
and its worker make is done so many times, by turns over several running jobs; printed are the time that it took its
caller (median), processor time of the caller and of PostgreSQL, bytes of its log, and bytes that its tables and their
indexes have grown by. Below stand sums: what a running job takes each second, and each job for its life.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Engine, text

from acmix import events, spec
from acmix.menu import catalog
from acmix.resolve import resolve
from benchmarks.stack import analyse, postgresql
from service.store.database import connect, migrate
from service.store.ids import new_id
from service.store.ledger import Ledger
from service.store.rows import Checkpoint, Job, Outcome, WorkerCard

STEPS_A_SECOND = 10
LOG_LINES_A_SECOND = 2
GPU = {"memory_used_bytes": 2**35, "utilization": 0.93, "temperature_celsius": 61, "put_aside": None}
LOAD = {
    "free_slots": 0,
    "devices": [{"index": index, "jobs": ["job_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"], **GPU} for index in range(8)],
    "cpu": {"load": 8.1, "memory_used_bytes": 2**36, "memory_bytes": 2**38},
}
RAW = {"backbone": {"name": "resnet26"}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}


@dataclass(frozen=True)
class Cost:
    """Of one time, in seconds and bytes."""

    wall: float
    caller: float
    server: float
    wal: float
    stored: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> "Cost":
        return Cost(*(times * each for each in vars(self).values()))

    def __str__(self) -> str:
        times = f"{1e3 * self.wall:8.2f} ms {1e3 * self.caller:8.2f} ms {1e3 * self.server:8.2f} ms"
        return f"{times} {self.wal / 1024:10.1f} KiB {self.stored / 1024:9.1f} KiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acmix-slopes-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with postgresql(Path(folder)) as server:
            engine = connect(server.get_uri())
            migrate(engine)
            postmaster = psutil.Process(int((Path(folder) / "postgresql" / "postmaster.pid").read_text().split()[0]))
            tell(Slopes(engine, postmaster, given.jobs, given.layers), given.times)
            engine.dispose()


class Slopes:
    """Running jobs, and what is written of them."""

    def __init__(self, engine: Engine, postmaster: psutil.Process, jobs: int, layers: int) -> None:
        self.engine = engine
        self.postmaster = postmaster
        self.slot = 0
        self.ledger = Ledger(engine)
        self.layers = [f"layer{number}.0.conv2" for number in range(layers)]
        self.ledger.enrol(WorkerCard("worker-1", "host", 8, [], {"acmix": "0.1"}, catalog()))
        self.resolved = resolve(spec.parse(RAW), catalog()).dump()
        for _ in range(jobs):
            self.submit()
        self.running = [self.claim() for _ in range(jobs)]
        self.step = 0
        self.turn = 0

    def submit(self) -> None:
        self.ledger.submit(RAW, self.resolved)

    def claim(self) -> Job:
        claim = self.ledger.claim("worker-1", free=[self.slot], slots=10**6, has_gpus=False, can_run=lambda *_: True)
        self.slot += 1
        assert claim is not None
        return claim.job

    def next_job(self) -> Job:
        self.turn += 1
        return self.running[self.turn % len(self.running)]

    def record(self) -> None:
        """What a run says in a second: curves of ten steps, how far it is, a trace of all layers."""
        first = 1 + STEPS_A_SECOND * (self.turn // len(self.running))
        self.ledger.record(self.next_job().id, 1, self._said(range(first, first + STEPS_A_SECOND)))

    def _said(self, steps: range) -> list[events.Event]:
        curves = {name: [0.5] * STEPS_A_SECOND for name in ("train/loss", "train/accuracy", "train/lr")}
        figures = dict.fromkeys(("alpha", "beta", "attention_rms", "convolution_rms"), 0.123456789)
        return [
            events.metrics(steps, curves, epoch=1),
            events.trace(steps[-1], dict.fromkeys(self.layers, figures)),
            events.progress("training", epoch=1, epochs=100, step=steps[-1], steps=10**6, samples_per_second=1280.0),
        ]

    def record_10(self) -> None:
        """What it says in ten seconds, at once."""
        first = 1 + 10 * STEPS_A_SECOND * (1000 + self.turn // len(self.running))
        seconds = [range(first + 10 * second, first + 10 * second + STEPS_A_SECOND) for second in range(10)]
        self.ledger.record(self.next_job().id, 1, [event for steps in seconds for event in self._said(steps)])

    def log(self) -> None:
        line = "2026-01-01 00:00:00,000 INFO progress: epoch 1 of 100, step 10 of 1000, loss 0.5000, 1280 samples/s"
        self.ledger.log(self.next_job().id, 1, [line] * LOG_LINES_A_SECOND)

    def wish(self) -> None:
        self.ledger.wish(self.next_job().id, 1)

    def renew(self) -> None:
        self.ledger.heartbeat(self.next_job().id, 1)

    def commit(self) -> None:
        job = self.next_job()
        self.step += 1
        saved = Checkpoint(
            id=new_id("ckpt"),
            job=job.id,
            attempt=1,
            epoch=1,
            step=self.step,
            kind="epoch",
            metrics={"val/accuracy": 0.5},
            size_bytes=10**8,
            sha256="0" * 64,
            key=f"jobs/{job.id}/checkpoints/{self.step}",
            stored_bytes=3 * 10**8,
        )
        self.ledger.commit_checkpoint(
            job.id,
            1,
            saved,
            events.Event("checkpoint", "step", {"step": self.step, "best": False}),
            keep_best=1,
            keep_latest=1,
            metric="val/accuracy",
            larger_is_better=True,
        )

    def seen(self) -> None:
        self.ledger.seen("worker-1", 8, LOAD)

    def begin(self) -> None:
        self.running.append(self.claim())

    def finish(self) -> None:
        self.ledger.finish(self.running.pop().id, 1, Outcome("succeeded"))

    def measured(self, act: Callable[[], None], times: int) -> Cost:
        act()
        before, walls = self._used(), []
        for _ in range(times):
            began = time.perf_counter()
            act()
            walls.append(time.perf_counter() - began)
        used = [(now - then) / times for then, now in zip(before, self._used(), strict=True)]
        return Cost(statistics.median(walls), *used)

    def _used(self) -> tuple[float, float, float, float]:
        """Processor time of this process and of PostgreSQL, its log, its size; what it has to write is written."""
        with self.engine.connect() as connection:
            wal = connection.execute(text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")).scalar_one()
            size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        processes = [self.postmaster, *self.postmaster.children(recursive=True)]
        server = sum(sum(each.cpu_times()[:2]) for each in processes)
        return time.process_time(), server, float(wal), float(size)


def tell(slopes: Slopes, times: int) -> None:
    analyse(slopes.engine)
    print(f"{os.cpu_count()} cores, {len(slopes.running)} jobs, {len(slopes.layers)} layers; each {times} times")
    print(f"{'':34} {'takes':>11} {'caller CPU':>11} {'server CPU':>11} {'log':>14} {'stored':>13}")
    costs = {}
    # in an order that leaves each what it needs: what begins was submitted, what ends was begun
    acts = ("wish", "renew", "record", "record_10", "log", "commit", "seen", "submit", "begin", "finish")
    for name in acts:
        costs[name] = slopes.measured(getattr(slopes, name), times)
        print(f"{name:34} {costs[name]}", flush=True)
    second = costs["wish"] + costs["renew"] * 0.2 + costs["record"] + costs["log"] + costs["commit"] * (1 / 600)
    life = costs["submit"] + costs["begin"] + costs["finish"]
    print(f"{'a running job, each second':34} {second}")
    print(f"{'a job, once':34} {life}")
    print(f"{'a worker, each second':34} {costs['seen'] * (1 / 15)}")


if __name__ == "__main__":
    main()
