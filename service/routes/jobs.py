"""Jobs: post one, look at them, delete one that has ended."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from acmix.errors import Problem
from acmix.spec import ULID, Label, Name, pointer
from service import json_body, submission
from service.answers import JobAnswer, Listing
from service.depends import JobId, Store
from service.errors import RequestRefused
from service.job_json import job_response, jobs_response
from service.openapi import SPEC_BODY
from service.query import Limit, Parameters
from service.store.errors import WeightsNeeded
from service.store.rows import Status, ToldJob
from service.store.states import ENDED
from service.submission import Posted

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_Key = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
IdempotencyKey = Annotated[_Key | None, Header(description="the same key and body again answer the same job")]


MADE_BEFORE: dict[int | str, dict[str, Any]] = {
    200: {"model": JobAnswer, "description": "the job that this Idempotency-Key made before"}
}


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


@router.post("", status_code=201, response_model=JobAnswer, responses=MADE_BEFORE, openapi_extra=SPEC_BODY)
async def post_job(
    body: Annotated[bytes, Depends(json_body.read_body)],
    store: Store,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Check a spec against the catalog and queue it: 201, or 200 where its Idempotency-Key was used before.

    Where the catalog leaves a backbone's layers to the model itself, a plan checks the swaps; 503 if none comes in
    time.
    """

    def read() -> Posted:
        raw = json_body.loads(body)
        return Posted(raw, submission.sha256_of(raw))

    job, created = await submission.submit(store, read, idempotency_key=idempotency_key)
    return as_made(job, status_code=201, created=created)


@router.get("", response_model=Listing[JobAnswer])
def list_jobs(store: Store, query: Annotated[JobFilter, Query()]) -> Response:
    """Jobs, newest first."""
    page = store.reader.jobs(
        limit=query.limit,
        after=query.after,
        status=query.status,
        kind=query.kind,
        name=query.name,
        metadata=_metadata(query.model_extra or {}),
    )
    return jobs_response(page)


@router.get("/{job_id}", response_model=JobAnswer)
def get_job(job_id: JobId, store: Store) -> Response:
    """One job as it stands."""
    return job_response(store.reader.told(job_id))


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


def as_made(job: ToldJob, *, status_code: int, created: bool) -> Response:
    """A job that a request has made, or has made before, and where it is from now on."""
    where = {"Location": f"/v1/jobs/{job.id}"}
    replayed = {} if created else {"Idempotent-Replayed": "true"}
    return job_response(job, status_code if created else 200, {**where, **replayed})


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
