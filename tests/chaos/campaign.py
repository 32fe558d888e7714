"""A campaign: jobs posted to a cluster that is ill-treated all the while, and judged when all of them have ended.

`python -m tests.chaos.campaign --database postgresql --jobs 200 --seed 1` prints its figures.
"""

import argparse
import logging
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from service.store.database import AWAY
from service.store.reading import Reader
from service.store.states import ENDED
from tests.chaos import history, streams
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.faults import WEIGHTS, Faults
from tests.chaos.history import Record
from tests.chaos.hooks import hook
from tests.disks import small_disk
from tests.service.deployed import spec


@dataclass(frozen=True)
class Plan:
    """What a campaign is to be. `kinds` None: all faults; `without` names a guard to do without."""

    database: str
    jobs: int
    seed: int
    workers: int = 3
    steps: int = 40
    step_seconds: float = 0.05
    pause_seconds: float = 0.5
    post_every_seconds: float = 0.0
    late_seconds: float = 5.0  # then a request is given up and sent again
    cancel_share: float = 0.05
    readers: int = 4
    kinds: frozenset[str] | None = None
    without: str = ""
    clock_shifts: tuple[float, ...] = ()
    most_seconds: float = 900.0


@dataclass
class Result:
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    attempts: int = 0
    post_seconds: list[float] = field(default_factory=list)
    posts_repeated: int = 0
    streams_cut: int = 0
    events_streamed: int = 0
    told: str = ""

    def table(self) -> str:
        rows = [f"{count:6d}  {kind}" for kind, count in sorted(self.faults.items())]
        figures = (
            f"{sum(self.faults.values())} faults in {self.seconds:.0f} s; {self.attempts} attempts; "
            f"longest POST {max(self.post_seconds, default=0):.2f} s, {self.posts_repeated} sent again; "
            f"{self.streams_cut} streams cut, {self.events_streamed} events streamed; {self.told}"
        )
        return "\n".join([*rows, figures, *(f"BROKEN {fault}" for fault in self.broken), f"{len(self.broken)} broken"])


def run(plan: Plan, folder: Path) -> Result:
    """The whole of it; what it leaves lies below `folder`."""
    result, record = Result(), Record()
    with ExitStack() as stack:
        if plan.kinds is None or "fill the disk" in plan.kinds:
            stack.enter_context(small_disk(folder / "artifacts", size_bytes=64 * 2**20))
        folder.mkdir(parents=True, exist_ok=True)
        told = stack.enter_context(hook(folder))
        made = stack.enter_context(
            cluster(
                folder,
                database=plan.database,
                workers=plan.workers,
                without=plan.without,
                clock_shifts=plan.clock_shifts,
                settings=told.settings,
            )
        )
        told.ask_for(made.http_url)
        began = time.monotonic()
        faults = Faults(made, seed=plan.seed, pause_seconds=plan.pause_seconds, kinds=plan.kinds)
        clients = _Clients(made, plan, record, result)
        faults.start()
        clients.start()
        _see_to_the_end(made, plan, record, result, clients)
        faults.over.set()
        faults.join()
        clients.join()
        result.faults, record.damaged = faults.done, faults.damaged
        result.seconds = time.monotonic() - began
        time.sleep(1)  # whoever still believes to hold a job finds out
        result.broken += [f"an orphan: process {pid}" for pid in made.orphans()]
        result.broken += history.faults(made.engine, made.artifacts, record)
        jobs = history.all_jobs(made.engine)
        result.broken += told.broken(jobs)
        result.told = told.figures()
        result.attempts = sum(job.attempt for job in jobs.values())
    return result


def _see_to_the_end(made: Cluster, plan: Plan, record: Record, result: Result, clients: "_Clients") -> None:
    """Until every accepted job has ended; notes how each stood when it was first seen so."""
    give_up_at = time.monotonic() + plan.most_seconds
    reader = Reader(made.engine)
    while time.monotonic() < give_up_at:
        waiting = [job_id for job_id in list(record.accepted) if job_id not in record.first_seen_ended]
        for job_id in waiting:
            with suppress(*AWAY):
                job = reader.job(job_id)
                if job.status in ENDED:
                    record.first_seen_ended[job_id] = history.as_ended(reader, job)
        if not waiting and clients.all_posted():
            return
        time.sleep(0.3)
    result.broken.append(f"{len(waiting)} jobs have not ended after {plan.most_seconds:.0f} s")
    clients.over.set()


class _Clients:
    """Those who post, cancel and read, and do not care for what happens to the service."""

    def __init__(self, made: Cluster, plan: Plan, record: Record, result: Result) -> None:
        self.over = threading.Event()
        self._made = made
        self._plan = plan
        self._record = record
        self._result = result
        self._random = random.Random(plan.seed + 1)
        self._posting = threading.Thread(target=self._post_all, daemon=True)
        self._reading = [
            threading.Thread(target=self._read, args=(number,), daemon=True) for number in range(plan.readers)
        ]

    def start(self) -> None:
        for thread in (self._posting, *self._reading):
            thread.start()

    def join(self) -> None:
        for thread in (self._posting, *self._reading):
            thread.join(60)

    def all_posted(self) -> bool:
        return not self._posting.is_alive()

    def _post_all(self) -> None:
        labels = {"steps": str(self._plan.steps), "step_seconds": str(self._plan.step_seconds)}
        with httpx.Client(base_url=self._made.http_url, timeout=self._plan.late_seconds) as http:
            for number in range(self._plan.jobs):
                body = {**spec(), "name": f"job {number}", "metadata": labels, "priority": self._random.randint(-1, 1)}
                job_id = self._post(http, body)
                if job_id is None:
                    return
                self._record.accepted[job_id] = self._plan.steps
                if self._random.random() < self._plan.cancel_share:
                    self._record.cancelled.add(job_id)
                    threading.Timer(self._random.uniform(0, 5), self._cancel, [job_id]).start()
                time.sleep(self._plan.post_every_seconds)

    def _post(self, http: httpx.Client, body: dict[str, Any]) -> str | None:
        """Again under the same key until it is known to have been taken."""
        key = uuid4().hex
        while not self.over.is_set():
            began = time.monotonic()
            with suppress(httpx.HTTPError):
                answer = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
                if answer.status_code in (200, 201):
                    self._result.post_seconds.append(time.monotonic() - began)
                    return str(answer.json()["id"])
                if answer.status_code != 503:
                    self._result.broken.append(f"POST was answered {answer.status_code}: {answer.text[:300]}")
            self._result.posts_repeated += 1
            time.sleep(0.2)
        return None

    def _cancel(self, job_id: str) -> None:
        while not self.over.is_set():
            with suppress(httpx.HTTPError):
                answer = httpx.post(f"{self._made.http_url}/v1/jobs/{job_id}/cancel", timeout=self._plan.late_seconds)
                if answer.status_code in (200, 202):
                    return
            time.sleep(0.2)

    def _read(self, number: int) -> None:
        """Streams of one job after the other."""
        drawn = random.Random(self._plan.seed + 100 + number)
        while not self.over.is_set() and not self.all_posted():
            if self._record.accepted:
                job_id = drawn.choice(list(self._record.accepted))
                reading = streams.read(self._made.http_url, job_id, drawn, self.over)
                self._result.streams_cut += reading.cut
                self._result.events_streamed += reading.last
                if reading.gaps:
                    self._result.broken.append(f"{job_id}: in a stream {reading.gaps}")
            time.sleep(0.2)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign", description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pause-seconds", type=float, default=0.4)
    parser.add_argument("--clock-shifts", type=float, nargs="*", default=[], help="of workers, in seconds")
    parser.add_argument("--kinds", nargs="*", choices=list(WEIGHTS), help="faults; all of them without")
    parser.add_argument("--without", default="", help="a guard to do without, which must break something")
    parser.add_argument("--most-seconds", type=float, default=3000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(argv)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="campaign-"))
    logging.basicConfig(level=logging.WARNING)
    plan = Plan(
        database=given.database,
        jobs=given.jobs,
        seed=given.seed,
        workers=given.workers,
        steps=given.steps,
        pause_seconds=given.pause_seconds,
        kinds=frozenset(given.kinds) if given.kinds else None,
        without=given.without,
        clock_shifts=tuple(given.clock_shifts),
        most_seconds=given.most_seconds,
    )
    result = run(plan, folder)
    print(f"{given.database}, seed {given.seed}, {given.jobs} jobs; logs lie in {folder}")
    print(result.table())
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
