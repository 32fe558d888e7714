"""The content of a data set on its way in: what a request says it brings, and its body stored piece by piece."""

import asyncio
import base64
import binascii
import hashlib
import re
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from acmix.errors import Problem
from service.body import patiently, write_all
from service.errors import RequestRefused
from service.store.backend import Backend
from service.store.datasets import parts_of
from service.store.rows import DatasetPart, Upload

WRITE_BYTES = 2**20
PIECE_BYTES = 32 * 2**20  # how much of a body stands on this machine's disk at a time
RENEWALS_A_LEASE = 6
CONTENT_RANGE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) +(?:(\d{1,18})-(\d{1,18}))/(\d{1,18})", re.ASCII)
DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([^:,]*):", re.ASCII)
SHA256_BYTES = 32


@dataclass(frozen=True)
class Announced:
    """What the headers say of a body: the archive's bytes from `start` on, `size_bytes` of them, of `total` in all.

    Without Content-Range it is the whole archive; without Content-Length its size is known at its end.
    """

    start: int
    size_bytes: int | None
    total: int | None
    sha256: bytes | None


def announced(headers: Mapping[str, str], *, most: int) -> Announced:
    """What the headers announce.

    Raises:
        RequestRefused: 413 for an archive of more than `most` bytes, 415 for a form, 422 for headers that say nothing
            possible.
    """
    if headers.get("content-type", "").lower().startswith("multipart/"):
        raise RequestRefused(415, "unsupported_media_type", "send the archive itself as the body, not within a form")
    length = _length(headers.get("content-length"))
    sha256 = _digest(headers.get("content-digest"))
    content_range = headers.get("content-range")
    if content_range is None:
        _check_total(length, most)
        return Announced(0, length, length, sha256)
    start, size_bytes, total = _range(content_range)
    _check_total(total, most)
    if length not in {None, size_bytes}:
        _refuse_header("content-length", f"Content-Length is {length}; Content-Range spans {size_bytes} bytes")
    return Announced(start, size_bytes, total, sha256)


async def receive(body: AsyncIterator[bytes], coming: Announced, upload: Upload, store: Backend) -> list[DatasetPart]:
    """The body as parts, which are stored and not yet listed.

    Raises:
        RequestRefused: 413 where it is too large, 422 where it is empty or not as announced, 408 where it stands still.
        DatasetNotFound, UploadUnderWay: the data set is another's by now.
    """
    receiver = _Receiver(coming, upload, store)
    try:
        async for chunk in patiently(body):
            receiver.take(chunk)
            if receiver.is_full():
                await asyncio.to_thread(receiver.write)
        await asyncio.to_thread(receiver.finish)
    finally:
        receiver.close()
    return receiver.parts


class _Receiver:
    """Gathers chunks into pieces: each goes through a file of no name, so that nothing of it is left behind."""

    def __init__(self, coming: Announced, upload: Upload, store: Backend) -> None:
        self.parts: list[DatasetPart] = []
        self._coming = coming
        self._upload = upload
        self._store = store
        self._most = store.settings.max_dataset_bytes
        self._received = 0
        self._waiting = bytearray()
        self._piece: BinaryIO | None = None
        self._sha256 = hashlib.sha256()
        self._renew_every = store.settings.lease_seconds / RENEWALS_A_LEASE
        self._renew_from = time.monotonic() + self._renew_every

    def take(self, chunk: bytes) -> None:
        self._received += len(chunk)
        size_bytes = self._coming.size_bytes
        if size_bytes is not None and self._received > size_bytes:
            self._refuse_size(f"more than the {size_bytes} bytes that its headers announce")
        _check_total(self._coming.start + self._received, self._most)
        self._waiting += chunk

    def is_full(self) -> bool:
        return len(self._waiting) >= WRITE_BYTES

    def write(self) -> None:
        """Write what waits; store the piece once it is large enough."""
        if time.monotonic() >= self._renew_from:
            self._store.datasets.renew_upload(self._upload)
            self._renew_from = time.monotonic() + self._renew_every
        if self._piece is None:
            self._store.settings.data_folder.mkdir(parents=True, exist_ok=True)
            folder = self._store.settings.data_folder
            self._piece = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # open until it is stored
        if self._coming.sha256 is not None:
            self._sha256.update(self._waiting)
        write_all(self._piece, self._waiting)
        self._waiting.clear()
        if self._piece.tell() >= PIECE_BYTES:
            self._store_piece(self._piece)

    def finish(self) -> None:
        """Store the rest, if all is there and as announced."""
        size_bytes = self._coming.size_bytes
        if size_bytes is not None and self._received < size_bytes:
            self._refuse_size(f"{self._received} bytes, not the {size_bytes} that its headers announce")
        if self._received == 0:
            self._refuse_size("no bytes; send an archive")
        self.write()
        if self._coming.sha256 not in {None, self._sha256.digest()}:
            found = base64.b64encode(self._sha256.digest()).decode()
            message = f"the body's digest is sha-256=:{found}:, not the one of Content-Digest; send it again"
            _refuse_header("content-digest", message, code="digest_mismatch")
        if self._piece is not None:
            self._store_piece(self._piece)

    def close(self) -> None:
        if self._piece is not None:
            self._piece.close()
            self._piece = None

    def _store_piece(self, piece: BinaryIO) -> None:
        size_bytes, start = piece.tell(), self._upload.start + sum(part.size_bytes for part in self.parts)
        if size_bytes:
            key = f"{parts_of(self._upload.dataset, self._upload.number)}/{start:015d}"
            piece.seek(0)
            self._store.artifacts.put_file(key, piece)
            self.parts.append(DatasetPart(start, size_bytes, self._upload.number, key))
        self.close()

    def _refuse_size(self, found: str) -> NoReturn:
        fault = Problem("", "length_mismatch", f"the body has {found}")
        raise RequestRefused(422, "length_mismatch", fault.message, problems=[fault])


def _length(header: str | None) -> int | None:
    return int(header) if header is not None and header.isdigit() and len(header) <= 18 else None


def _range(header: str) -> tuple[int, int, int]:
    """Start, size and total of a Content-Range (RFC 9110)."""
    match = CONTENT_RANGE.fullmatch(header.strip())
    if match is None:
        _refuse_header("content-range", "Content-Range must read like 'bytes 0-1023/4096', the total included")
    unit, *numbers = match.groups()
    start, last, total = map(int, numbers)
    if unit.lower() != "bytes":
        _refuse_header("content-range", f"the unit of Content-Range is {unit[:30]!r}; bytes would do")
    if not start <= last < total:
        sentence = f"Content-Range spans {start}-{last} of {total} bytes; the first must not be above the last"
        _refuse_header("content-range", f"{sentence}, and the last must be below the total")
    return start, last + 1 - start, total


def _digest(header: str | None) -> bytes | None:
    """The sha-256 of a Content-Digest (RFC 9530); other digests beside it are passed over."""
    if header is None:
        return None
    match = DIGEST.search(header)
    if match is None:
        if "sha-256" not in header.lower():
            return None
        _refuse_header("content-digest", "Content-Digest must read like 'sha-256=:BASE64:'")
    try:
        sha256 = base64.b64decode(match.group(1), validate=True)
    except binascii.Error:
        sha256 = b""
    if len(sha256) != SHA256_BYTES:
        _refuse_header("content-digest", f"sha-256 of Content-Digest must be {SHA256_BYTES} bytes in base64")
    return sha256


def _check_total(total: int | None, most: int) -> None:
    if total is not None and total > most:
        fault = Problem("", "too_large", f"the archive must be at most {most} bytes", limit=most)
        raise RequestRefused(413, "too_large", fault.message, problems=[fault])


def _refuse_header(name: str, message: str, code: str = "parameter_invalid") -> NoReturn:
    raise RequestRefused(422, code, message, problems=[Problem(f"/header/{name}", code, message)])
