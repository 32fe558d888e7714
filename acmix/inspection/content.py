"""What lies in a folder: a hash of all of it, and a short description for people."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from acmix.archives.names import shown

MOST_NAMES = 12


@dataclass(frozen=True)
class Content:
    """Files below a folder: how many, of how many bytes, and a hash of all names, sizes and contents."""

    sha256: str
    files: int
    size_bytes: int


def content_of(folder: Path, tell: Callable[[int, int | None], None]) -> Content:
    """Hashes every file; `tell` is called with how many are done, of how many."""
    paths = sorted(_files(folder))
    whole, size_bytes = hashlib.sha256(), 0
    for done, path in enumerate(paths):
        file_bytes, digest = _fingerprint(folder / path)
        size_bytes += file_bytes
        # surrogates stand for bytes that are no UTF-8: names of data that lay there already are as they are
        whole.update(f"{path}\0{file_bytes}\0{digest}\n".encode("utf-8", "surrogateescape"))
        tell(done + 1, len(paths))
    return Content(whole.hexdigest(), len(paths), size_bytes)


def description(folder: Path) -> str:
    """The names at the top, and what kinds of files lie below each."""
    lines = []
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries[:MOST_NAMES]:
        is_folder = entry.is_dir(follow_symlinks=False)
        lines.append(f"{_plain(entry.name)}/: {_kinds(Path(entry.path))}" if is_folder else _plain(entry.name))
    if len(entries) > MOST_NAMES:
        lines.append(f"and {len(entries) - MOST_NAMES} more")
    return "\n".join(lines) or "nothing"


def _files(folder: Path) -> Iterator[str]:
    """Paths of all files and links below, without following a link to a folder."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]  # noqa: PTH118, PTH114
        for name in (*files, *links):
            yield PurePath(place, name).relative_to(folder).as_posix()


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size and hash of a file; of a link, those of where it leads."""
    if path.is_symlink():
        return 0, f"link to {path.readlink()}"
    if not path.is_file():  # a named pipe would never end
        return 0, "no file"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _kinds(folder: Path) -> str:
    """Such as `2 folders, 40 files (.jpg 39, .txt 1)`."""
    folders, suffixes = 0, Counter[str]()
    for _, names, files in os.walk(folder):
        folders += len(names)
        suffixes.update(PurePath(name).suffix.lower() or "without suffix" for name in files)
    told = ", ".join(f"{_plain(suffix)} {count}" for suffix, count in suffixes.most_common(MOST_NAMES))
    return f"{folders} folders, {suffixes.total()} files{f' ({told})' if told else ''}"


def _plain(name: str) -> str:
    return shown(name)[1:-1]
