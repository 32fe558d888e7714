"""Weights to start from: safetensors files that users upload, listed, described and deleted."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field, StringConstraints

from acmix.spec import ULID, Label
from service.answers import Listing, Weights, listing
from service.body import declared_bytes, patiently, too_large, write_all
from service.depends import Store, WeightsId
from service.errors import RequestRefused
from service.query import Limit, Parameters
from service.safetensors_header import HeaderInvalid, read_header
from service.store import rows
from service.store.artifacts import MODEL
from service.store.errors import QuotaExceeded, WeightsNeeded
from service.store.ids import new_id

router = APIRouter(prefix="/v1/weights", tags=["weights"])

BINARY = "application/octet-stream"
WRITE_BYTES = 2**20
FILE_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
}


class WeightsQuery(Parameters):
    limit: Limit = 20
    after: Annotated[str, StringConstraints(pattern=f"^wts_{ULID}$")] | None = Field(
        None, description="the last id seen"
    )


class UploadQuery(Parameters):
    name: Label = Field("", description="what to call it")


@dataclass(frozen=True)
class Upload:
    """A whole body in a file of no name: whatever happens to this process, nothing of it is left behind."""

    file: BinaryIO
    size_bytes: int
    sha256: str


async def received(request: Request) -> AsyncIterator[Upload]:
    """The body, streamed to disk: 413 as soon as it is too large; QuotaExceeded before it comes."""
    backend, access = request.app.state.backend, request.state.access
    settings = backend.settings
    most = settings.max_weights_bytes
    declared = declared_bytes(request)
    if declared > most:
        raise too_large("file", most)
    await asyncio.to_thread(backend.tenants.check_room, access.tenant, declared)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.data_folder, buffering=0) as file:
        sha256, size_bytes, waiting = hashlib.sha256(), 0, bytearray()

        def write() -> None:
            sha256.update(waiting)
            write_all(file, waiting)
            waiting.clear()

        async for chunk in patiently(request.stream()):
            waiting += chunk
            size_bytes += len(chunk)
            if size_bytes > most:
                raise too_large("file", most)
            if len(waiting) >= WRITE_BYTES:
                await asyncio.to_thread(write)
        await asyncio.to_thread(write)
        file.seek(0)
        yield Upload(file, size_bytes, sha256.hexdigest())


@router.post("", status_code=201, openapi_extra=FILE_BODY)
def post_weights(
    query: Annotated[UploadQuery, Query()],
    upload: Annotated[Upload, Depends(received)],
    store: Store,
    response: Response,
) -> Weights:
    """Keep a safetensors file: its `id` is what `backbone.weights` takes. 422 where it is no such file."""
    try:
        header = read_header(upload.file, upload.size_bytes)
    except HeaderInvalid as error:
        fault = f"this is no safetensors file that can be taken: {error}"
        raise RequestRefused(422, "file_invalid", fault) from None
    weights_id = new_id("wts")
    key = f"weights/{weights_id}"
    upload.file.seek(0)
    store.artifacts.put_file(f"{key}/{MODEL}", upload.file)
    described = rows.Weights(
        id=weights_id,
        name=query.name,
        sha256=upload.sha256,
        size_bytes=upload.size_bytes,
        tensors=header.tensors,
        params=header.params,
        about=header.about,
        key=key,
    )
    try:
        added = store.ledger.add_weights(described)
    except QuotaExceeded:
        store.artifacts.delete_prefix(key)
        raise
    response.headers["Location"] = f"/v1/weights/{weights_id}"
    return Weights.model_validate(added)


@router.get("")
def list_weights(store: Store, query: Annotated[WeightsQuery, Query()]) -> Listing[Weights]:
    """Uploaded weights, newest first."""
    return listing(store.reader.uploaded(query.limit, query.after), Weights.model_validate)


@router.get("/{weights_id}")
def get_weights(weights_id: WeightsId, store: Store) -> Weights:
    """One uploaded file."""
    return Weights.model_validate(store.reader.weights(weights_id))


@router.delete("/{weights_id}", status_code=204)
def delete_weights(weights_id: WeightsId, store: Store) -> None:
    """Remove the file and its row, which goes last; 409 while a job that has not ended starts from it."""
    stored = store.reader.weights(weights_id)
    if needing := store.reader.needing([weights_id]):
        raise WeightsNeeded(needing)
    store.artifacts.delete_prefix(stored.key)
    store.ledger.delete_weights(weights_id)
