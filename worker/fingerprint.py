"""What the file system says of a folder's files, none of them read: enough to see that they are as they were."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

SETTLED_SECONDS = 10.0  # clocks of file systems tick: of two writes at once, the second may leave no trace


@dataclass(frozen=True)
class Fingerprint:
    """A digest of all names in a folder, each with inode, size and times; which of them changed last, and when.

    `is_settled` where that was long enough before for any later change to show.
    """

    digest: str
    last: Path
    changed_at: float
    is_settled: bool


def fingerprint(folder: Path, told: Callable[[], None]) -> Fingerprint:
    """Links in the folder are not followed; `told` is called at every name, and ends it by raising."""
    began, whole = time.time(), sha256()
    last = (0, str(folder))
    for path in _paths(folder):
        told()
        try:
            found = os.lstat(path)
        except OSError as error:  # whoever reads it will say
            traces = f"error {error.errno}"
        else:
            last = max(last, (found.st_ctime_ns, path))
            where = f"{found.st_dev} {found.st_ino} {found.st_mode}"
            traces = f"{where} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        whole.update(f"{path}\0{traces}\n".encode("utf-8", "surrogateescape"))
    changed_at = last[0] / 1e9
    return Fingerprint(whole.hexdigest(), Path(last[1]), changed_at, began - changed_at > SETTLED_SECONDS)


def _paths(folder: Path) -> Iterator[str]:
    """The folder itself and all in it, in the same order every time."""
    yield f"{folder}/."
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in (*folders, *sorted(files)):
            yield os.path.join(place, name)  # noqa: PTH118  # there may be millions
