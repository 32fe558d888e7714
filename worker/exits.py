"""How an attempt ended, by what its run said and how its process left."""

import signal
from dataclasses import dataclass
from pathlib import Path

from acmix.errors import Reason
from acmix.events import Event
from service.store.rows import Outcome, signal_name
from worker.ending import Cause

VMSTAT = Path("/proc/vmstat")
ASKING = (signal.SIGTERM, signal.SIGUSR1)  # what a run is asked by to stop, and to tell where it stands
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)  # a run logs where it stood


@dataclass(frozen=True)
class Exit:
    """What is known of a run that is no more: its return code as subprocess tells it, and what went before.

    `last_word` is its last status event; `cause` what it was asked to end for; `killed` whether we did it;
    `memory_ran_out` whether the kernel killed some process for want of memory at about that time.
    """

    returncode: int
    last_word: Event | None = None
    cause: Cause | None = None
    killed: bool = False
    memory_ran_out: bool = False
    max_runtime_seconds: float | None = None
    silent_seconds: float = 0.0


def outcome(exit_: Exit) -> Outcome:
    """What the run said, else what its exit says.

    A wish is the ledger's to fulfil, since it may have been taken back meanwhile: an end that was asked for is a drain.
    """
    code, number = _status(exit_.returncode)
    said = exit_.last_word.data["status"] if exit_.last_word else None
    if said == "succeeded":
        return Outcome("succeeded", None, code, number)
    if said == "failed" and exit_.last_word:
        return Outcome("failed", Reason(**exit_.last_word.data["reason"]), code, number)
    asked_early = exit_.cause is not None and number in ASKING  # it did not listen yet
    if said == "stopped" or exit_.killed or asked_early:
        return _as_asked(exit_, code, number)
    if number is not None:
        return _by_signal(exit_, number)
    reason = Reason("internal", f"the run left with exit code {code} and no word why", retryable=True)
    return Outcome("failed", reason, code, None)


def kills_for_memory() -> int:
    """How many processes the kernel of this machine has killed for want of memory; 0 where it does not tell."""
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _status(returncode: int) -> tuple[int | None, int | None]:
    """Exit code and signal, one of which there is."""
    return (returncode, None) if returncode >= 0 else (None, -returncode)


def _as_asked(exit_: Exit, code: int | None, number: int | None) -> Outcome:
    if exit_.cause == "max_runtime":
        reason = Reason("max_runtime_exceeded", f"max_runtime_seconds={exit_.max_runtime_seconds} is over", "user")
        return Outcome("failed", reason, code, number)
    if exit_.cause == "stalled":
        silent = f"{exit_.silent_seconds:.0f} s"
        message = f"the run gave no sign of life for {silent}: no batch went by and nothing was said"
        hint = "the job's log says where its threads stood"
        return Outcome("failed", Reason("stalled", message, retryable=True, hint=hint), code, number)
    return Outcome("drained", None, code, number)


def _by_signal(exit_: Exit, number: int) -> Outcome:
    if number == signal.SIGKILL and exit_.memory_ran_out:
        message = "the kernel killed the run when the machine's memory ran out"
        smaller = "a smaller batch_size, or fewer loader_workers"
        reason = Reason("out_of_memory_host", message, "user", retryable=True, hint=smaller)
        return Outcome("failed", reason, None, number)
    message = f"the run was ended by {signal_name(number)}"
    hint = "the job's log says where it stood" if number in CRASHES else None
    return Outcome("lost", Reason("worker_lost", message, retryable=True, hint=hint), None, number)
