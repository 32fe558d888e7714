"""The work of a simulated fleet, and two ways to have it done without a database: strict order, and EASY backfill."""

import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

HOUR = 3600.0
DAY = 24 * HOUR
SIZES = {1: 0.45, 2: 0.20, 4: 0.20, 8: 0.15}  # slots, and which part of the jobs asks for so many
TENANTS = 10
SPREAD = 1.0  # of the logarithm of how long jobs take
MOST_SECONDS = DAY
LOAD = 0.95  # of the fleet, over the days in which the jobs come
BURST = 25.0  # jobs of one tenant at a time, on average
AT_ONCE = 0.04  # of the jobs are there at the beginning, or the first hours would be empty
WITH_LIMIT = 0.5  # of the jobs say how long they may take


@dataclass(frozen=True)
class Work:
    """A job to come; times are seconds since the beginning, `limit_seconds` is what its spec says, if anything."""

    number: int
    tenant: str
    slots: int
    seconds: float
    arrives: float
    limit_seconds: float | None


@dataclass(frozen=True)
class Done:
    """A job that was begun."""

    work: Work
    begins: float
    worker: int

    @property
    def ends(self) -> float:
        return self.begins + self.work.seconds

    @property
    def waited(self) -> float:
        return self.begins - self.work.arrives


def made(slots: int, jobs: int, days: float, seed: int = 0) -> list[Work]:
    """In order of arrival: bursts of tenants, a few of whom have most of the jobs; together LOAD of the fleet."""
    random = Random(seed)
    sizes = random.choices(list(SIZES), list(SIZES.values()), k=jobs)
    took = [min(random.lognormvariate(0.0, SPREAD), MOST_SECONDS / HOUR) for _ in sizes]
    scale = LOAD * slots * days * DAY / sum(size * hours for size, hours in zip(sizes, took, strict=True))
    found, arrives, tenant, left = [], 0.0, "", 0
    for number, (size, hours) in enumerate(zip(sizes, took, strict=True)):
        if not left:
            [tenant] = random.choices([f"tenant-{n}" for n in range(TENANTS)], [1 / (1 + n) for n in range(TENANTS)])
            left = 1 + int(random.expovariate(1 / BURST))
            arrives = 0.0 if number < AT_ONCE * jobs else random.uniform(0.0, days * DAY)
        left -= 1
        seconds = min(scale * hours, MOST_SECONDS)
        limit = min(seconds * random.uniform(1.1, 3.0), 2 * MOST_SECONDS) if random.random() < WITH_LIMIT else None
        found.append((arrives + random.uniform(0.0, 60.0), tenant, size, seconds, limit))
    return [
        Work(number, tenant, size, seconds, arrives, limit)
        for number, (arrives, tenant, size, seconds, limit) in enumerate(sorted(found))
    ]


def in_strict_order(work: Sequence[Work], workers: int, slots: int) -> list[Done]:
    """First come, first served: while the first does not fit, nobody is served."""
    return _simulated(work, workers, slots, backfills=False)


def with_backfill(work: Sequence[Work], workers: int, slots: int) -> list[Done]:
    """EASY: others go before the first where they do not delay it; how long each takes is known to the second."""
    return _simulated(work, workers, slots, backfills=True)


def _simulated(work: Sequence[Work], workers: int, slots: int, *, backfills: bool) -> list[Done]:
    fleet = _Fleet(work, workers, slots)
    queue: deque[Work] = deque()
    while fleet.events:
        now, _, worker, each = heapq.heappop(fleet.events)
        if worker < 0:
            queue.append(each)
        else:
            fleet.end(each, now, worker)
        if fleet.events and fleet.events[0][0] == now:
            continue
        while queue and (at := fleet.best(queue[0].slots)) is not None:
            fleet.begin(queue.popleft(), now, at)
        if queue and backfills and any(fleet.free):
            queue = _backfilled(fleet, queue, now)
    return fleet.done


def _backfilled(fleet: "_Fleet", queue: Sequence[Work], now: float) -> deque[Work]:
    """Who still waits when all have begun that do not delay the first, for whom one worker is kept."""
    first, *others = queue
    when, kept = min((fleet.fits_at(worker, first.slots), worker) for worker in range(len(fleet.free)))
    at_then = fleet.free_at(kept, when) - first.slots
    later, most = deque([first]), max(fleet.free)
    for other in others:
        at = fleet.best(other.slots, but=kept) if other.slots <= most else None
        if at is None and other.slots <= fleet.free[kept]:
            is_over = now + other.seconds <= when
            if is_over or other.slots <= at_then:
                at, at_then = kept, at_then - (0 if is_over else other.slots)
        if at is None:
            later.append(other)
        else:
            fleet.begin(other, now, at)
            most = max(fleet.free)
    return later


class _Fleet:
    """What is free on each worker and what runs there; jobs that come and jobs that end are its events."""

    def __init__(self, work: Sequence[Work], workers: int, slots: int) -> None:
        self.free = [slots] * workers
        self.done: list[Done] = []
        # when, the number of the work, on which worker it ends or -1 where it comes, and the work
        self.events = [(each.arrives, each.number, -1, each) for each in work]
        heapq.heapify(self.events)
        self._ends: list[list[tuple[float, int]]] = [[] for _ in range(workers)]  # of each worker, sorted

    def begin(self, each: Work, now: float, worker: int) -> None:
        self.free[worker] -= each.slots
        insort(self._ends[worker], (now + each.seconds, each.slots))
        heapq.heappush(self.events, (now + each.seconds, each.number, worker, each))
        self.done.append(Done(each, now, worker))

    def end(self, each: Work, now: float, worker: int) -> None:
        self.free[worker] += each.slots
        self._ends[worker].remove((now, each.slots))

    def best(self, size: int, but: int = -1) -> int | None:
        """The worker that is left with the fewest."""
        fitting = [(free, worker) for worker, free in enumerate(self.free) if free >= size and worker != but]
        return min(fitting)[1] if fitting else None

    def free_at(self, worker: int, when: float) -> int:
        """Slots of a worker at a time to come, if nothing more begins there."""
        return self.free[worker] + sum(size for end, size in self._ends[worker] if end <= when)

    def fits_at(self, worker: int, needed: int) -> float:
        """When so many slots of a worker are free, if nothing more begins there."""
        free = self.free[worker]
        if free >= needed:
            return 0.0
        for end, size in self._ends[worker]:
            free += size
            if free >= needed:
                return end
        return math.inf
