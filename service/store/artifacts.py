"""Files of jobs, below keys such as jobs/ID/checkpoints/ID: a folder of this machine or S3 by the same interface."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from service.store.errors import ArtifactExists, ArtifactNotFound, ArtifactsFull

MANIFEST = "manifest.json"
MODEL = "model.safetensors"  # of a checkpoint's folder and of uploaded weights
CHUNK_BYTES = 2**20
FILE_BLOCKS = 2  # of 5 MB each, in memory while a file is stored


class Artifacts:
    """The files behind a URL: file:///folder or s3://bucket/prefix."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)).resolve() if parts.scheme == "file" else None
        self._store = _local(self._folder) if self._folder else from_url(url)

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
        if self._is_stored(f"{key}/{MANIFEST}", manifest.read_bytes()):
            return size_bytes
        for path in (*others, manifest):
            stored = f"{key}/{path.relative_to(folder).as_posix()}"
            with path.open("rb") as file, _telling_full(key):
                obstore.put(self._store, stored, file, mode="create" if path == manifest else "overwrite")
                self._sync(stored)
        return size_bytes

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Store what an open file holds from where it stands; ArtifactsFull."""
        with _telling_full(key):
            obstore.put(self._store, key, file, max_concurrency=FILE_BLOCKS)
            self._sync(key)

    def put_stream(self, key: str, chunks: Iterator[bytes]) -> None:
        """Store what comes, chunk by chunk; ArtifactsFull."""
        with _telling_full(key):
            # not obstore.put: chunks that another of its stores streams cannot be awaited within it
            with obstore.open_writer(self._store, key, max_concurrency=FILE_BLOCKS) as file:
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
            return obstore.head(self._store, key)["size"]
        except FileNotFoundError:
            raise ArtifactNotFound(key) from None

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes `start` up to, not including, `end` of a file, in chunks; ArtifactNotFound before the first."""
        size = self.head(key)
        end = size if end is None else min(end, size)
        if start >= end:
            return iter(())
        try:
            found = obstore.get(self._store, key, options={"range": (start, end)})
        except FileNotFoundError:
            raise ArtifactNotFound(key) from None
        return (bytes(chunk) for chunk in found.stream(min_chunk_size=CHUNK_BYTES))

    def delete_prefix(self, prefix: str) -> None:
        """Remove every file below a prefix of whole path segments; none there is fine."""
        if not prefix.strip("/"):
            raise ValueError("an empty prefix would delete every file; name a job's")
        while files := self._files(prefix):
            with suppress(FileNotFoundError):  # another removes them at the same time
                obstore.delete(self._store, files)

    def all_below(self, prefix: str = "") -> list[str]:
        """Every file below a prefix of whole path segments."""
        return sorted(self._files(prefix))

    def prefixes(self, prefix: str = "") -> list[str]:
        """What lies directly below a prefix: jobs/ID for each job under `jobs`."""
        return sorted(obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"])

    def ping(self) -> None:
        """Raises if the files cannot be reached."""
        if self._folder and not os.access(self._folder, os.W_OK | os.X_OK):
            raise OSError(f"{self._folder} is not a folder that can be written to")
        obstore.list_with_delimiter(self._store, "ping")

    def _is_stored(self, key: str, content: bytes) -> bool:
        try:
            stored = b"".join(self.stream(key))
        except ArtifactNotFound:
            return False
        if stored != content:
            raise ArtifactExists(key)
        return True

    def _files(self, prefix: str) -> list[str]:
        return [meta["path"] for batch in obstore.list(self._store, prefix.strip("/")) for meta in batch]

    def _sync(self, key: str) -> None:
        """On this machine's disk: the file and the folder that names it survive a power cut."""
        if self._folder:
            for path in (self._folder / key, (self._folder / key).parent):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


@contextmanager
def _telling_full(key: str) -> Iterator[None]:
    """obstore has the number of the system's error in its message alone."""
    try:
        yield
    except (OSError, BaseError) as error:
        numbers = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers):
            raise ArtifactsFull(key) from error
        raise


def _local(folder: Path) -> ObjectStore:
    return LocalStore(folder, automatic_cleanup=True, mkdir=True)
