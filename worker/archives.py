"""Uploaded archives on this machine's disk: room for them, and their parts joined to one file."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from acmix.errors import DiskFull
from service.store.artifacts import Artifacts
from service.store.rows import DatasetPart

SPARE_BYTES = 2**30  # left to all others


def has_room(folder: Path, size_bytes: int) -> bool:
    """Whether so many bytes would leave enough."""
    return free_bytes(folder) >= size_bytes + SPARE_BYTES


def check_room(folder: Path, size_bytes: int) -> None:
    """DiskFull where so many bytes would leave too little."""
    if not has_room(folder, size_bytes):
        need = f"a data set takes {size_bytes} bytes, and {SPARE_BYTES} are to be left"
        raise DiskFull(f"{need}; {folder} has {free_bytes(folder)} free")


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def fetch(artifacts: Artifacts, parts: Sequence[DatasetPart], target: Path, told: Callable[[int], None]) -> None:
    """Write the parts, one behind the other, as one file; ArtifactNotFound.

    `told` is called with the bytes so far after every chunk, and ends it by raising.
    """
    done = 0
    with target.open("xb") as file:
        for part in parts:
            for chunk in artifacts.stream(part.key):
                done += file.write(chunk)
                told(done)
