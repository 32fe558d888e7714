"""A sign of life for a check beside the process: a file that its loop touches as it goes round.

The check needs neither database nor broker: a process that waits for them is well. One that stands still is not.
"""

import math
import platform
import time
from contextlib import suppress
from pathlib import Path

from service.settings import Settings

FOLDER = "alive"
PATIENCE_SECONDS = 120.0  # a round may wait for a database that is slow to say no
FORGOTTEN_SECONDS = 86400.0


class SignOfLife:
    """Of a process of this role on this machine, or in this container."""

    def __init__(self, settings: Settings, role: str) -> None:
        self.patience_seconds = max(PATIENCE_SECONDS, 4 * settings.idle_look_seconds, 4 * settings.sweep_seconds)
        self._file = settings.data_folder / FOLDER / f"{role}-{platform.node()}"

    def give(self) -> None:
        """A round begins."""
        with suppress(OSError):  # a full disk is no reason to end
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()

    def age_seconds(self) -> float:
        """Since the last one; infinite where there was none."""
        return _age_seconds(self._file)

    def forget_others(self) -> None:
        """Containers come and go, each with a name of its own: what they left behind goes after a day."""
        with suppress(OSError):
            for file in self._file.parent.iterdir():
                if _age_seconds(file) > FORGOTTEN_SECONDS:
                    file.unlink(missing_ok=True)


def _age_seconds(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return math.inf
