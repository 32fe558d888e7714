"""Folders and files of data sets: found below the data root and nowhere else."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from acmix.data_root import folder_below, leads_below
from acmix.datasets._side_by_side import SideBySide
from acmix.errors import AcmixError, DatasetCorrupt, DatasetMissing

__all__ = ["check_files", "folder_below", "leads_below", "read_bytes", "read_text"]

TEXT_BYTES = 10_000_000


def check_files(root: Path, folder: Path, names: Iterable[str], *, told_by: str) -> None:
    """Whether every name, a path below the folder, is a file there.

    DatasetMissing and DatasetCorrupt say which are not, or lead out, and what named them: `told_by`.
    """
    sound: set[str] = set()  # folders whose links were followed
    with SideBySide() as faults:
        for name in names:
            try:
                _check_name(root, folder, name, sound, told_by=told_by)
            except AcmixError as error:
                error.file = folder / name
                faults.add(error)


def _check_name(root: Path, folder: Path, name: str, sound: set[str], *, told_by: str) -> None:
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


def _check_file(root: Path, path: str, mode: int) -> None:
    if stat.S_ISLNK(mode):
        if not leads_below(root, Path(path)):
            raise DatasetCorrupt(f"{path} is a link out of the data root")
        mode = os.stat(path).st_mode  # noqa: PTH116
    if not stat.S_ISREG(mode):
        raise DatasetCorrupt(f"{path} is not a file")
