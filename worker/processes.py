"""Processes as /proc tells of them: whose they are by the environment that they were started with.

Where there is no /proc, none is found. A run starts some in sessions of their own, so that no group or session of the
run has all of them; its environment they have all.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Attempt:
    """An attempt by what its processes have in their environment."""

    job: str
    number: int

    def __str__(self) -> str:
        return f"{self.job} attempt {self.number}"

    def has(self, pid: int) -> bool:
        """Whether it started this process, which is alive."""
        environment = _environment(pid)
        return {b"ACMIX_JOB=" + self.job.encode(), b"ACMIX_ATTEMPT=%d" % self.number} <= environment

    def pids(self) -> list[int]:
        """All its processes that are alive."""
        return [pid for pid in _pids() if self.has(pid)]

    def kill(self, pid: int) -> None:
        """Kill this process of it, and no other that has meanwhile come under its number."""
        with suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if self.has(pid):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def group_of(pid: int) -> int | None:
    """None of a process that is no more."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def attempt_of(pid: int) -> Attempt | None:
    """Which attempt started it, if one did."""
    pairs = dict(each.partition(b"=")[::2] for each in _environment(pid))
    job, number = pairs.get(b"ACMIX_JOB"), pairs.get(b"ACMIX_ATTEMPT", b"")
    return Attempt(job.decode(errors="replace"), int(number)) if job and number.isdigit() else None


def is_ending(pid: int) -> bool:
    """Whether it is still there and has given back all memory of its own: what it holds of a GPU is on the way."""
    try:
        return (PROC / str(pid) / "statm").read_bytes().startswith(b"0 ")
    except OSError:
        return False


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal())


def _environment(pid: int) -> set[bytes]:
    """Empty for a process that is no more, or somebody else's."""
    try:
        return set((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
