"""Files of jobs, below keys such as jobs/ID/checkpoints/ID: a folder of this machine or S3 by the same interface."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote, urlsplit

import obstore

from service.settings import S3
from service.store._objects import PING_CLIENT, PING_RETRIES, open_bucket, open_folder, telling
from service.store.errors import ArtifactExists, ArtifactNotFound, ArtifactsAway, ArtifactsRefused

MANIFEST = "manifest.json"
MODEL = "model.safetensors"  # of a checkpoint's folder and of uploaded weights
CHUNK_BYTES = 2**20
PART_BYTES = 8 * 2**20  # sent at a time; a file of any size is in memory so many times so much
PARTS_AT_ONCE = 2
MOST_PARTS = 10_000  # of a file in S3


class Artifacts:
    """The files behind a URL: file:///folder or s3://bucket/prefix.

    Every method raises ArtifactsAway where the files cannot be reached now, ArtifactsRefused where they cannot be
    until somebody mends the settings.
    """

    def __init__(self, url: str, s3: S3 | None = None) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)).resolve() if parts.scheme == "file" else None
        if self._folder:
            self._store = self._probe = open_folder(self._folder)
            self._signing = None
        else:
            s3 = s3 or S3()
            self._store = open_bucket(url, s3)
            self._probe = open_bucket(url, s3, client=PING_CLIENT, retries=PING_RETRIES)
            self._signing = open_bucket(url, s3, public=True)

    def put_folder(self, key: str, folder: Path) -> int:
        """Store every file of a folder below `key`, the manifest last: its presence means that all are there.

        Doing it again with the same manifest changes nothing. Returns how many bytes they have in all.

        Raises:
            ArtifactExists: another manifest is there.
            ArtifactsFull: the disk is full; what was stored below `key` before is not removed.
        """
        manifest = folder / MANIFEST
        others = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != manifest]
        size_bytes = sum(path.stat().st_size for path in (*others, manifest))
        content = manifest.read_bytes()
        if self._is_stored(f"{key}/{MANIFEST}", content):
            return size_bytes
        for path in others:
            with path.open("rb") as file:
                self.put_file(f"{key}/{path.relative_to(folder).as_posix()}", file)
        self._put_once(f"{key}/{MANIFEST}", content)
        return size_bytes

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Store what an open file holds from where it stands; ArtifactsFull."""
        with telling(key, writes=True):
            obstore.put(self._store, key, file, chunk_size=_part_bytes(file), max_concurrency=PARTS_AT_ONCE)
            self._sync(key)

    def put_stream(self, key: str, chunks: Iterator[bytes]) -> None:
        """Store what comes, chunk by chunk; ArtifactsFull."""
        with telling(key):
            # not obstore.put: chunks that another of its stores streams cannot be awaited within it
            writer = obstore.open_writer(self._store, key, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
            with writer as file:
                for chunk in chunks:
                    file.write(chunk)
            self._sync(key)

    def fetch_file(self, key: str, target: Path) -> None:
        """Copy one file; ArtifactNotFound."""
        chunks = self.stream(key)
        with target.open("wb") as file:
            file.writelines(chunks)

    def fetch_folder(self, key: str, folder: Path) -> None:
        """Copy every file below `key` into a folder, which is made; ArtifactNotFound if there is none."""
        stored = self._files(key)
        if not stored:
            raise ArtifactNotFound(key)
        for path in stored:
            target = folder / path.removeprefix(f"{key}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(self.stream(path))

    def head(self, key: str) -> int:
        """Size of a file in bytes; ArtifactNotFound."""
        try:
            with telling(key):
                return obstore.head(self._store, key)["size"]
        except (ArtifactNotFound, ArtifactsRefused):
            self._check_bucket()
            raise

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes `start` up to, not including, `end` of a file, in chunks; ArtifactNotFound before the first.

        The first is read at once: whoever has begun to answer with it knows that the files can be reached.
        """
        size = self.head(key)
        end = size if end is None else min(end, size)
        if start >= end:
            return iter(())
        with telling(key):
            found = obstore.get(self._store, key, options={"range": (start, end)})
        chunks = _told(key, iter(found.stream(min_chunk_size=CHUNK_BYTES)))
        return chain((next(chunks),), chunks)

    def signed_url(self, method: Literal["GET", "HEAD"], key: str, *, valid: timedelta) -> str | None:
        """Where anybody can do this, and nothing else, for so long; None where files lie in a folder."""
        if self._signing is None:
            return None
        with telling(key):
            return obstore.sign(self._signing, method, key, expires_in=valid)

    def delete_prefix(self, prefix: str) -> None:
        """Remove every file below a prefix of whole path segments; none there is fine."""
        if not prefix.strip("/"):
            raise ValueError("an empty prefix would delete every file; name a job's")
        while files := self._files(prefix):
            with suppress(ArtifactNotFound), telling(prefix):  # another removes them at the same time
                obstore.delete(self._store, files)

    def all_below(self, prefix: str = "") -> list[str]:
        """Every file below a prefix of whole path segments."""
        return sorted(self._files(prefix))

    def prefixes(self, prefix: str = "") -> list[str]:
        """What lies directly below a prefix: jobs/ID for each job under `jobs`."""
        with telling(prefix):
            return sorted(obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"])

    def ping(self) -> None:
        """Raises if the files cannot be reached, within seconds."""
        if self._folder and not os.access(self._folder, os.W_OK | os.X_OK):
            raise OSError(f"{self._folder} is not a folder that can be written to")
        with telling("ping"):
            obstore.list_with_delimiter(self._probe, "ping")

    def _put_once(self, key: str, content: bytes) -> None:
        """Store what nobody has stored; the same that is there already was stored by a try whose word got lost."""
        try:
            with telling(key, writes=True):
                obstore.put(self._store, key, content, mode="create")
                self._sync(key)
        except ArtifactExists as error:
            if not self._is_stored(key, content):
                raise ArtifactsAway(f"{key} came and went at the same moment") from error

    def _is_stored(self, key: str, content: bytes) -> bool:
        try:
            stored = b"".join(self.stream(key))
        except ArtifactNotFound:
            return False
        if stored != content:
            raise ArtifactExists(key)
        return True

    def _files(self, prefix: str) -> list[str]:
        with telling(prefix):
            return [meta["path"] for batch in obstore.list(self._store, prefix.strip("/")) for meta in batch]

    def _check_bucket(self) -> None:
        """ArtifactsRefused, and why, where it cannot be used; asked for a file's size, S3 only gives a number."""
        if not self._folder:
            with telling(""):
                obstore.list_with_delimiter(self._store, "ping")

    def _sync(self, key: str) -> None:
        """On this machine's disk: the file and the folder that names it survive a power cut."""
        if self._folder:
            for path in (self._folder / key, (self._folder / key).parent):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _part_bytes(file: BinaryIO) -> int:
    """How much of a file goes at a time, so that it has not too many parts."""
    start = file.tell()
    size_bytes = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    return max(PART_BYTES, -(-size_bytes // MOST_PARTS))


def _told(key: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    with telling(key):
        yield from (bytes(chunk) for chunk in chunks)
