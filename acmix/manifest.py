"""The list of a folder's files with sizes and hashes; a folder with a manifest that holds is whole."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acmix.errors import CheckpointIncompatible

MANIFEST = "manifest.json"


def write(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sync the files, then write and sync their manifest and the folder itself; {name: {size_bytes, sha256}}."""
    files = {name: _fingerprint(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    for name in (*names, MANIFEST):
        sync(folder / name)
    sync(folder)
    return files


def check(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a folder, every byte it lists checked; CheckpointIncompatible names the file that is off."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if _fingerprint(folder / name) != expected:
                raise CheckpointIncompatible(f"{folder.name}/{name} is not as it was written: size or sha256 differs")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointIncompatible(f"{folder.name} is not whole: {type(error).__name__}: {error}") from error
    return files


def sync(path: Path) -> None:
    """Have the kernel write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
