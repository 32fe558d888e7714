"""The ledger: every write about jobs and workers. One method, one transaction, one fact; the time is the database's."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Connection, Engine, Update, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from acmix.events import Event
from acmix.fleet import Demand, demand_of
from service.store import (
    _abilities,
    _checkpoints,
    _claims,
    _endings,
    _journal,
    _lanes,
    _projections,
    _quotas,
    _reservations,
    _sources,
    _submitting,
    _told,
    _workers,
    vitals,
)
from service.store._abilities import Offer
from service.store.database import clock, reading, writing
from service.store.errors import IdempotencyKeyReused, JobNotEnded, JobNotFound, LeaseLost, MoveRefused, WeightsNotFound
from service.store.ids import new_id
from service.store.rows import Checkpoint, Claim, Draining, Job, Json, Outcome, ToldJob, Weights, Wish, WorkerCard, read
from service.store.scope import Scoped
from service.store.states import CANCELLED_BY_USER, ENDED, allowed_actions
from service.store.tables import attempts, checkpoints, jobs, labels, weights

RESERVE_AFTER_SECONDS = 300.0
ADD_JOB, ADD_LABELS = insert(jobs), insert(labels)


class Ledger(Scoped):
    """Writes of the API, of the worker (each fenced by the attempt: LeaseLost) and of the housekeeper."""

    def __init__(
        self,
        engine: Engine,
        *,
        lease_seconds: float = 60.0,
        max_failures: int = 2,
        max_losses: int = 5,
        reserve_after_seconds: float = RESERVE_AFTER_SECONDS,
    ) -> None:
        self._reading = reading(engine)
        self._writing = writing(engine)
        self._lease_seconds = lease_seconds
        self._budgets = _endings.Budgets(max_failures, max_losses)
        self._reserve_after = timedelta(seconds=reserve_after_seconds)
        self._demands: set[str] = set()  # those known to be written down

    # What the API writes

    def submit(
        self,
        spec: Json,
        resolved_spec: Json,
        *,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
        parent: str | None = None,
        request_id: str | None = None,
    ) -> tuple[ToldJob, bool]:
        """A new job, queued, and True; under a key that was used before, the first job and False.

        On PostgreSQL one statement does, unless something has to be held meanwhile.

        Raises:
            IdempotencyKeyReused: the key came before with another body (by default the spec is the body).
            QuotaExceeded: its tenant has no more to queue.
            CheckpointNotFound, WeightsNotFound: what it would start from is not there.
            DatasetNotFound, DatasetNotReady: what it would read is not there, or cannot be read.
            JobNotFound: the first job has just been deleted.
        """
        row = _new_row(
            spec,
            resolved_spec,
            tenant=self._owner,
            parent=parent,
            idempotency_key=idempotency_key,
            body_sha256=body_sha256,
            request_id=request_id,
        )
        told = self._submit_at_once(row)
        if told:
            return told, True
        job, created = self._submit_held(row)
        with self._reading.connect() as connection:
            found = _told.one(connection, job.id, self._tenant)
        if found is None:
            raise JobNotFound(job.id)
        return found, created

    def made_under(self, idempotency_key: str, body_sha256: str) -> Job | None:
        """The job that was submitted under this key, if any; IdempotencyKeyReused if it was with another body."""
        with self._reading.connect() as connection:
            return self._first_under(connection, idempotency_key, body_sha256)

    def request_cancel(self, job_id: str) -> tuple[Job, bool]:
        """Cancel a waiting job at once; wish it of a running one. Returns the job and whether anything changed."""
        with self._writing.begin() as connection:
            job = _journal.lock(connection, job_id, self._mine(jobs))
            if job.status in ENDED or job.requested == "cancel":
                return job, False
            if job.status == "running":
                return _journal.change(connection, job, requested="cancel"), True
            cancelled = _journal.move(connection, job, clock(connection), "cancelled", CANCELLED_BY_USER)
        vitals.count_end(cancelled)
        return cancelled, True

    def request_pause(self, job_id: str) -> tuple[Job, bool]:
        """Pause a queued job at once; wish it of a running one. MoveRefused where it has ended."""
        with self._writing.begin() as connection:
            job = _journal.lock(connection, job_id, self._mine(jobs))
            if job.status in ENDED:
                raise MoveRefused(job, "pause", allowed_actions(job.status))
            if job.status == "paused" or job.requested:
                return job, False
            if job.status == "running":
                return _journal.change(connection, job, requested="pause"), True
            return _journal.move(connection, job, clock(connection), "paused", None, not_before=None), True

    def resume(self, job_id: str) -> tuple[Job, bool]:
        """Queue a paused job again, or take back the wish to pause it. MoveRefused if it has ended; QuotaExceeded."""
        with self._writing.begin() as connection:
            job = _journal.lock(connection, job_id, self._mine(jobs))
            if job.status in ENDED:
                raise MoveRefused(job, "resume", allowed_actions(job.status))
            if job.status == "paused":
                now = clock(connection)
                _quotas.check_queued(connection, job.tenant, now)
                return _journal.move(connection, job, now, "queued", None, **_claims.lined_up(job.priority, now)), True
            if job.requested == "pause":
                return _journal.change(connection, job, requested=None), True
            return job, False

    def delete(self, job_id: str) -> None:
        """Remove an ended job and every row of it; JobNotEnded, JobNotFound, WeightsNeeded for a checkpoint of it."""
        with self._writing.begin() as connection:
            job = _journal.lock(connection, job_id, self._mine(jobs))
            if job.status not in ENDED:
                raise JobNotEnded(job)
            _sources.lock_unneeded(connection, checkpoints, checkpoints.c.job == job_id)
            connection.execute(delete(jobs).where(jobs.c.id == job_id))

    def add_weights(self, uploaded: Weights) -> Weights:
        """List an uploaded file, which is stored; QuotaExceeded."""
        with self._writing.begin() as connection:
            _quotas.check_stored(connection, self._owner, uploaded.size_bytes)
            row = {**asdict(uploaded), "tenant": self._owner, "created_at": clock(connection)}
            inserted = insert(weights).values(**row).returning(*weights.c)
            return read(Weights, connection.execute(inserted).mappings().one())

    def delete_weights(self, weights_id: str) -> None:
        """Unlist an uploaded file; WeightsNotFound, WeightsNeeded."""
        this = and_(weights.c.id == weights_id, self._mine(weights))
        with self._writing.begin() as connection:
            _sources.lock_unneeded(connection, weights, this)
            if not connection.execute(delete(weights).where(this)).rowcount:
                raise WeightsNotFound(weights_id)

    def drain(self, worker_id: str, what_of_its_jobs: Draining) -> bool:
        """Order a worker to take on nothing more; returns whether anything changed. WorkerNotFound."""
        with self._writing.begin() as connection:
            return _workers.order(connection, worker_id, what_of_its_jobs)

    def take_back(self, worker_id: str) -> bool:
        """Have a drained worker take on jobs again; returns whether anything changed. WorkerNotFound."""
        with self._writing.begin() as connection:
            return _workers.order(connection, worker_id, None)

    # What the worker writes

    def enrol(self, card: WorkerCard) -> None:
        """A worker is here, with this menu."""
        with self._writing.begin() as connection:
            _workers.enrol(connection, card)
            _abilities.forget(connection, card.id)

    def seen(self, worker_id: str, busy: int, load: Json | None = None, *, aside: int = 0) -> Draining | None:
        """A worker is alive, with so many slots at work and so many of no use, and fares so.

        Returns what is ordered of it.
        """
        with self._writing.begin() as connection:
            return _workers.seen(connection, worker_id, busy, aside, load)

    def leave(self, worker_id: str) -> None:
        """A worker has gone; its menu stays known for as long as that of one last seen now."""
        with self._writing.begin() as connection:
            _workers.leave(connection, worker_id)
            _reservations.lift(connection, worker=worker_id)

    def claim(
        self,
        worker_id: str,
        *,
        free: Sequence[int],
        slots: int,
        has_gpus: bool,
        can_run: Callable[[Demand, Json], bool],
    ) -> Claim | None:
        """Begin the next attempt of the first job, in the fair order, that fits the free slots; None if there is none.

        Args:
            free: the numbers of the worker's free slots; a job is given the lowest of them.
            slots: how many it has in all.
            has_gpus: whether a slot is a GPU; on the CPU only jobs fit that ask for no GPU.
            can_run: whether the worker could run a job of this demand, one of which has this resolved spec. It is
                asked once for each demand.
        """
        if not free:
            return None
        offer = Offer(worker_id, tuple(free), slots, has_gpus, can_run)
        with self._writing.begin() as connection:
            return _claims.claim(connection, offer, lease_seconds=self._lease_seconds)

    def rewind(self, job_id: str, attempt: int, to: Checkpoint | None, *, why: str) -> list[Checkpoint]:
        """Go back to an older checkpoint, or the start, because newer ones cannot be read; returns those, unlisted.

        Raises:
            CheckpointNotFound: `to` is not listed.
        """
        with self._writing.begin() as connection:
            job = _journal.lock_held(connection, job_id, attempt)
            removed, rewound = _checkpoints.truncate(connection, job, to)
            resumed_from = _checkpoints.resumed_from(to)
            connection.execute(_of_attempt(job).values(resumed_from=resumed_from))
            told = Event("warning", why, {"code": "checkpoint_unreadable", "resumed_from": resumed_from})
            _journal.append(connection, job, clock(connection), [told], **rewound)
            return removed

    def heartbeat(self, job_id: str, attempt: int) -> Wish | None:
        """Renew the lease; returns what is wished of the job."""
        with self._writing.begin() as connection:
            job = _journal.lock_held(connection, job_id, attempt)
            now = clock(connection)
            _journal.change(connection, job, lease_expires_at=self._lease_from(now))
            connection.execute(_of_attempt(job).values(heartbeat_at=now))
            return job.requested

    def wish(self, job_id: str, attempt: int) -> Wish | None:
        """What is wished of the job; changes nothing."""
        held = and_(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.status == "running")
        with self._reading.connect() as connection:
            row = connection.execute(select(jobs.c.requested).where(held)).one_or_none()
        if row is None:
            raise LeaseLost(job_id, attempt)
        return cast("Wish | None", row.requested)

    def record(self, job_id: str, attempt: int, events: Sequence[Event], *, after: int | None = None) -> None:
        """Write events under the job's next numbers, and what they leave in curves, traces and results.

        Args:
            after: the number of the last event that the caller knows to be written. Where there are later ones, they
                are the first of these: an earlier try was written, and the word of it got lost.
        """
        if not events:
            return
        with self._writing.begin() as connection:
            job = _journal.lock_held(connection, job_id, attempt)
            unwritten = events if after is None else events[job.last_event - after :]
            if not unwritten:
                return
            now = clock(connection)
            changes = _projections.project(connection, job, now, unwritten)
            _journal.append(connection, job, now, unwritten, **changes)

    def commit_checkpoint(
        self,
        job_id: str,
        attempt: int,
        checkpoint: Checkpoint,
        event: Event,
        *,
        keep_best: int,
        keep_latest: int,
        metric: str,
        larger_is_better: bool,
        after: int | None = None,
    ) -> list[Checkpoint]:
        """List a checkpoint whose files are stored, unlist those that make way for it; returns the unlisted ones.

        Args:
            metric: the one of `checkpoint.metrics` that the best are chosen by.
            after: as for `record`; where this very commit was written, nothing is, and none is returned.
        """
        with self._writing.begin() as connection:
            job = _journal.lock_held(connection, job_id, attempt)
            if after is not None and job.last_event > after:
                return []
            now = clock(connection)
            replaced = _checkpoints.insert_row(connection, _row_of(checkpoint, job, now))
            dropped = _checkpoints.retain(
                connection,
                job,
                keep_best=keep_best,
                keep_latest=keep_latest,
                metric=metric,
                larger_is_better=larger_is_better,
            )
            best = _best_with(connection, job, checkpoint, is_best=bool(event.data.get("best")))
            told = Event(event.type, event.message, {**event.data, "id": checkpoint.id})
            _journal.append(connection, job, now, [told], best=best)
            return [*replaced, *dropped]

    def log(self, job_id: str, attempt: int, lines: Sequence[str]) -> None:
        """Append what the attempt printed."""
        with self._writing.begin() as connection:
            _journal.append_log(connection, _journal.lock_held(connection, job_id, attempt), lines)

    def finish(self, job_id: str, attempt: int, outcome: Outcome) -> Job:
        """End the attempt; the job ends too, or waits for its next attempt. Its status event is the last it writes."""
        with self._writing.begin() as connection:
            job = _journal.lock_held(connection, job_id, attempt)
            ended = _endings.end_attempt(connection, job, clock(connection), outcome, self._budgets)
        vitals.count_end(ended)
        return ended

    # What the housekeeper writes

    def sweep(self) -> list[str]:
        """End the attempts whose lease ran out; returns the ids of their jobs, now queued, failed or as wished.

        Then see to slots that nobody gave back, and to reservations.
        """
        with self._writing.begin() as connection:
            now = clock(connection)
            expired = _endings.lock_expired(connection, now, self._lease_seconds)
            lost = [_endings.end_attempt(connection, job, now, Outcome("lost"), self._budgets) for job in expired]
            _claims.release_dead(connection)
        for job in lost:
            vitals.count_end(job)
        self.reserve()
        return [job.id for job in lost]

    def reserve(self) -> None:
        """Keep a worker's slots for each job that has been blocked for long; lift reservations that have lapsed."""
        with self._reading.connect() as connection:
            if not _reservations.are_due(connection, clock(connection), self._reserve_after):
                return
        with self._writing.begin() as connection:
            now = clock(connection)
            exhausted = _quotas.exhausted(connection, now, locked=False)
            _reservations.look_after(connection, now, self._reserve_after, exhausted)

    def long_queued(self, seconds: float) -> list[str]:
        """Jobs that could have been claimed and have waited longer than this, longest first: ring for them again."""
        with self._reading.connect() as connection:
            now = clock(connection)
            long_ago = jobs.c.queued_at < now - timedelta(seconds=seconds)
            waiting = select(jobs.c.id).where(_lanes.due(now), long_ago)
            return list(connection.execute(waiting.order_by(jobs.c.queued_at, jobs.c.id).limit(1000)).scalars())

    def _submit_at_once(self, row: Mapping[str, Any]) -> ToldJob | None:
        """The job, by one statement that stands for itself; None where that cannot be, and nothing is written."""
        if self._reading.dialect.name != "postgresql" or _sources.are_named(row["resolved_spec"]):
            return None
        try:
            with self._reading.connect() as connection:
                self._know(connection, row)
                return _submitting.at_once(connection, row)
        except IntegrityError:  # its key was used before
            return None

    def _submit_held(self, row: Mapping[str, Any]) -> tuple[Job, bool]:
        """In a transaction, which holds on to all that must not change meanwhile."""
        asked = row["idempotency_key"], row["body_sha256"]
        try:
            with self._writing.begin() as connection:
                first = self._first_under(connection, *asked)
                if first:
                    return first, False
                now = clock(connection)
                self._know(connection, row)
                _quotas.check_queued(connection, self._owner, now)
                _sources.lock(connection, row["resolved_spec"], self._tenant)
                return _insert(connection, row, now), True
        except IntegrityError:
            with self._writing.begin() as connection:  # another submit under this key was quicker
                first = self._first_under(connection, *asked)
            if first is None:
                raise
            return first, False

    def _know(self, connection: Connection, row: Mapping[str, Any]) -> None:
        """Have what a job demands written down. What another has removed meanwhile, a claim writes down again."""
        if row["demand"] not in self._demands:
            _abilities.keep(connection, clock(connection), [demand_of(row["resolved_spec"])])
            self._demands.add(row["demand"])

    def _first_under(self, connection: Connection, idempotency_key: str | None, body_sha256: str) -> Job | None:
        """The job that this key made, if any; IdempotencyKeyReused if it was made from another body."""
        if idempotency_key is None:
            return None
        # a key is its tenant's own: another's says nothing of it
        this = and_(jobs.c.tenant == self._owner, jobs.c.idempotency_key == idempotency_key)
        row = connection.execute(select(jobs).where(this)).mappings().one_or_none()
        if row is None:
            return None
        if row["body_sha256"] != body_sha256:
            raise IdempotencyKeyReused(read(Job, row))
        return read(Job, row)

    def _lease_from(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._lease_seconds)


def _new_row(
    spec: Json,
    resolved_spec: Json,
    *,
    tenant: str,
    parent: str | None = None,
    idempotency_key: str | None = None,
    body_sha256: str | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """The row counts the event that tells of it."""
    gpus = resolved_spec["resources"]["gpus"]
    return {
        "id": new_id("job"),
        "kind": resolved_spec["kind"],
        "name": resolved_spec["name"],
        "status": "queued",
        "spec": spec,
        "resolved_spec": resolved_spec,
        "metadata": resolved_spec["metadata"],
        "priority": resolved_spec["priority"],
        "gpus": None if gpus == "auto" else gpus,
        **_abilities.columns_of(resolved_spec)[1],
        "attempt": 0,
        "failures": 0,
        "losses": 0,
        "last_event": 1,
        "last_log_line": 0,
        "tenant": tenant,
        "parent": parent,
        "idempotency_key": idempotency_key,
        "body_sha256": body_sha256 or _sha256_of(spec),
        "request_id": request_id,
    }


def _insert(connection: Connection, row: Mapping[str, Any], now: datetime) -> Job:
    values = {**row, "created_at": now, **_claims.lined_up(row["priority"], now)}
    connection.execute(ADD_JOB, values)
    job = read(Job, {**dict.fromkeys(jobs.c.keys()), **values})
    if job.metadata:
        pairs = [{"job": job.id, "key": key, "value": value} for key, value in job.metadata.items()]
        connection.execute(ADD_LABELS, pairs)
    _journal.open_with(connection, job, now, "queued")
    return job


def _sha256_of(spec: Json) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _of_attempt(job: Job) -> Update:
    return update(attempts).where(attempts.c.job == job.id, attempts.c.number == job.attempt)


def _row_of(checkpoint: Checkpoint, job: Job, now: datetime) -> dict[str, Any]:
    said = {
        "job": job.id,
        "tenant": job.tenant,
        "attempt": job.attempt,
        "created_at": now,
        "best": False,
        "latest": False,
    }
    return {**asdict(checkpoint), **said}


def _best_with(connection: Connection, job: Job, checkpoint: Checkpoint, *, is_best: bool) -> Json | None:
    """The job's `best` after a commit: it names a checkpoint only while that one is listed."""
    if job.best is None:
        return None
    named = checkpoint.id if is_best else job.best["checkpoint"]
    is_listed = named in {listed.id for listed in _checkpoints.listed(connection, job.id)}
    return {**job.best, "checkpoint": named if is_listed else None}
