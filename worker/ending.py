"""When a run is to end: who wants it to, how long it may take, and how one that hangs is told from one that is slow."""

import statistics
import time
from collections import deque
from pathlib import Path
from typing import Literal

from worker.child import Child

Cause = Literal["cancel", "pause", "drain", "max_runtime", "stalled"]

GAPS = 100  # between signs of life, the latest
SLOW = 10  # times the usual gap is still slow, and no more


class Ending:
    """A run is asked to end once, and killed with its whole group when the shortest of several graces is over."""

    def __init__(self, child: Child) -> None:
        self.cause: Cause | None = None
        self.killed = False
        self._child = child
        self._kill_at = float("inf")

    def ask(self, cause: Cause, grace_seconds: float) -> None:
        self.within(grace_seconds)
        if self.cause is None:
            self.cause = cause
            self._child.ask_to_stop()

    def within(self, seconds: float) -> None:
        """It is to be gone by then."""
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)

    def kill_if_due(self) -> None:
        if time.monotonic() > self._kill_at:
            self.killed = True
            self._child.kill()


class Signs:
    """Signs of life: what a run says, and the file that it touches while batches go by."""

    def __init__(self, pulse: Path, *, patience_seconds: float) -> None:
        self._pulse = pulse
        self._patience_seconds = patience_seconds
        self._touched_at: int | None = None
        self._alive_at = time.monotonic()
        self._gaps: deque[float] = deque(maxlen=GAPS)

    def heard(self) -> None:
        """It said something, or waits to be heard."""
        now = time.monotonic()
        self._gaps.append(now - self._alive_at)
        self._alive_at = now

    def silent_seconds(self) -> float | None:
        """For how long there was none, if that is too long."""
        if (touched_at := self._last_touch()) != self._touched_at:
            self._touched_at = touched_at
            self.heard()
        silent = time.monotonic() - self._alive_at
        usual = statistics.median(self._gaps) if self._gaps else 0.0
        return silent if silent > max(self._patience_seconds, SLOW * usual) else None

    def _last_touch(self) -> int | None:
        try:
            return self._pulse.stat().st_mtime_ns
        except OSError:
            return None
