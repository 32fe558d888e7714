"""The claim: which queued job is next for a worker, and how it becomes the worker's."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from heapq import merge
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
)

from acmix.events import Event
from service.store import _abilities, _checkpoints, _journal, _lanes, _outbox, _quotas, _reservations
from service.store._abilities import Offer
from service.store._lanes import Lane, Turn, due
from service.store._reservations import Reservation
from service.store.database import clock_time, texts
from service.store.rows import Checkpoint, Claim, Job, Json, read
from service.store.states import turn_at
from service.store.tables import attempts, holdings, jobs, reservations, tenants, workers

FIRST_TENANTS, MORE = 4, 8  # whose lanes are looked at together; each time so many times as many
# What the planner knows of a queue that has just grown is out of date: for as long as a claim lasts, it is to consider
# only what finds rows by an index and gives their order by itself.
PLAN_BY_INDEX = ("enable_seqscan", "enable_sort", "enable_incremental_sort", "enable_hashjoin", "enable_mergejoin")
HELD = (
    select(holdings.c.slot, and_(jobs.c.status == "running", jobs.c.attempt == holdings.c.attempt).label("is_live"))
    .join(jobs, jobs.c.id == holdings.c.job)
    .where(holdings.c.worker == bindparam("worker"))
)
BEGIN_ATTEMPT = insert(attempts).values(
    host=select(workers.c.host).where(workers.c.id == bindparam("its_worker")).scalar_subquery()
)


class _Locked(NamedTuple):
    """A job that is to be claimed, and when it was locked."""

    job: Job
    at: datetime


def lined_up(priority: int, now: datetime) -> dict[str, datetime | None]:
    """What a job's row says once it is queued from now on."""
    return {"queued_at": now, "turn_at": turn_at(priority, now), "blocked_at": None}


def claim(connection: Connection, offered: Offer, *, lease_seconds: float) -> Claim | None:
    """Begin the next attempt of the first job that this worker can run with its free slots, if there is one."""
    given = {"worker": offered.worker, "free": json.dumps([str(slot) for slot in offered.free])}
    opening = connection.execute(_opening(connection.dialect.name), given).one()
    if opening.draining:
        _reservations.lift(connection, worker=offered.worker)
        return None
    offer = replace(offered, free=_really_free(connection, offered)) if opening.is_held else offered
    if not offer.free:
        return None
    now = opening.now
    exhausted = _quotas.exhausted(connection, now) if opening.are_limited else []
    kept = _reservations.kept(connection, offer.worker) if opening.are_reserved else []
    locked, passed = _lock_next(connection, now, offer, exhausted, kept)
    _reservations.note_blocked(connection, now, passed, locked.job if locked else None)
    return take(connection, *locked, offer, lease_seconds=lease_seconds) if locked else None


def take(connection: Connection, job: Job, now: datetime, offer: Offer, *, lease_seconds: float) -> Claim:
    """Begin the job's next attempt, from its newest checkpoint, in the lowest of the free slots, and tell so."""
    resume, rewound = _gone_back(connection, job) if job.attempt else (None, {})
    gpus = job.gpus if job.gpus is not None else int(offer.has_gpus)
    resumed_from = _checkpoints.resumed_from(resume)
    where = f"from step {resume.step}" if resume else "from the start"
    data = {"status": "running", "worker": offer.worker, "resumed_from": resumed_from}
    told = Event("status", f"attempt {job.attempt + 1} begins {where} on {offer.worker}", data)
    taken = _journal.append(
        connection,
        job,
        now,
        [told],
        status="running",
        phase="starting",
        status_reason=None,
        requested=None,
        attempt=job.attempt + 1,
        worker=offer.worker,
        devices=None,
        not_before=None,
        claimed_at=now,
        expected_end_at=None,
        started_at=job.started_at or now,
        lease_expires_at=now + timedelta(seconds=lease_seconds),
        resolved_spec={**job.resolved_spec, "resources": {**job.resolved_spec["resources"], "gpus": gpus}},
        **rewound,
    )
    slots = offer.free[: job.slots]
    _hold(connection, taken, now, slots, on_gpu=gpus > 0)
    _begin_attempt(connection, taken, now, resumed_from)
    _outbox.tell(connection, taken, now)
    return Claim(taken, resume, _ran_seconds(connection, taken), slots)


def release(connection: Connection, job: Job) -> None:
    """Give back the slots that a job holds."""
    connection.execute(delete(holdings).where(holdings.c.worker == job.worker, holdings.c.job == job.id))


def release_dead(connection: Connection) -> None:
    """Give back what is held for attempts that are no more: a version that knew of no holdings ended them."""
    live = select(jobs.c.id).where(jobs.c.id == holdings.c.job, jobs.c.status == "running")
    connection.execute(delete(holdings).where(~live.where(jobs.c.attempt == holdings.c.attempt).exists()))


@cache
def _opening(dialect: str) -> Select[Any]:
    """What time it is, whether the worker drains, and what else has to be looked at: most often nothing."""
    mine = holdings.c.worker == bindparam("worker")
    offered = select(cast(texts(dialect, "free").c.value, Integer))
    limited = (tenants.c.most_running.is_not(None), tenants.c.most_gpu_hours.is_not(None))
    draining = select(workers.c.draining).where(workers.c.id == bindparam("worker")).scalar_subquery()
    settings = PLAN_BY_INDEX if dialect == "postgresql" else ()
    settled = (func.set_config(name, "off", literal_column("true")) for name in settings)
    return select(
        clock_time().label("now"),
        draining.label("draining"),
        select(holdings.c.slot).where(mine, holdings.c.slot.in_(offered)).exists().label("is_held"),
        select(tenants.c.name).where(or_(*limited)).exists().label("are_limited"),
        select(reservations.c.worker).exists().label("are_reserved"),
        *settled,
    )


def _really_free(connection: Connection, offer: Offer) -> tuple[int, ...]:
    """The lowest first; of those that the worker counts as free, an attempt may hold one that the sweep is to end.

    What is held for an attempt that is no more was left so by a version that knew of no holdings.
    """
    held = {row.slot: row.is_live for row in connection.execute(HELD, {"worker": offer.worker})}
    dead = [slot for slot, is_live in held.items() if not is_live]
    if dead:
        these = (holdings.c.worker == offer.worker, holdings.c.slot.in_(dead))
        connection.execute(delete(holdings).where(*these))
    return tuple(slot for slot in sorted(offer.free) if not held.get(slot))


def _lock_next(
    connection: Connection,
    now: datetime,
    offer: Offer,
    exhausted: Collection[str],
    kept: Sequence[Reservation],
) -> tuple[_Locked | None, list[Lane]]:
    """The job, locked, and what was passed over at its turn because it needs more slots than are free.

    First come jobs that have waited for long enough that a worker is reserved for them. One that is reserved itself
    gives what it has to that job alone, and to what is sure to end before it could begin.
    """
    kept = [each for each in kept if each.tenant not in exhausted]
    mine = next((each for each in kept if each.worker == offer.worker), None)
    for each in [mine] if mine else kept:
        if each.able and each.slots <= len(offer.free) and (locked := _lock(connection, each.job, now)):
            return locked, []
    passed: list[Lane] = []
    for names in _more_and_more(_lanes.fair_order(connection, exhausted)):
        for lanes in _abilities.judged(connection, now, offer, names).values():
            able = [lane for lane in lanes if lane.able]
            fitting = [lane for lane in able if lane.slots <= len(offer.free)]
            locked = _lock_first(connection, now, _turns(connection, now, fitting, mine.expected_at if mine else None))
            passed += _passed(able, len(offer.free), locked.job if locked else None)
            if locked:
                return locked, passed
    return None, passed


def _passed(lanes: Sequence[Lane], free: int, taken: Job | None) -> list[Lane]:
    """Those that are too large and whose turn was before that of the job that was taken, if one was."""
    too_large = [lane for lane in lanes if lane.slots > free]
    return [lane for lane in too_large if taken is None or lane.head < Turn(taken.turn_at, taken.id)]


def _turns(connection: Connection, now: datetime, lanes: Sequence[Lane], until: datetime | None) -> Iterator[Turn]:
    """The jobs of these lanes in claim order; where they must end before some time, heads that are sure to alone."""
    if until is None:
        return merge(*(_lanes.turns(connection, now, lane) for lane in lanes))
    spare_seconds = (until - now).total_seconds()
    return (lane.head for lane in lanes if (lane.max_runtime_seconds or float("inf")) <= spare_seconds)


def _lock_first(connection: Connection, now: datetime, turns: Iterator[Turn]) -> _Locked | None:
    """The first of these that can be had; one that another is claiming is passed over."""
    return next(filter(None, (_lock(connection, turn.id, now) for turn in turns)), None)


def _lock(connection: Connection, job_id: str, now: datetime) -> _Locked | None:
    still = select(jobs, clock_time().label("locked_at")).where(jobs.c.id == job_id, due(now))
    row = connection.execute(still.with_for_update(skip_locked=True)).mappings().one_or_none()
    return _Locked(read(Job, row), row["locked_at"]) if row else None


def _more_and_more(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """A few first, for most often one of them has a job that fits."""
    at, many = 0, FIRST_TENANTS
    while at < len(names):
        yield names[at : at + many]
        at, many = at + many, MORE * many


def _hold(connection: Connection, job: Job, now: datetime, slots: Sequence[int], *, on_gpu: bool) -> None:
    """No slot is given twice: the key of the table says so. A job that is served needs no reservation more."""
    row = {"worker": job.worker, "job": job.id, "attempt": job.attempt, "tenant": job.tenant, "since": now}
    connection.execute(insert(holdings), [{**row, "slot": slot, "on_gpu": on_gpu} for slot in slots])
    if job.blocked_at is not None:
        _reservations.lift(connection, job=job.id)


def _gone_back(connection: Connection, job: Job) -> tuple[Checkpoint | None, dict[str, Any]]:
    """The checkpoint that the attempt goes on from, and what changes in a job that goes back to it."""
    resume = next(iter(_checkpoints.listed(connection, job.id)), None)
    _, rewound = _checkpoints.truncate(connection, job, resume)
    return resume, rewound


def _ran_seconds(connection: Connection, job: Job) -> float:
    """How long the attempts before this one held the job, all together."""
    if job.attempt == 1:
        return 0.0
    times = select(attempts.c.started_at, attempts.c.ended_at).where(attempts.c.job == job.id)
    before = connection.execute(times.where(attempts.c.number < job.attempt, attempts.c.ended_at.is_not(None)))
    return sum(((row.ended_at - row.started_at).total_seconds() for row in before), start=0.0)


def _begin_attempt(connection: Connection, job: Job, now: datetime, resumed_from: Json | None) -> None:
    row: dict[str, Any] = {
        "job": job.id,
        "number": job.attempt,
        "worker": job.worker,
        "its_worker": job.worker,
        "started_at": now,
        "heartbeat_at": now,
        "resumed_from": resumed_from,
    }
    connection.execute(BEGIN_ATTEMPT, row)
