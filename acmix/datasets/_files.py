"""Folders and files of data sets: found below the data root and nowhere else."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from acmix.errors import DatasetCorrupt, DatasetMissing, OptionInvalid

TEXT_BYTES = 10_000_000


def folder_below(root: Path, folder: str, *, hint: str = "the option folder is a path below the data root") -> Path:
    """The folder of that name below the root; OptionInvalid where the name or a link leads out of it."""
    parts = PurePosixPath(folder)
    if not folder or parts.is_absolute() or ".." in parts.parts or "\0" in folder:
        raise OptionInvalid(f"folder={folder[:200]!r} must be a path below the data root, without '..'")
    path = root / parts
    if not leads_below(root, path):
        raise OptionInvalid(f"folder={folder[:200]!r} is a link out of the data root; mount or copy the files instead")
    if not _is_folder(path):
        raise DatasetMissing(f"{path} is not a folder", hint=hint)
    return path


def check_files(root: Path, folder: Path, names: Iterable[str], *, told_by: str) -> None:
    """Whether every name, a path below the folder, is a file there.

    DatasetMissing and DatasetCorrupt say which is not, or leads out, and what named it: `told_by`.
    """
    sound: set[str] = set()  # folders whose links were followed
    for name in names:
        try:
            parts = PurePosixPath(name).parts
            if not parts or parts[0] == "/" or ".." in parts:
                raise DatasetCorrupt(f"{told_by}: {name[:200]!r} must be a path below {folder}, without '..'")
            parent, path = os.path.dirname(name), os.path.join(folder, name)  # noqa: PTH118, PTH120  # 118,000 of them
            if not (parent in sound or leads_below(root, folder / parent)):
                raise DatasetCorrupt(f"{told_by}: {name[:200]!r} leads out of the data root")
            sound.add(parent)
            _check_file(root, path, os.lstat(path).st_mode)
        except (OSError, ValueError):  # ValueError: no name that a file can have
            raise DatasetMissing(f"{told_by}: {name[:200]!r} is not in {folder}") from None


def read_text(root: Path, path: Path, *, limit_bytes: int = TEXT_BYTES) -> str:
    """A text file of a data set, UTF-8; errors as of read_bytes."""
    try:
        return read_bytes(root, path, limit_bytes=limit_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetCorrupt(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def read_bytes(root: Path, path: Path, *, limit_bytes: int = TEXT_BYTES) -> bytes:
    """A small file of a data set; DatasetMissing and DatasetCorrupt name one that is not there, astray or too large."""
    if not path.is_file():
        raise DatasetMissing(f"{path} is not there")
    if not leads_below(root, path):
        raise DatasetCorrupt(f"{path} is a link out of the data root")
    if (size_bytes := path.stat().st_size) > limit_bytes:
        raise DatasetCorrupt(f"{path} has {size_bytes} bytes; at most {limit_bytes} are read")
    return path.read_bytes()


def leads_below(root: Path, path: Path) -> bool:
    """Whether a path, its links followed, ends below the root; links in a circle end nowhere."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _check_file(root: Path, path: str, mode: int) -> None:
    if stat.S_ISLNK(mode):
        if not leads_below(root, Path(path)):
            raise DatasetCorrupt(f"{path} is a link out of the data root")
        mode = os.stat(path).st_mode  # noqa: PTH116
    if not stat.S_ISREG(mode):
        raise DatasetCorrupt(f"{path} is not a file")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the file system's
        return False
