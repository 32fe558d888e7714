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
from service.store.rows import Job, ToldJob


@dataclass(frozen=True)
class Posted:
    """The values of a spec, and the hash of what was asked: the same under the same Idempotency-Key."""

    raw: Any
    sha256: str


async def submit(
    store: Backend, read: Callable[[], Posted], *, idempotency_key: str | None = None, parent: str | None = None
) -> tuple[ToldJob, bool]:
    """The job that a spec's values make, and True; where its key was used before, that job and False.

    Where the catalog leaves a backbone's layers to the model itself, a plan checks the swaps. Until then, and from
    then on, all is done by one thread: to wait for another takes as long as a query.

    Raises:
        SpecInvalid: with a pointer for every fault.
        RequestRefused: 503, no worker has posted a catalog, or no plan came in time; and what `read` raises.
        IdempotencyKeyReused, DatasetNotReady: as of the ledger.
    """
    ready = await run_in_threadpool(_prepared, store, read, idempotency_key)
    if isinstance(ready, ToldJob):
        return ready, False  # whatever the catalog has by now
    posted, resolved, catalog = ready
    if resolved.kind == "train" and resolve.only_model_tells(resolved, catalog):
        await planning.check(store, resolved, catalog)

    def write() -> tuple[ToldJob, bool]:
        more = {"body_sha256": posted.sha256, "idempotency_key": idempotency_key, "parent": parent}
        job, created = _write(store, posted.raw, resolved, **more)
        return store.reader.told(job.id), created

    return await run_in_threadpool(write)


def sha256_of(values: Any) -> str:
    """Of JSON values: spaces and the order of fields make no other body."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _prepared(
    store: Backend, read: Callable[[], Posted], idempotency_key: str | None
) -> ToldJob | tuple[Posted, JobSpec, Catalog]:
    """What is to be written, or the job that was made under this key."""
    posted = read()
    if idempotency_key and (first := store.ledger.made_under(idempotency_key, posted.sha256)):
        return store.reader.told(first.id)
    return (posted, *_resolved(store, posted.raw))


def _resolved(store: Backend, raw: Any) -> tuple[JobSpec, Catalog]:
    """The spec with all its defaults, and the catalog that has all that it names."""
    given = evaluations.job_of(raw, store) if evaluations.is_asked_for(raw) else _to_train(raw)
    menu = known_menu(store)
    given = user_data.found(given, store, menu.catalog)
    problems = resolve.problems(given, menu.catalog, most_gpus=menu.most_gpus)
    if problems:
        raise SpecInvalid(problems)
    return resolve.resolve(given, menu.catalog), menu.catalog


def _to_train(raw: Any) -> JobSpec:
    given = spec.parse(raw)
    if given.checkpoint is not None:
        message = "checkpoint is for kind evaluate; backbone.weights is what a training starts from"
        raise SpecInvalid([Problem("/checkpoint", "not_taken", message)])
    return given


def _write(store: Backend, raw: Any, resolved: JobSpec, **more: Any) -> tuple[Job, bool]:
    try:
        job, created = store.ledger.submit(raw, resolved.dump(), request_id=logs.ids().get("request_id"), **more)
    except (CheckpointNotFound, WeightsNotFound) as error:
        raise SpecInvalid([Problem("/backbone/weights", "unknown_id", str(error))]) from None
    except DatasetNotFound as error:  # deleted since it was looked up
        raise SpecInvalid([user_data.unknown(error)]) from None
    logs.add(job=job.id)
    if created:
        store.queue.nudge_train()
    return job, created
