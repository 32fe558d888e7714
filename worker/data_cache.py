"""Unpacked data sets of users on this node's disk: made when a job first reads one, and shared by all after it.

A folder is made beside its place and renamed into it, so that one that is there is whole. A lock file beside it is
held alone by whoever makes or removes the folder, and together by all whose jobs read it.

What lies below the data root is not copied: before a job reads it, its content is hashed again, unless the file system
shows no change since that was last done here.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO

from acmix.archives.names import shown
from acmix.data_root import folder_below
from acmix.errors import DatasetCorrupt, DatasetMissing
from service.store.backend import Backend
from service.store.errors import ArtifactNotFound, DatasetNotFound
from service.store.rows import Dataset
from worker.archives import check_room, fetch, has_room
from worker.fingerprint import fingerprint
from worker.inspection_child import INSPECT, Found, InspectionChild, Unpacked

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
CONTENT = "content"
SIZE = "size_bytes"
ANEW = "declare it as a new data set, or put back what was checked"


class GivenUp(Exception):
    """The job is to end before its data is there."""


class DataCache:
    """Safe for many threads and processes of a node."""

    def __init__(self, backend: Backend, command: Sequence[str] = INSPECT) -> None:
        self.reader = backend.reader
        self.artifacts = backend.artifacts
        self.data_root = backend.settings.data_root
        self.most_bytes = backend.settings.data_cache_bytes
        self.folder = backend.settings.data_folder / "datasets-cache"
        self.command = command

    @contextmanager
    def held(self, dataset_id: str, give_up: Callable[[], bool]) -> Iterator[Path]:
        """The folder of a data set's content, which stays until it is let go; one at `path` is read where it lies.

        Raises:
            GivenUp: `give_up`, which is asked all the while, said so.
            DatasetMissing, DatasetCorrupt: it was removed, or is not what was checked.
            InspectionFailed, DiskFull: it could not be unpacked, or looked at, now.
        """
        dataset = self._dataset(dataset_id)
        entry = self.folder / f"{dataset.id}-{(dataset.sha256 or '')[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if dataset.path is not None:
            folder = folder_below(self.data_root, dataset.path, option="path", hint=ANEW)
            self._verify(dataset, folder, entry, give_up)
            yield folder
            return
        with _lock_of(entry).open("ab") as lock:
            self._there(dataset, entry, lock, give_up)
            try:
                yield entry / CONTENT
            finally:
                os.utime(lock.fileno())  # when it was last of use

    def _dataset(self, dataset_id: str) -> Dataset:
        try:
            dataset = self.reader.dataset(dataset_id)
        except DatasetNotFound:
            raise DatasetMissing(f"{dataset_id}, which the job reads, was removed before it began") from None
        if dataset.status != "ready":
            raise DatasetMissing(f"{dataset_id}, which the job reads, is {dataset.status}")
        return dataset

    def _verify(self, dataset: Dataset, folder: Path, entry: Path, give_up: Callable[[], bool]) -> None:
        """DatasetCorrupt where a folder's content is not what was checked."""
        told = _ended_by(give_up)
        verified, now = _verified(entry), fingerprint(folder, told)
        if verified.exists() and verified.read_text() == now.digest:
            return
        found = self._found(dataset, ["--folder", str(folder), "--into", str(self.folder)], told)
        if not _is_as_checked(found, dataset):
            raise _changed(dataset, now.last.relative_to(self.data_root), now.changed_at)
        if now.is_settled:  # what changed since would give another digest
            verified.write_text(now.digest)  # torn by another's, it is equal to none

    def _there(self, dataset: Dataset, entry: Path, lock: IO[bytes], give_up: Callable[[], bool]) -> None:
        """Hold the lock together with others, the folder being there: made by this one, if by none before it."""
        never = Event()
        while not (_is_taken(lock, fcntl.LOCK_SH) and entry.is_dir()):
            if give_up():
                raise GivenUp
            # of those that hold it together at this moment, all but the last lose it here
            if not _is_taken(lock, fcntl.LOCK_EX):
                never.wait(TICK_SECONDS)
            elif not entry.is_dir():
                self._make(dataset, entry, give_up)

    def _make(self, dataset: Dataset, entry: Path, give_up: Callable[[], bool]) -> None:
        making = _beside(entry, ".making")
        shutil.rmtree(making, ignore_errors=True)
        size_bytes = dataset.size_bytes or 0
        self._make_room(size_bytes, dataset.received_bytes)
        check_room(self.folder, dataset.received_bytes + size_bytes)
        making.mkdir()
        try:
            self._unpack(dataset, making, give_up)
            (making / SIZE).write_text(str(size_bytes))
            making.rename(entry)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        log.info("%s is unpacked in %s", dataset.id, entry)

    def _unpack(self, dataset: Dataset, making: Path, give_up: Callable[[], bool]) -> None:
        archive, told = making / "archive", _ended_by(give_up)
        try:
            fetch(self.artifacts, self.reader.dataset_parts(dataset.id), archive, told)
        except ArtifactNotFound:
            raise DatasetMissing(f"{dataset.id}, which the job reads, was removed before it began") from None
        found = self._found(dataset, ["--archive", str(archive), "--into", str(making)], told)
        if not _is_as_checked(found, dataset):
            raise DatasetCorrupt(f"{dataset.id}, which the job reads, is not what was checked: its content differs")
        archive.unlink()

    def _found(self, dataset: Dataset, where: Sequence[str], told: Callable[[], None]) -> Found:
        """What a child finds there, the content's hash alone; `told` is called meanwhile, and ends it by raising."""
        declared = ["--task", dataset.task, "--format", dataset.format, "--unpack-only"]
        child = InspectionChild(self.command, [*where, *declared])
        try:
            while not child.has_ended(TICK_SECONDS):
                told()
            return child.found()
        finally:
            child.close()

    def _make_room(self, size_bytes: int, archive_bytes: int) -> None:
        """Remove what was not of use for the longest time until so much more fits; never what a job reads.

        It must fit into the cache, and on the disk together with its archive.
        """
        for left in self.folder.glob(".ds_*"):
            with _alone(self.folder / left.stem.removeprefix(".")) as is_alone:
                if is_alone:
                    shutil.rmtree(left, ignore_errors=True)
        sizes = self._sizes()
        for entry in [entry for entry in sizes if self._is_deleted(entry)]:
            if _removed(entry):
                del sizes[entry]
        for entry in sorted(sizes, key=lambda entry: _lock_of(entry).stat().st_mtime):
            fits = sum(sizes.values()) + size_bytes <= self.most_bytes
            if fits and has_room(self.folder, size_bytes + archive_bytes):
                return
            if _removed(entry):
                del sizes[entry]

    def _is_deleted(self, entry: Path) -> bool:
        try:
            self.reader.dataset(entry.name.partition("-")[0])
        except DatasetNotFound:
            return True
        return False

    def _sizes(self) -> dict[Path, int]:
        """Bytes of every entry that is whole; another process may remove some meanwhile."""
        sizes = {}
        for path in self.folder.glob(f"ds_*/{SIZE}"):
            with suppress(FileNotFoundError):
                sizes[path.parent] = int(path.read_text())
        return sizes


def _ended_by(give_up: Callable[[], bool]) -> Callable[..., None]:
    """To be called all the while: GivenUp once it says so."""

    def told(*_done: int) -> None:
        if give_up():
            raise GivenUp

    return told


def _is_as_checked(found: Found, dataset: Dataset) -> bool:
    """Whether the files are the same, and lie in the same folder of those they are wrapped in."""
    root = (dataset.report or {}).get("root")
    return isinstance(found, Unpacked) and (found.sha256, found.root) == (dataset.sha256, root)


def _changed(dataset: Dataset, last: Path, changed_at: float) -> DatasetCorrupt:
    """Of data below the data root; `last`, a path below it, is what changed last there, since the check or before."""
    told = f"the data below path={(dataset.path or '')[:200]!r} changed since it was checked"
    if dataset.checked_at and changed_at > dataset.checked_at.timestamp():
        told += f"; what changed last is {shown(last.as_posix())}"
    return DatasetCorrupt(f"{dataset.id}, which the job reads, is not what was checked: {told}", hint=ANEW)


def _verified(entry: Path) -> Path:
    """Holds the fingerprint that a folder below the data root had when its content was last seen to be as checked."""
    return entry.with_name(f"{entry.name}.verified")


def _lock_of(entry: Path) -> Path:
    """Lock files stay: one that was removed could be held by one process and made anew by another."""
    return entry.with_name(f"{entry.name}.lock")


def _removed(entry: Path) -> bool:
    """Remove an entry, unless it is in use: out of its place at once, then off the disk."""
    gone = _beside(entry, ".gone")
    with _alone(entry) as is_alone:
        if is_alone:
            with suppress(FileNotFoundError):  # another has removed it
                entry.rename(gone)
                log.info("%s makes way for another data set", entry.name)
            shutil.rmtree(gone, ignore_errors=True)
    return is_alone


def _beside(entry: Path, suffix: str) -> Path:
    return entry.with_name(f".{entry.name}{suffix}")


def _is_taken(lock: IO[bytes], kind: int) -> bool:
    """Take a lock in place of the one held through this file, if that can be had at once; else none is held."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Whether nobody makes or reads an entry; if so, nobody does meanwhile."""
    with _lock_of(entry).open("ab") as lock:
        yield _is_taken(lock, fcntl.LOCK_EX)
