"""The bytes of an archive that lies in one file, or in several that follow one another."""

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path

from acmix.archives.limits import Tell

CHUNK_BYTES = 64 * 1024
MOST_OPEN = 8  # an upload may come in thousands of parts


class Parts(AbstractContextManager["Parts"]):
    """Several files read as one; few of them are open at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._starts = [0, *accumulate(path.stat().st_size for path in self._paths)]
        self._open: OrderedDict[int, int] = OrderedDict()  # descriptors by number of the part, last used last
        self.size_bytes = self._starts[-1]

    def read(self, offset: int, size_bytes: int) -> bytes:
        """So many bytes from there; fewer only at the end."""
        pieces = []
        while size_bytes > 0 and offset < self.size_bytes:
            number = bisect_right(self._starts, offset) - 1
            piece = os.pread(self._descriptor(number), size_bytes, offset - self._starts[number])
            if not piece:
                raise OSError(f"{self._paths[number]} became shorter while it was read")
            pieces.append(piece)
            offset, size_bytes = offset + len(piece), size_bytes - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self.size_bytes if end is None else end
        for offset in range(start, end, CHUNK_BYTES):
            yield self.read(offset, min(CHUNK_BYTES, end - offset))

    def sha256(self, tell: Tell) -> str:
        """Of all bytes, in hex; `tell` is called with how many are hashed, of how many."""
        digest, done = hashlib.sha256(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            done += len(chunk)
            tell(done, self.size_bytes)
        return digest.hexdigest()

    def _descriptor(self, number: int) -> int:
        if number not in self._open:
            self._open[number] = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(number)
        return self._open[number]

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
