"""Data sets of users: created, uploaded whole or in parts, looked at, deleted."""

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import Field, StringConstraints

from acmix.spec import ULID, Label, Name
from service import dataset_answers, dataset_request, json_body, uploads
from service.answers import Listing, listing
from service.dataset_answers import Dataset, DatasetSummary
from service.depends import DatasetId, Store
from service.errors import RequestRefused
from service.openapi import DATASET_BODY
from service.query import Limit, Parameters
from service.routes.checkpoints import is_held
from service.store import rows
from service.store.backend import Backend
from service.store.database import AWAY
from service.store.datasets import folder_of, parts_of, samples_of
from service.store.errors import ArtifactsAway
from service.store.rows import DatasetStatus, Upload
from service.uploads import Announced

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

ARCHIVE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
ARCHIVE_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": ARCHIVE}}
OFFSETS: dict[str, Any] = {
    "Upload-Offset": {"description": "bytes stored: where an upload goes on", "schema": {"type": "integer"}},
    "Upload-Length": {"description": "bytes of the whole, once known", "schema": {"type": "integer"}},
}
WITH_OFFSETS: dict[int | str, dict[str, Any]] = {200: {"headers": OFFSETS}}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "the picture is the one of If-None-Match"},
}


class DatasetFilter(Parameters):
    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^ds_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )
    name: Label | None = None
    task: Name | None = None
    status: DatasetStatus | None = None


@router.post("", status_code=201, openapi_extra=DATASET_BODY)
async def post_dataset(
    body: Annotated[bytes, Depends(json_body.read_body)], store: Store, response: Response
) -> Dataset:
    """Declare a data set. It is `empty` until its archive is uploaded to `content`.

    With `path` it lies below the service's data root already, and is checked at once.
    """
    made = await run_in_threadpool(_added, store, body)
    response.headers["Location"] = f"/v1/datasets/{made.id}"
    return dataset_answers.dataset(made)


@router.put("/{dataset_id}/content", openapi_extra=ARCHIVE_BODY, responses=WITH_OFFSETS)
async def put_content(
    dataset_id: DatasetId,
    request: Request,
    store: Store,
    response: Response,
    content_range: Annotated[  # noqa: ARG001  # these two are read with all others, and named here for the document
        str | None, Header(description="`bytes FIRST-LAST/TOTAL`: a part, which must begin at Upload-Offset")
    ] = None,
    content_digest: Annotated[  # noqa: ARG001
        str | None, Header(description="`sha-256=:BASE64:` of the body; what differs is not kept")
    ] = None,
) -> Dataset:
    """Upload the archive (zip, tar, tar.gz or tar.zst): whole, or in parts by Content-Range, one after the other.

    A request that is cut off leaves nothing, and the parts before it stay: HEAD tells where to go on. With the last
    byte there, the data set is `checking`. 409 with Upload-Offset where a part begins elsewhere.
    """
    coming = uploads.announced(request.headers, most=store.settings.max_dataset_bytes)
    upload = await run_in_threadpool(store.datasets.begin_upload, dataset_id, coming.start, coming.total)
    try:
        changed = await _brought(request, coming, upload, store)
    except BaseException:
        await asyncio.shield(run_in_threadpool(_abandon, store, upload))
        raise
    if changed.status == "checking":
        await run_in_threadpool(store.queue.nudge_light)
    response.headers.update(offsets(changed))
    return dataset_answers.dataset(changed)


@router.head("/{dataset_id}/content", response_class=Response, responses=WITH_OFFSETS)
def head_content(dataset_id: DatasetId, store: Store) -> Response:
    """How much of the archive is stored."""
    return Response(headers={"Cache-Control": "no-store", **offsets(store.reader.dataset(dataset_id))})


@router.get("")
def list_datasets(store: Store, query: Annotated[DatasetFilter, Query()]) -> Listing[DatasetSummary]:
    """Data sets, newest first, without what their checks found."""
    page = store.reader.datasets(query.limit, query.after, query.name, query.task, query.status)
    return listing(page, dataset_answers.summary)


@router.get("/{dataset_id}")
def get_dataset(dataset_id: DatasetId, store: Store) -> Dataset:
    """One data set, with what its check found."""
    return dataset_answers.dataset(store.reader.dataset(dataset_id))


@router.get("/{dataset_id}/samples.png", responses=PNG, response_class=StreamingResponse)
def get_samples(dataset_id: DatasetId, store: Store, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """The contact sheet: some samples with their labels. 404 until the data set is ready."""
    found = store.reader.dataset(dataset_id)
    if found.status != "ready":
        sentence = f"data set {found.id} is {found.status}; its samples can be seen once it is ready"
        raise RequestRefused(404, "not_found", sentence)
    headers = {
        "Cache-Control": "private, immutable, max-age=31536000",
        "Content-Disposition": f'attachment; filename="{found.id}.png"',
        "ETag": f'"{found.sha256}"',
    }
    if is_held(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    size_bytes = store.artifacts.head(samples_of(found.id))
    chunks = store.artifacts.stream(samples_of(found.id))
    return StreamingResponse(chunks, headers={**headers, "Content-Length": str(size_bytes)}, media_type="image/png")


@router.delete("/{dataset_id}", status_code=204)
def delete_dataset(dataset_id: DatasetId, store: Store) -> None:
    """Remove a data set and its files; 409 while it is being checked, or a job that has not ended reads it.

    It is hidden first, its files go next and its row last: cut short, the same request again does the rest.
    """
    store.datasets.begin_delete(dataset_id)
    store.artifacts.delete_prefix(folder_of(dataset_id))
    store.datasets.delete(dataset_id)


def offsets(found: rows.Dataset) -> dict[str, str]:
    """The headers that tell how far an upload has come."""
    known = {} if found.total_bytes is None else {"Upload-Length": str(found.total_bytes)}
    return {"Upload-Offset": str(found.received_bytes), **known}


def _added(store: Backend, body: bytes) -> rows.Dataset:
    asked = dataset_request.parse(json_body.loads(body), store.settings.data_root)
    made = store.datasets.add(
        name=asked.name,
        task=asked.task,
        format_=asked.format,
        options=dict(asked.options),
        path=asked.path,
        declared_sha256=asked.sha256,
    )
    if made.status == "checking":
        store.queue.nudge_light()
    return made


async def _brought(request: Request, coming: Announced, upload: Upload, store: Backend) -> rows.Dataset:
    """The data set with what this request brought."""
    if upload.abandoned is not None:  # by a process that ended in the middle of it
        abandoned = parts_of(upload.dataset, upload.abandoned)
        await run_in_threadpool(store.artifacts.delete_prefix, abandoned)
    parts = await uploads.receive(request.stream(), coming, upload, store)
    total = coming.total if coming.total is not None else sum(part.size_bytes for part in parts)
    return await run_in_threadpool(store.datasets.commit_upload, upload, parts, total)


def _abandon(store: Backend, upload: Upload) -> None:
    """Let go at once; what cannot be let go of now, its lease does, and the next upload removes what lies there."""
    with suppress(*AWAY, ArtifactsAway):
        if store.datasets.abandon_upload(upload):
            store.artifacts.delete_prefix(parts_of(upload.dataset, upload.number))
