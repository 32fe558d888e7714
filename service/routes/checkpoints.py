"""Checkpoints: listed, described and downloaded."""

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from service.answers import Checkpoint, Listing
from service.depends import CheckpointId, JobId, Store
from service.errors import RequestRefused
from service.query import Parameters
from service.store.artifacts import MODEL, Artifacts

router = APIRouter(prefix="/v1", tags=["checkpoints"])

BINARY = "application/octet-stream"
MOVED: dict[int | str, dict[str, Any]] = {
    307: {"description": "where the store serves the file, Range and all, to whoever asks in the next five minutes"}
}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "the part that Range asks for"},
    304: {"description": "the file is the one of If-None-Match"},
    **MOVED,
}
SIGNED_FOR = timedelta(minutes=5)  # to begin in; a download that has begun may take longer


class ContentQuery(Parameters):
    redirect: bool = Field(False, description="answer where the store itself serves the file, if it can; else the file")


@router.get("/jobs/{job_id}/checkpoints")
def list_checkpoints(job_id: JobId, store: Store) -> Listing[Checkpoint]:
    """The checkpoints that are kept, newest first."""
    store.reader.job(job_id)
    return Listing(data=[Checkpoint.model_validate(each) for each in store.reader.checkpoints(job_id)])


@router.get("/checkpoints/{checkpoint_id}")
def get_checkpoint(checkpoint_id: CheckpointId, store: Store) -> Checkpoint:
    """One checkpoint; `size_bytes` and `sha256` are its file's."""
    return Checkpoint.model_validate(store.reader.checkpoint(checkpoint_id))


@router.head("/checkpoints/{checkpoint_id}/content", responses=MOVED, response_class=Response)
def head_content(
    checkpoint_id: CheckpointId,
    store: Store,
    query: Annotated[ContentQuery, Query()],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Size and ETag of the safetensors file."""
    checkpoint = store.reader.checkpoint(checkpoint_id)
    key = f"{checkpoint.key}/{MODEL}"
    size = store.artifacts.head(key)
    headers = _headers(checkpoint.id, checkpoint.sha256)
    if is_held(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if query.redirect and (moved := _moved(store.artifacts, "HEAD", key)):
        return moved
    return Response(headers={**headers, "Content-Length": str(size)}, media_type=BINARY)


@router.get("/checkpoints/{checkpoint_id}/content", responses=CONTENT, response_class=StreamingResponse)
def content(
    checkpoint_id: CheckpointId,
    store: Store,
    query: Annotated[ContentQuery, Query()],
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The weights that were evaluated, as one safetensors file; its metadata holds the spec."""
    checkpoint = store.reader.checkpoint(checkpoint_id)
    key = f"{checkpoint.key}/{MODEL}"
    size = store.artifacts.head(key)
    headers = _headers(checkpoint.id, checkpoint.sha256)
    if is_held(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if query.redirect and (moved := _moved(store.artifacts, "GET", key)):
        return moved
    asked = _asked_range(range_, size) if if_range in (None, headers["ETag"]) else None
    if asked == "beyond":
        raise RequestRefused(
            416,
            "range_not_satisfiable",
            f"the file has {size} bytes; ask for bytes=0-{size - 1} or a part of it",
            headers={"Content-Range": f"bytes */{size}"},
        )
    start, end = asked or (0, size)
    headers["Content-Length"] = str(end - start)
    if asked:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    chunks = store.artifacts.stream(key, start, end)
    return StreamingResponse(chunks, 206 if asked else 200, headers, media_type=BINARY)


def _moved(artifacts: Artifacts, method: Literal["GET", "HEAD"], key: str) -> Response | None:
    """Where the store does this without a key of ours; None where it cannot."""
    url = artifacts.signed_url(method, key, valid=SIGNED_FOR)
    if url is None:
        return None
    return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})


def _headers(checkpoint_id: str, sha256: str) -> dict[str, str]:
    return {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, immutable, max-age=31536000",
        "Content-Disposition": f'attachment; filename="{checkpoint_id}.safetensors"',
        "ETag": f'"{sha256}"',
    }


def is_held(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller already has this file."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or "*" in tags


def _asked_range(header: str | None, size: int) -> tuple[int, int] | Literal["beyond"] | None:
    """Start and end (not included) of the one range asked for; None for the whole file, as for several ranges."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").replace(" ", ""), re.ASCII)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else "beyond"
    start, end = int(first), min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return (start, end) if start < size else "beyond"
