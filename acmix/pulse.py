"""A sign of life for whoever watches a run from outside: a file that is touched while batches go by."""

import time
from contextlib import suppress
from pathlib import Path

FILE = "pulse"  # in the run's folder
EVERY_SECONDS = 1.0


class Pulse:
    """A run that hangs, whatever in, touches it no longer; one that is only slow does."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._due_at = 0.0

    def beat(self) -> None:
        """A batch went by."""
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + EVERY_SECONDS
        with suppress(OSError):  # a full disk is no reason to end
            self._file.touch()
