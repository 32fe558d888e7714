"""How far an inspection is, told at most once a second."""

import json
import time
from collections.abc import Callable
from typing import TextIO

EVERY_SECONDS = 1.0


class Progress:
    """Lines of JSON, such as {"progress": {"phase": "unpacking", "done": 5, "of": 10}}; `of` is null where unknown."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._told_at = float("-inf")

    def of(self, phase: str) -> Callable[[int, int | None], None]:
        """What tells of that phase; it may be called as often as one likes."""
        return lambda done, of: self._tell(phase, done, of)

    def _tell(self, phase: str, done: int, of: int | None) -> None:
        now = self._clock()
        if now - self._told_at >= EVERY_SECONDS:
            self._told_at = now
            self._out.write(json.dumps({"progress": {"phase": phase, "done": done, "of": of}}) + "\n")
