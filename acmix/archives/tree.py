"""The folder that an archive is unpacked into: written below descriptors, each name once, left empty on a refusal."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import TracebackType

from acmix.archives.forms import BEGINNING_BYTES, form_of
from acmix.archives.limits import Tally
from acmix.archives.names import Name, folded, shown
from acmix.errors import ArchiveRefused

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
Parts = tuple[str, ...]


class Tree(AbstractContextManager["Tree"]):
    """Files and folders below a folder that must be empty; whatever ends the block by an error, it is empty again."""

    def __init__(self, root: Path, tally: Tally) -> None:
        if any(root.iterdir()):
            raise FileExistsError(f"{root} is not empty; an archive is unpacked into an empty folder")
        self._path = root
        self._tally = tally
        self._root = os.open(root, FOLDER)
        self._folders: dict[str, Parts] = {"": ()}  # as first spelled, by their folded name
        self._taken: set[bytes] = set()  # files, by a hash of their folded name: there may be millions
        self._last: tuple[Parts, int] = (), self._root  # most files lie where the one before does
        self.files = 0
        self.size_bytes = 0
        self.passed_over = 0

    def add(self, name: Name, content: Iterable[bytes]) -> None:
        """A file of this name, or a folder, which has no content; what macOS keeps for itself is passed over."""
        if name.is_noise:
            self._tally.entry()
            self.passed_over += 1
            _read_through(content)
        elif name.of_folder:
            if not self._claim_folder(name.parts):
                self._tally.entry()  # named once more
            _read_through(content)
        else:
            self._claim_file(name)
            self._write(name, _not_an_archive(name, content))

    def _claim_folder(self, parts: Parts) -> bool:
        """Have the folder and those above it, and say whether it is new; a second spelling of one is refused."""
        if self._last[0] == parts:
            return False
        key = folded(parts)
        if key not in self._folders:
            self._claim_folder(parts[:-1])
            if _mark(key) in self._taken:
                raise ArchiveRefused(f"{shown('/'.join(parts))} is both a file and a folder; rename one and pack again")
            self._tally.entry()
            os.mkdir(parts[-1], 0o700, dir_fd=self._descriptor(parts[:-1]))
            self._folders[key] = parts
            return True
        if self._folders[key] != parts:
            raise _twice(parts, self._folders[key])
        return False

    def _claim_file(self, name: Name) -> None:
        self._tally.entry()
        self._claim_folder(name.parts[:-1])
        key = folded(name.parts)
        if key in self._folders:
            raise ArchiveRefused(f"{name} is both a file and a folder; rename one and pack again")
        mark = _mark(key)
        if mark in self._taken:
            raise _twice(name.parts)
        self._taken.add(mark)

    def _write(self, name: Name, content: Iterable[bytes]) -> None:
        folder, written = self._descriptor(name.parts[:-1]), 0
        with os.fdopen(os.open(name.parts[-1], NEW_FILE, 0o600, dir_fd=folder), "wb") as file:
            for piece in content:
                written += len(piece)
                if written > self._tally.limits.file_bytes:
                    raise too_large(name, self._tally.limits.file_bytes)
                file.write(piece)
        self.files += 1
        self.size_bytes += written

    def _descriptor(self, parts: Parts) -> int:
        """Of a folder that is there, opened part by part from the root and kept until another is asked for."""
        if self._last[0] != parts:
            descriptor = self._root
            for part in parts:
                above, descriptor = descriptor, os.open(part, FOLDER, dir_fd=descriptor)
                self._close(above)
            before, self._last = self._last[1], (parts, descriptor)
            self._close(before)
        return self._last[1]

    def _close(self, descriptor: int) -> None:
        if descriptor not in {self._root, self._last[1]}:
            os.close(descriptor)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in {self._root, self._last[1]}:
            os.close(descriptor)
        if error is not None:
            for path in self._path.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def too_large(name: Name, limit_bytes: int) -> ArchiveRefused:
    return ArchiveRefused(f"{name} is larger than {limit_bytes} bytes, the most of one file; leave it out or split it")


def _twice(parts: Parts, first: Parts | None = None) -> ArchiveRefused:
    """Names that differ in case or in how their letters are composed are one on many systems."""
    other = f", beside {shown('/'.join(first))}" if first else ""
    return ArchiveRefused(
        f"{shown('/'.join(parts))} is there twice{other}; letters' case makes no difference: rename one and pack again"
    )


def _read_through(content: Iterable[bytes]) -> None:
    """What is not kept is read all the same: it may be damaged, or without end."""
    for _ in content:
        pass


def _mark(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()


def _not_an_archive(name: Name, content: Iterable[bytes]) -> Iterator[bytes]:
    """The content, once its name and its beginning have shown that it is no archive."""
    pieces, beginning = iter(content), b""
    while len(beginning) < BEGINNING_BYTES and (piece := next(pieces, b"")):
        beginning += piece
    form = form_of(beginning[:BEGINNING_BYTES])
    if form or name.is_archive:
        raise ArchiveRefused(
            f"{name} is itself an archive{f' ({form})' if form else ' by its name'}; unpack it first and pack its files"
        )
    return chain([beginning], pieces)
