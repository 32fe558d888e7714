"""How a job comes in: its spec checked against the catalog, then a row, then a ring for a worker."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi.concurrency import run_in_threadpool

from acmix import resolve, spec
from acmix.catalog import Catalog
from acmix.errors import Problem, SpecInvalid
from acmix.spec import JobSpec
from service import evaluations, logs, planning, user_data
from service.routes.catalog import known_menu
from service.store.backend import Backend
from service.store.errors import CheckpointNotFound, DatasetNotFound, WeightsNotFound
from service.store.rows import ToldJob


@dataclass(frozen=True)
class Posted:
    """The values of a spec, and the hash of what was asked: the same under the same Idempotency-Key."""

    raw: Any
    sha256: str


@dataclass(frozen=True)
class _Asked:
    """Where a job is to be written, and what is said of it beside its spec."""

    store: Backend
    idempotency_key: str | None
    parent: str | None


@dataclass(frozen=True)
class _Unplanned:
    """What is to be written if a plan can be made of it."""

    posted: Posted
    resolved: JobSpec
    catalog: Catalog


async def submit(
    store: Backend, read: Callable[[], Posted], *, idempotency_key: str | None = None, parent: str | None = None
) -> tuple[ToldJob, bool]:
    """The job that a spec's values make, and True; where its key was used before, that job and False.

    Where the catalog leaves a backbone's layers to the model itself, a plan checks the swaps. Else all is done by one
    thread: to wait for another takes as long as a query.

    Raises:
        SpecInvalid: with a pointer for every fault.
        RequestRefused: 503, no worker has posted a catalog, or no plan came in time; and what `read` raises.
        IdempotencyKeyReused, DatasetNotReady: as of the ledger.
    """
    asked = _Asked(store, idempotency_key, parent)
    done = await run_in_threadpool(_written_or_unplanned, asked, read)
    if not isinstance(done, _Unplanned):
        return done
    await planning.check(store, done.resolved, done.catalog)
    return await run_in_threadpool(_write, asked, done.posted, done.resolved)


def sha256_of(values: Any) -> str:
    """Of JSON values: spaces and the order of fields make no other body."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _written_or_unplanned(asked: _Asked, read: Callable[[], Posted]) -> tuple[ToldJob, bool] | _Unplanned:
    posted, store = read(), asked.store
    if asked.idempotency_key and (first := store.ledger.made_under(asked.idempotency_key, posted.sha256)):
        return store.reader.told(first.id), False  # whatever the catalog has by now
    resolved, catalog = _resolved(store, posted.raw)
    if resolved.kind == "train" and resolve.only_model_tells(resolved, catalog):
        return _Unplanned(posted, resolved, catalog)
    return _write(asked, posted, resolved)


def _resolved(store: Backend, raw: Any) -> tuple[JobSpec, Catalog]:
    """The spec with all its defaults, and the catalog that has all that it names."""
    given = evaluations.job_of(raw, store) if evaluations.is_asked_for(raw) else _to_train(raw)
    menu = known_menu(store)
    given = user_data.found(given, store, menu.catalog)
    problems = resolve.problems(given, menu.catalog, fleet=menu.fleet)
    if problems:
        raise SpecInvalid(problems)
    return resolve.resolve(given, menu.catalog), menu.catalog


def _to_train(raw: Any) -> JobSpec:
    given = spec.parse(raw)
    if given.checkpoint is not None:
        message = "checkpoint is for kind evaluate; backbone.weights is what a training starts from"
        raise SpecInvalid([Problem("/checkpoint", "not_taken", message)])
    return given


def _write(asked: _Asked, posted: Posted, resolved: JobSpec) -> tuple[ToldJob, bool]:
    try:
        job, created = asked.store.ledger.submit(
            posted.raw,
            resolved.dump(),
            idempotency_key=asked.idempotency_key,
            body_sha256=posted.sha256,
            parent=asked.parent,
            request_id=logs.ids().get("request_id"),
        )
    except (CheckpointNotFound, WeightsNotFound) as error:
        raise SpecInvalid([Problem("/backbone/weights", "unknown_id", str(error))]) from None
    except DatasetNotFound as error:  # deleted since it was looked up
        raise SpecInvalid([user_data.unknown(error)]) from None
    logs.add(job=job.id)
    if created:
        asked.store.queue.nudge_train()
    return job, created
