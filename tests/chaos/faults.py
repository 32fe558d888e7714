"""What happens to a cluster: each fault is drawn from a seed, done, counted, and, where it lasts, undone."""

import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
from redis import Redis, RedisError

from service.store.artifacts import MODEL
from tests.chaos.cluster import LEASE_SECONDS, Cluster, Process

WEIGHTS = {
    "kill a worker": 6,
    "kill a run": 6,
    "kill a housekeeper": 2,
    "kill the api": 2,
    "stop a worker past its lease": 4,
    "stop a run": 2,
    "drain a worker": 2,
    "kill the broker": 1,
    "stop the broker": 1,
    "empty the broker": 1,
    "stop the database": 1,
    "fill the disk": 1,
    "damage a checkpoint": 1,
}


class Faults(threading.Thread):
    """One after the other, a pause between them, until `over` is set; those that last go on beside the next."""

    def __init__(self, cluster: Cluster, *, seed: int, pause_seconds: float, kinds: set[str] | None = None) -> None:
        super().__init__(daemon=True)
        self.done: Counter[str] = Counter()
        self.over = threading.Event()
        self.damaged: set[str] = set()
        self._cluster = cluster
        self._random = random.Random(seed)
        self._pause_seconds = pause_seconds
        self._kinds = [kind for kind in WEIGHTS if kinds is None or kind in kinds]
        self._lasting: dict[str, threading.Thread] = {}

    def run(self) -> None:
        while not self.over.wait(self._random.uniform(0.5, 1.5) * self._pause_seconds):
            [kind] = self._random.choices(self._kinds, [WEIGHTS[kind] for kind in self._kinds])
            if self._do(kind):
                self.done[kind] += 1
        for thread in self._lasting.values():
            thread.join()

    def _do(self, kind: str) -> bool:
        """Whether it came about."""
        at_once: dict[str, Callable[[], bool]] = {
            "kill a worker": lambda: self._any("worker").send(signal.SIGKILL),
            "kill a run": self._kill_run,
            "kill a housekeeper": lambda: self._any("housekeeper").send(signal.SIGKILL),
            "kill the api": lambda: self._any("api").send(signal.SIGKILL),
            "drain a worker": lambda: self._any("worker").send(signal.SIGTERM),
            "kill the broker": lambda: self._any("broker").send(signal.SIGKILL),
            "empty the broker": self._empty_broker,
            "damage a checkpoint": self._damage_checkpoint,
        }
        lasting: dict[str, Callable[[], None]] = {
            "stop a worker past its lease": self._stop_worker,
            "stop a run": self._stop_run,
            "stop the broker": self._stop_broker,
            "stop the database": self._stop_database,
            "fill the disk": self._fill_disk,
        }
        if kind in at_once:
            return at_once[kind]()
        if kind in self._lasting and self._lasting[kind].is_alive():
            return False
        self._lasting[kind] = threading.Thread(target=lasting[kind], daemon=True)
        self._lasting[kind].start()
        return True

    def _any(self, kind: str) -> Process:
        return self._random.choice(self._cluster.named(kind))

    def _kill_run(self) -> bool:
        runs = self._cluster.runs()
        if not runs:
            return False
        with suppress(psutil.NoSuchProcess):
            self._random.choice(runs).kill()
            return True
        return False

    def _damage_checkpoint(self) -> bool:
        """One bit of the newest that a job has, which the job's next attempt will come upon."""
        for run in self._random.sample(runs := self._cluster.runs(), len(runs)):
            with suppress(psutil.NoSuchProcess, ValueError):
                words = run.cmdline()
                job_id = Path(words[words.index("--folder") + 1]).parent.name
                kept = sorted(
                    (self._cluster.artifacts_folder / "jobs" / job_id / "checkpoints").glob("*/manifest.json")
                )
                if kept:
                    self.damaged.add(f"jobs/{job_id}/checkpoints/{kept[-1].parent.name}")
                    _flip(kept[-1].with_name(MODEL))
                    run.kill()
                    return True
        return False

    def _empty_broker(self) -> bool:
        with (
            suppress(RedisError),
            closing(Redis(unix_socket_path=self._cluster.broker_socket, socket_timeout=1)) as broker,
        ):
            broker.flushall()
            return True
        return False

    def _stop_worker(self) -> None:
        """Its runs go on: they are tied to its life, not to its pace. Then it wakes up, a zombie."""
        worker = self._any("worker")
        if worker.send(signal.SIGSTOP):
            time.sleep(LEASE_SECONDS * self._random.uniform(1.2, 2))
            worker.send(signal.SIGCONT)

    def _stop_run(self) -> None:
        runs = self._cluster.runs()
        if runs:
            with suppress(psutil.NoSuchProcess):
                run = self._random.choice(runs)
                run.suspend()
                time.sleep(self._random.uniform(0.5, 2))
                run.resume()

    def _stop_broker(self) -> None:
        broker = self._any("broker")
        broker.send(signal.SIGSTOP)
        time.sleep(self._random.uniform(2, 4))
        broker.send(signal.SIGCONT)

    def _stop_database(self) -> None:
        seconds = self._random.uniform(1, 4)
        if self._cluster.postgresql:
            self._cluster.postgresql.stop()
            time.sleep(seconds)
            self._cluster.postgresql.start()
            return
        with closing(
            sqlite3.connect(self._cluster.folder / "acmix.db", isolation_level=None, timeout=30)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    def _fill_disk(self) -> None:
        filler = self._cluster.artifacts_folder / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        time.sleep(self._random.uniform(0.5, 2))
        filler.unlink(missing_ok=True)


def _flip(file: Path) -> None:
    """A bit of what training would go on from."""
    with suppress(FileNotFoundError), file.open("r+b") as opened:
        opened.seek(-3, 2)
        byte = opened.read(1)[0]
        opened.seek(-3, 2)
        opened.write(bytes([byte ^ 1]))
