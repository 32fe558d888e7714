"""Jobs: post one, look at them, cancel, delete."""

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from acmix import resolve, spec
from acmix.catalog import Catalog
from acmix.errors import Problem, SpecInvalid
from acmix.spec import ULID, JobSpec, Label, Name, pointer
from service import evaluations, json_body, planning, user_data
from service.answers import JobAnswer, Listing, job_answer, listing
from service.depends import JobId, Store
from service.errors import RequestRefused
from service.openapi import SPEC_BODY
from service.query import Limit, Parameters
from service.routes.catalog import known_catalog
from service.store.backend import Backend
from service.store.errors import CheckpointNotFound, DatasetNotFound, WeightsNeeded, WeightsNotFound
from service.store.rows import Job, Status
from service.store.states import ENDED

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Key = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


class JobFilter(Parameters):
    """`metadata[key]=value` narrows the list further, as often as it is given."""

    model_config = ConfigDict(extra="allow")

    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^job_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )
    status: Status | None = None
    kind: Name | None = None
    name: Label | None = None


@router.post("", status_code=201, openapi_extra=SPEC_BODY)
async def post_job(
    body: Annotated[bytes, Depends(json_body.read_body)],
    store: Store,
    response: Response,
    idempotency_key: Annotated[
        Key | None, Header(description="the same key and body again answer the same job")
    ] = None,
) -> JobAnswer:
    """Check a spec against the catalog and queue it: 201, or 200 where its Idempotency-Key was used before.

    Where the catalog leaves a backbone's layers to the model itself, a plan checks the swaps; 503 if none comes in
    time.
    """
    raw, resolved, catalog = await run_in_threadpool(_resolved, store, body)
    if resolved.kind == "train" and resolve.only_model_tells(resolved, catalog):
        await planning.check(store, resolved, catalog)
    job, created = await run_in_threadpool(_submitted, store, raw, resolved, idempotency_key)
    if not created:
        response.status_code = 200
        response.headers["Idempotent-Replayed"] = "true"
    response.headers["Location"] = job.urls.self
    return job


@router.get("")
def list_jobs(store: Store, query: Annotated[JobFilter, Query()]) -> Listing[JobAnswer]:
    """Jobs, newest first."""
    page = store.reader.jobs(
        limit=query.limit,
        after=query.after,
        status=query.status,
        kind=query.kind,
        name=query.name,
        metadata=_metadata(query.model_extra or {}),
    )
    return listing(page, lambda job: told(store, job))


@router.get("/{job_id}")
def get_job(job_id: JobId, store: Store) -> JobAnswer:
    """One job as it stands."""
    return told(store, store.reader.job(job_id))


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: JobId, store: Store) -> None:
    """Remove an ended job, all that it wrote and its files; 409 while it, or one that starts from it, has not ended.

    The row goes last: cut short, the same request again does the rest, and no file is left that no row names.
    """
    job = store.reader.job(job_id)
    if needing := store.reader.needing([checkpoint.id for checkpoint in store.reader.checkpoints(job_id)]):
        raise WeightsNeeded(needing)
    if job.status in ENDED:  # which it then stays
        store.artifacts.delete_prefix(f"jobs/{job_id}")
    store.ledger.delete(job_id)


@router.post("/{job_id}/cancel", status_code=202)
def cancel_job(job_id: JobId, store: Store, response: Response) -> JobAnswer:
    """Ask for the job's end: 202, or 200 where it has ended or was asked to before."""
    job, changed = store.ledger.request_cancel(job_id)
    if not changed:
        response.status_code = 200
    return told(store, job)


def told(store: Backend, job: Job) -> JobAnswer:
    """A job with its place in the queue."""
    return job_answer(job, store.reader.position(job.id) if job.status == "queued" else None)


def _resolved(store: Backend, body: bytes) -> tuple[Any, JobSpec, Catalog]:
    """The body's values, the spec that they are with all its defaults, and the catalog that has it."""
    raw = json_body.loads(body)
    given = evaluations.job_of(raw, store) if evaluations.is_asked_for(raw) else _to_train(raw)
    catalog = known_catalog(store)
    given = user_data.found(given, store, catalog)
    problems = resolve.problems(given, catalog, most_gpus=store.reader.most_gpus())
    if problems:
        raise SpecInvalid(problems)
    return raw, resolve.resolve(given, catalog), catalog


def _to_train(raw: Any) -> JobSpec:
    given = spec.parse(raw)
    if given.checkpoint is not None:
        message = "checkpoint is for kind evaluate; backbone.weights is what a training starts from"
        raise SpecInvalid([Problem("/checkpoint", "not_taken", message)])
    return given


def _submitted(store: Backend, raw: Any, resolved: JobSpec, idempotency_key: str | None) -> tuple[JobAnswer, bool]:
    try:
        job, created = store.ledger.submit(
            raw, resolved.dump(), idempotency_key=idempotency_key, body_sha256=_sha256_of(raw)
        )
    except (CheckpointNotFound, WeightsNotFound) as error:
        raise SpecInvalid([Problem("/backbone/weights", "unknown_id", str(error))]) from None
    except DatasetNotFound as error:  # deleted since it was looked up
        raise SpecInvalid([user_data.unknown(error)]) from None
    if created:
        store.queue.nudge_train()
    return told(store, job), created


def _sha256_of(raw: Any) -> str:
    """Of the body's values: spaces and the order of fields make no other job."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _metadata(extra: dict[str, Any]) -> dict[str, str]:
    """The labels asked for as `metadata[key]=value`; any other parameter is one too many."""
    labels, problems = {}, []
    for parameter, value in extra.items():
        at = pointer(("query", parameter))
        if not (parameter.startswith("metadata[") and parameter.endswith("]")):
            sentence = f"no parameter of this path is named {parameter[:60]!r}"
            problems.append(Problem(at, "unknown_parameter", sentence))
            continue
        try:
            labels[_NAME.validate_python(parameter[len("metadata[") : -1])] = _LABEL.validate_python(value)
        except ValidationError:
            sentence = "a label must be printable, at most 200 characters, and be given once"
            problems.append(Problem(at, "parameter_invalid", sentence))
    if problems:
        raise RequestRefused(422, "parameter_invalid", problems[0].message, problems=problems)
    return labels


_NAME: TypeAdapter[str] = TypeAdapter(Name)
_LABEL: TypeAdapter[str] = TypeAdapter(Label)
