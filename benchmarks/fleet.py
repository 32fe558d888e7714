"""A simulated fleet under the real scheduler: what waits for how long, and what stands idle.

    python -m benchmarks.fleet [--slots 1000] [--jobs 20000] [--days 4]

Workers of 8 slots and the clock are simulated, and so is what jobs take; the ledger, its claims and PostgreSQL, a
server of its own from the pgserver wheel, are real. Jobs of 1 to 8 GPUs of ten tenants come in bursts and ask for 95 %
of the fleet. Printed, beside the same work done strictly in order and by EASY backfill that knows how long each job
takes: how much of the fleet is at work, how long jobs wait by their size and by their tenant, how long one waited after
it was blocked, and what a claim takes.
"""

import argparse
import heapq
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Protocol

from sqlalchemy import Engine, event, select, text, update

from acmix import spec
from acmix.catalog import Catalog, Device
from benchmarks.stack import analyse, postgresql
from benchmarks.workload import DAY, Done, Work, in_strict_order, made, with_backfill
from service.store._reservations import RESERVED_PART
from service.store.database import connect, migrate, writing
from service.store.ledger import RESERVE_AFTER_SECONDS, Ledger
from service.store.rows import Claim, Outcome, WorkerCard
from service.store.tables import jobs, reservations, workers

SLOTS = 8  # of a worker
BEGINS_AT = datetime(2030, 1, 1, tzinfo=UTC)
TICK = 60.0  # between two sweeps, and two signs of life of every worker
LOOK_TICKS = 5  # between two looks of a worker that has free slots and was not rung
FOR_EVER = 1e8
GUESS = 0.25  # of the logarithm of what progress makes believe of a run's length
MISCOUNTED = 0.1  # of its looks a worker counts all of its slots as free, whatever it has at work
SPEC = {"backbone": {"name": "resnet26"}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}}
CARD = Device(index=0, name="H200", memory_bytes=2**37)


class Clock(Protocol):
    """The database's, which stands until it is set."""

    def set(self, at: datetime) -> None: ...


class ClockOfPostgreSQL:
    """A sequence that counts microseconds, read by a function that hides PostgreSQL's own behind the search path."""

    SEARCH_PATH = "-csearch_path=simulated,pg_catalog,public"
    UNHURRIED = "-csynchronous_commit=off"  # of whatever is not measured

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.execution_options(isolation_level="AUTOCOMMIT").connect()
        for statement in (
            "CREATE SCHEMA simulated",
            "CREATE SEQUENCE simulated.microseconds",
            "CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql AS"
            " 'SELECT timestamptz ''epoch'' + last_value * interval ''1 microsecond'' FROM simulated.microseconds'",
        ):
            self.connection.execute(text(statement))

    def close(self) -> None:
        self.connection.execute(text("DROP SCHEMA simulated CASCADE"))
        self.connection.close()

    def set(self, at: datetime) -> None:
        microseconds = round(at.timestamp() * 1e6)
        self.connection.execute(text("SELECT setval('simulated.microseconds', :now)"), {"now": microseconds})


class ClockOfSQLite:
    """A function in the place of SQLite's own, on every connection."""

    def __init__(self, engine: Engine) -> None:
        self.at = BEGINS_AT
        event.listen(engine, "connect", self._put)

    def set(self, at: datetime) -> None:
        self.at = at

    def _put(self, connection: Any, _record: Any) -> None:
        connection.create_function("strftime", -1, self._strftime)

    def _strftime(self, _form: str, _now: str, ago: str = "-0 seconds") -> str:
        return f"{self.at - timedelta(seconds=float(ago.split(maxsplit=1)[0][1:])):%Y-%m-%dT%H:%M:%S.%fZ}"


@dataclass
class Books:
    """Kept beside the database, and compared with what it says."""

    holder: dict[tuple[int, int], int] = field(default_factory=dict)  # of a worker's slot: the number of its work
    ends: dict[tuple[int, int], float] = field(default_factory=dict)  # of its run; what that told, where it is later
    done: list[Done] = field(default_factory=list)
    twice: int = 0
    blocked: list[tuple[float, float]] = field(default_factory=list)  # since when a job was, and when it began
    reserved: dict[int, tuple[float, float]] = field(default_factory=dict)  # work: since when, and its bound
    kept: list[tuple[float, float]] = field(default_factory=list)  # how long a job was reserved for, and its bound
    claim_seconds: list[float] = field(default_factory=list)

    def begin(self, work: Work, now: float, worker: int, slots: Sequence[int], told_seconds: float) -> None:
        for slot in slots:
            self.twice += (worker, slot) in self.holder
            self.holder[worker, slot] = work.number
            self.ends[worker, slot] = now + max(work.seconds, told_seconds)
        self.done.append(Done(work, now, worker))
        if work.number in self.reserved:
            since, until = self.reserved.pop(work.number)
            self.kept.append((now - since, until - since))

    def end(self, worker: int, slots: Sequence[int]) -> None:
        for slot in slots:
            del self.holder[worker, slot], self.ends[worker, slot]

    def reserve(self, work: Work, now: float, worker: int) -> None:
        """It begins when every run that is there has ended, at the latest, and what was sure to end before it could.

        What these told of themselves counts as well, for by that it was judged what else would end before.
        """
        if work.number not in self.reserved:
            self.reserved[work.number] = now, max(self.ends.get((worker, slot), now) for slot in range(SLOTS))

    def kept_too_long(self) -> int:
        """Reservations that lasted longer than the longest run in front of the job, as it in truth was."""
        return sum(kept > bound + TICK for kept, bound in self.kept)

    def past_the_bound(self, fleet: int) -> int:
        """Jobs that waited longer, once blocked, than was promised: until they could be reserved for, and the longest
        run for themselves and once more for each round of reservations that others had before them."""
        at_once = max(1, round(RESERVED_PART * fleet))
        run = max(each.work.seconds for each in self.done)
        late = 0
        for since, begins in self.blocked:
            before = sum(other <= since < other_begins for other, other_begins in self.blocked) - 1
            late += begins - since > RESERVE_AFTER_SECONDS + 2 * TICK + (1 + before // at_once) * run
        return late


class Simulation:
    """Events in order of time; whatever the ledger is asked for is asked as a worker, an API or a housekeeper does."""

    def __init__(
        self, engine: Engine, clock: Clock, work: Sequence[Work], fleet: int, *, claims_on: Engine | None = None
    ) -> None:
        self.engine, self.clock, self.work = engine, clock, work
        self.random, self.miscounts = Random(0), Random(0)  # so that guesses do not depend on what is miscounted
        self.ledger = Ledger(engine, lease_seconds=FOR_EVER)
        self.claiming = Ledger(claims_on or engine, lease_seconds=FOR_EVER)
        self.waiting: Counter[int] = Counter()  # queued jobs by their slots
        self.free = [set(range(SLOTS)) for _ in range(fleet)]
        self.books = Books()
        self.by_id: dict[str, Work] = {}
        self.begun: dict[str, int] = {}
        self.keeping: dict[str, str] = {}  # for which job each reserved worker is
        self.order = count()
        self.events: list[tuple[float, int, str, Any]] = []
        self.now = 0.0

    def run(self) -> Books:
        self._at(0.0)
        for worker in range(len(self.free)):
            devices = [CARD.model_copy(update={"index": index}) for index in range(SLOTS)]
            self.ledger.enrol(WorkerCard(_name(worker), _name(worker), SLOTS, devices, {}, Catalog()))
        for each in self.work:
            self._plan(each.arrives, "submit", each)
        self._plan(TICK, "tick", 1)
        while len(self.books.done) < len(self.work) or self.begun:
            at, _, kind, what = heapq.heappop(self.events)
            self._at(at)
            getattr(self, f"_{kind}")(what)
        return self.books

    def _submit(self, work: Work) -> None:
        resources = {"gpus": work.slots, "max_runtime_seconds": work.limit_seconds}
        resolved = spec.parse({**SPEC, "resources": resources}).dump()
        job, _ = self.ledger.of(work.tenant).submit(resolved, resolved)
        self.by_id[job.id] = work
        self.waiting[work.slots] += 1
        fitting = [worker for worker, free in enumerate(self.free) if len(free) >= work.slots]
        others = [worker for worker, free in enumerate(self.free) if 0 < len(free) < work.slots]
        for worker in self.random.sample(fitting, len(fitting)) or self.random.sample(others, min(1, len(others))):
            self._look(worker)
            if job.id in self.begun:
                return

    def _end(self, what: tuple[int, Claim]) -> None:
        worker, claim = what
        self.ledger.finish(claim.job.id, claim.job.attempt, Outcome("succeeded"))
        self.books.end(worker, claim.slots)
        self.free[worker] |= set(claim.slots)
        del self.begun[claim.job.id]
        self._look(worker)

    def _tick(self, number: int) -> None:
        """What cannot find anything is left out: a sweep and looks while nothing waits, looks while nothing fits."""
        self._plan(self.now + TICK, "tick", number + 1)
        if not self.waiting.total():
            return
        with writing(self.engine).begin() as connection:
            connection.execute(update(workers).values(seen_at=self._time()))
        self.ledger.sweep()
        self._note_reservations()
        if number % LOOK_TICKS == 0:
            for worker, free in enumerate(self.free):
                if any(size <= len(free) for size, many in self.waiting.items() if many):
                    self._look(worker)

    def _look(self, worker: int) -> None:
        while self.free[worker] and self.waiting.total():
            began = time.perf_counter()
            free = range(SLOTS) if self.miscounts.random() < MISCOUNTED else sorted(self.free[worker])
            claim = self.claiming.claim(_name(worker), free=free, slots=SLOTS, has_gpus=True, can_run=lambda *_: True)
            self.books.claim_seconds.append(time.perf_counter() - began)
            if claim is None:
                return
            self._begin(worker, claim)

    def _begin(self, worker: int, claim: Claim) -> None:
        job, work = claim.job, self.by_id[claim.job.id]
        self.free[worker] -= set(claim.slots)
        self.waiting[work.slots] -= 1
        self.begun[job.id] = worker
        told_seconds = self._tell_progress(job.id, work)
        self.books.begin(work, self.now, worker, claim.slots, told_seconds)
        if job.blocked_at is not None:
            self.books.blocked.append(((job.blocked_at - BEGINS_AT).total_seconds(), self.now))
        self._plan(self.now + work.seconds, "end", (worker, claim))
        released = [each for each, kept in self.keeping.items() if kept == job.id and each != _name(worker)]
        self.keeping = {each: kept for each, kept in self.keeping.items() if kept != job.id}
        for each in released:
            self._look(int(each.removeprefix("worker-")))

    def _tell_progress(self, job_id: str, work: Work) -> float:
        """As the projection of its first progress leaves it, which is not quite what it will take; how many seconds."""
        guess = work.seconds * self.random.lognormvariate(0.0, GUESS)
        expected = {"expected_end_at": self._time() + timedelta(seconds=guess)}
        with writing(self.engine).begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(**expected))
        return min(guess, work.limit_seconds or guess)

    def _note_reservations(self) -> None:
        with self.engine.connect() as connection:
            found = connection.execute(select(reservations)).mappings().all()
        self.keeping = {row["worker"]: row["job"] for row in found}
        for row in found:
            self.books.reserve(self.by_id[row["job"]], self.now, int(row["worker"].removeprefix("worker-")))

    def _plan(self, at: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (at, next(self.order), kind, what))

    def _at(self, now: float) -> None:
        self.now = now
        self.clock.set(self._time())

    def _time(self) -> datetime:
        return BEGINS_AT + timedelta(seconds=self.now)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--days", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work, fleet = made(given.slots, given.jobs, given.days, given.seed), given.slots // SLOTS
    with tempfile.TemporaryDirectory(prefix="acmix-fleet-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        with postgresql(Path(folder)) as server:
            books = simulated(server.get_uri(), work, fleet)
    print(f"{len(work)} jobs, {fleet} workers of {SLOTS} slots, {given.days:g} days")
    tell("this scheduler", books.done, given.slots, given.days)
    tell("strict order", in_strict_order(work, fleet, SLOTS), given.slots, given.days)
    tell("EASY backfill", with_backfill(work, fleet, SLOTS), given.slots, given.days)
    tell_promises(books, fleet)


def simulated(url: str, work: Sequence[Work], fleet: int) -> Books:
    """The work, done by a fleet of so many workers in a database whose clock is the simulation's."""
    engine = connect(url)
    migrate(engine)
    if engine.dialect.name == "sqlite":
        engine.dispose()  # whoever connects from now on is told the simulation's time
        return Simulation(engine, ClockOfSQLite(engine), work, fleet).run()
    clock = ClockOfPostgreSQL(engine)
    options = f"{url}{'&' if '?' in url else '?'}options={clock.SEARCH_PATH}"
    claiming, others = connect(options), connect(f"{options}%20{clock.UNHURRIED}")
    analyse(engine)
    try:
        return Simulation(others, clock, work, fleet, claims_on=claiming).run()
    finally:
        claiming.dispose()
        others.dispose()
        clock.close()
        engine.dispose()


def tell(what: str, done: Sequence[Done], slots: int, days: float) -> None:
    print(f"\n{what}: {100 * at_work(done, slots, days):.1f} % of the fleet at work while jobs came,", end=" ")
    print(f"the last ended after {max(each.ends for each in done) / DAY:.2f} days; hours waited, median, p95, most:")
    by_size: defaultdict[str, list[float]] = defaultdict(list)
    for each in done:
        by_size["all"].append(each.waited / 3600)
        by_size[f"{each.work.slots} slots"].append(each.waited / 3600)
    for size in sorted(by_size):
        waits = sorted(by_size[size])
        print(f"  {size}: {statistics.median(waits):.2f}, {waits[int(0.95 * len(waits))]:.2f}, {waits[-1]:.2f}")
    by_tenant: defaultdict[str, list[float]] = defaultdict(list)
    held: Counter[str] = Counter()
    for each in done:
        by_tenant[each.work.tenant].append(each.waited / 3600)
        held[each.work.tenant] += round(each.work.slots * each.work.seconds / 3600)
    told = [f"{held[tenant]} h {statistics.mean(by_tenant[tenant]):.2f}" for tenant in sorted(by_tenant)]
    print(f"  slot hours of each tenant, and how long its jobs waited on average: {', '.join(told)}")


def at_work(done: Sequence[Done], slots: int, days: float) -> float:
    """Which part of the fleet, over the days in which jobs came."""
    until = days * DAY
    busy = sum(each.work.slots * (min(each.ends, until) - min(each.begins, until)) for each in done)
    return busy / (slots * until)


def tell_promises(books: Books, fleet: int) -> None:
    took = sorted(books.claim_seconds)
    p95 = took[int(0.95 * len(took))]
    longest = max((begins - since for since, begins in books.blocked), default=0.0) / 3600
    print(f"\nslots given twice: {books.twice}")
    print(f"blocked: {len(books.blocked)} jobs, for {longest:.2f} hours at most; {len(books.kept)} had a reservation,")
    print(f"  which lasted {max((kept for kept, _ in books.kept), default=0.0) / 3600:.2f} hours at most, ", end="")
    print(f"{books.kept_too_long()} longer than the runs in front; {books.past_the_bound(fleet)} past the bound of all")
    print(f"claims: {len(took)}, median {1e3 * took[len(took) // 2]:.1f} ms, p95 {1e3 * p95:.1f} ms")


def _name(worker: int) -> str:
    return f"worker-{worker}"


if __name__ == "__main__":
    main()
