"""Several processes that train together, heard as one run: torchrun starts them, the first of them tells events.

In the run's folder `ranks/` has, for each rank, a file with its process id, its log, and why it failed, if it did; and
`failures.json`, which ranks failed in what order.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acmix.errors import AcmixError, Reason
from acmix.events import Event
from acmix.spec import JobSpec

FOLDER = "ranks"
FAILURES = "failures.json"  # the ranks that failed, the first first
CLOSING_SECONDS = 30  # torchrun's patience with the others: it sends them SIGTERM, and SIGKILL after so long
POLL_SECONDS = 0.05
GONE = ("gloo/", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
LOADERS = "ACMIX_LOADER_WORKERS"  # how many loader workers "auto" may mean for each process of a run, at most
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # which torchrun sets
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"

log = logging.getLogger("acmix")


@dataclass(frozen=True)
class Failure:
    """How a rank failed, by its exit code as subprocess tells it, and when, in seconds since the epoch."""

    rank: int
    exit_code: int
    at: float


class RankFailed(AcmixError):
    """One of the processes that train together failed, the others with it; the reason is its own.

    `rank` is None where nobody knows whose.
    """

    def __init__(self, rank: int | None, reason: Reason) -> None:
        super().__init__(reason.message if rank is None else f"rank {rank}: {reason.message}", hint=reason.hint)
        self.rank = rank
        self._reason = reason

    def reason(self) -> Reason:
        its = self._reason
        return Reason(its.code, self.message, its.blame, its.retryable, its.hint)


class RankDied(AcmixError):
    """One of the processes that train together was ended by a signal, the others with it.

    `rank` is None where it was torchrun's own process. `at` is when, in seconds since the epoch: the others may take a
    while to end.
    """

    retryable = True

    def __init__(self, rank: int | None, size: int, number: int, at: float) -> None:
        what = "torchrun" if rank is None else f"rank {rank} of {size}"
        super().__init__(f"{what} was ended by {signal.Signals(number).name}")
        self.rank = rank
        self.signal = number
        self.at = at


def is_rank() -> bool:
    """Whether this process is one of several that train together."""
    return all(name in os.environ for name in VARIABLES)


def launched(
    spec: JobSpec,
    folder: Path,
    *,
    data_root: Path,
    weights_file: Path | None,
    dataset_folder: Path | None,
    stop: threading.Event,
) -> Iterator[Event]:
    """The run of a spec of several ranks, each in a process of its own on this machine. As acmix.run otherwise.

    Raises:
        RankFailed, RankDied: the first of them that did.
    """
    place = folder / FOLDER
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "spec.json").write_text(json.dumps(spec.dump()))
    command = [sys.executable, "-m", "acmix.training.agent", str(os.getpid()), str(spec.resources.ranks), str(place)]
    command += ["run", str(place / "spec.json"), "--folder", str(folder), "--data-root", str(data_root)]
    command += ["--weights", str(weights_file)] if weights_file else []
    command += ["--dataset-folder", str(dataset_folder)] if dataset_folder else []
    agent = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=_environment(spec.resources.ranks),
        start_new_session=True,  # what a terminal sends is for this process, which passes it on once the ranks listen
    )
    threading.Thread(target=_stop_when_asked, args=(agent, place, stop), daemon=True).start()
    try:
        yield from _heard(agent, place, spec.resources.ranks)
    finally:
        if agent.poll() is None or agent.returncode < 0:  # else it saw them all end, and their numbers may be others'
            pass_on(folder, signal.SIGKILL)
            agent.kill()
            agent.wait()


def pass_on(folder: Path, number: int) -> None:
    """Send a signal to every rank of the run in this folder."""
    for file in (folder / FOLDER).glob("*.pid"):
        _send(file, number)


def register(folder: Path) -> None:
    """This rank is ready to be sent signals."""
    _write(folder / FOLDER / f"{os.environ['RANK']}.pid", str(os.getpid()))


def leave_word(folder: Path, reason: Reason, error: Exception) -> None:
    """Why this rank fails, and whether it is but the echo of another that has gone."""
    said = {"reason": reason.as_json(), "is_echo": _is_echo(error), "at_ns": time.time_ns()}
    _write(folder / FOLDER / f"{os.environ['RANK']}.json", json.dumps(said))


def die_of(number: int) -> None:
    """End this process by that signal, so that whoever waits for it sees what a rank died of."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _is_echo(error: Exception) -> bool:
    """torch has an exception of its own for NCCL's words, and none for gloo's."""
    named = type(error).__name__.startswith("Dist")
    return named or (isinstance(error, RuntimeError) and any(word in str(error) for word in GONE))


def _environment(ranks: int) -> dict[str, str]:
    """A fair share of the cores for each; they are all on this machine, whatever its other interfaces."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # it would warn every run that no parameter went unused
    }
    return {**defaults, **os.environ}


def _heard(agent: "subprocess.Popen[bytes]", place: Path, size: int) -> Iterator[Event]:
    """What the first rank says; an error where none of its words is the last of a run."""
    last_word = False
    assert agent.stdout is not None
    with agent.stdout as pipe:
        for line in pipe:
            try:
                event = Event.from_line(line)
            except ValueError:
                log.warning("rank 0 said what is no event: %r", line[:200])
                continue
            last_word = event.type == "status" and event.data["status"] in ("succeeded", "stopped")
            yield event
    returncode = agent.wait()
    if not last_word:
        raise _fault(place, size, returncode)


def _fault(place: Path, size: int, returncode: int) -> AcmixError:
    """What went wrong first: ranks that lose another fail too, a moment later, and torchrun ends those that do not."""
    words = {int(file.stem): json.loads(file.read_text()) for file in place.glob("[0-9]*.json")}
    own = {rank: word for rank, word in words.items() if not word["is_echo"]}
    if own:
        return _said(own, min(own, key=lambda rank: own[rank]["at_ns"]))
    failures = _failures(place)
    for failure in failures:
        if failure.exit_code < 0 and (failure is failures[0] or _was_killed_by_somebody(failure, failures[0])):
            return RankDied(failure.rank, size, -failure.exit_code, failure.at)
    if returncode < 0:
        return RankDied(None, size, -returncode, time.time())
    if failures and failures[0].rank not in words:
        return RankFailed(failures[0].rank, _wordless(f"it left with exit code {failures[0].exit_code}"))
    if words:
        return _said(words, failures[0].rank if failures else min(words, key=lambda rank: words[rank]["at_ns"]))
    return RankFailed(None, _wordless(f"torchrun left with exit code {returncode}"))


def _said(words: Mapping[int, Any], rank: int) -> RankFailed:
    return RankFailed(rank, Reason(**words[rank]["reason"]))


def _wordless(how: str) -> Reason:
    return Reason("internal", f"{how} and no word why", retryable=True)


def _was_killed_by_somebody(failure: Failure, first: Failure) -> bool:
    """As the kernel does where memory runs out; torchrun would do it later. Its times are whole seconds."""
    return failure.exit_code == -signal.SIGKILL and failure.at - first.at < CLOSING_SECONDS - 1


def _failures(place: Path) -> list[Failure]:
    try:
        return [Failure(**each) for each in json.loads((place / FAILURES).read_text())]
    except FileNotFoundError:
        return []


def _stop_when_asked(agent: "subprocess.Popen[bytes]", place: Path, stop: threading.Event) -> None:
    """The ranks agree on when: it does to ask the first, once it can be asked."""
    while not stop.wait(1):
        if agent.poll() is not None:
            return
    while agent.poll() is None and not _send(place / "0.pid", signal.SIGTERM):
        time.sleep(POLL_SECONDS)


def _send(file: Path, number: int) -> bool:
    """Whether there is such a process."""
    with suppress(OSError, ValueError):
        os.kill(int(file.read_text()), number)
        return True
    return False


def _write(file: Path, text: str) -> None:
    """Whole or not at all: others may read it at any time."""
    temporary = file.with_suffix(".writing")
    temporary.write_text(text)
    temporary.replace(file)
