"""What an ended attempt left behind: real processes, and what a stand-in for NVML says that they hold."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from acmix.catalog import Device
from tests.service.work import until
from tests.worker.nvml import Nvml, card, holds
from tests.worker.runs import is_gone
from worker import clearing, processes
from worker.clearing import Clearing
from worker.driver import Driver
from worker.processes import Attempt

ENDED = Attempt("job_ended", 2)
GPU = Device(index=0, name="card", memory_bytes=2**34, uuid="GPU-0")
Start = Callable[..., int]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "ENDING_SECONDS", 0.1)
    monkeypatch.setattr(clearing, "PATIENCE_SECONDS", 0.5)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process in a session of its own, by default one of the ended attempt."""
    started: list[subprocess.Popen[bytes]] = []

    def start(job: str = "job_ended", attempt: str = "2") -> int:
        environment = {**os.environ, "ACMIX_JOB": job, "ACMIX_ATTEMPT": attempt} if job else dict(os.environ)
        started.append(subprocess.Popen(["sleep", "1000"], env=environment, start_new_session=True))
        until(lambda: (processes.PROC / str(started[-1].pid) / "cmdline").read_bytes().startswith(b"sleep"))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_what_outlives_its_attempt_is_killed_whatever_its_session(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = [start(), start()]
    Clearing(None).clear(ENDED, [], threading.Event())
    assert all(is_gone(pid) for pid in ranks)
    assert f"process {ranks[0]} of job_ended attempt 2 outlived it and is killed" in caplog.text


@pytest.mark.parametrize(
    "whose", [("job_other", "2"), ("job_ended", "3"), ("job_ended", "22"), ("job_ended2", "2"), ("",)]
)
def test_processes_of_others_are_left_alone(whose: tuple[str, ...], start: Start) -> None:
    other = start(*whose)
    Clearing(None).clear(ENDED, [], threading.Event())
    assert not is_gone(other)


def test_a_worker_that_ends_kills_and_does_not_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "ENDING_SECONDS", 1000)
    rank, hurry = start(), threading.Event()
    hurry.set()
    Clearing(None).clear(ENDED, [], hurry)
    until(lambda: is_gone(rank))


def test_a_gpu_is_well_once_the_process_that_held_it_is_killed(start: Start) -> None:
    rank, held = start(), card(0)
    held["nvmlDeviceGetComputeRunningProcesses"] = lambda: [] if is_gone(rank) else [SimpleNamespace(pid=rank)]
    cleared = Clearing(Driver(Nvml(held)))
    cleared.clear(ENDED, [GPU], threading.Event())
    assert is_gone(rank)
    assert cleared.fault(GPU) is None


def test_a_gpu_that_is_still_held_after_the_patience_is_at_fault_until_it_is_let_go(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs in the driver cannot be killed: here nobody does."""
    monkeypatch.setattr(Attempt, "kill", lambda _self, _pid: None)
    rank, held = start(), card(0)
    holds(held, rank)
    cleared = Clearing(Driver(Nvml(held)))
    cleared.clear(ENDED, [GPU], threading.Event())
    assert cleared.fault(GPU) == f"process {rank} of an earlier run still holds its memory", "tenants read it"
    holds(held)
    assert cleared.fault(GPU) is None
    holds(held, rank)
    assert cleared.fault(GPU) is None, "once it was well, that attempt is history"


def test_a_process_that_is_ending_holds_a_gpu_whosever_it_was(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no environment any more; a zombie stands for one that hangs on its way out."""
    dying, held = start(), card(0)
    os.kill(dying, signal.SIGKILL)
    until(lambda: is_gone(dying))
    holds(held, dying)
    cleared = Clearing(Driver(Nvml(held)))
    cleared.clear(ENDED, [GPU], threading.Event())
    assert cleared.fault(GPU) is not None
    os.waitpid(dying, 0)
    assert cleared.fault(GPU) is None


def test_what_a_worker_before_began_holds_a_gpu_until_it_has_gone_and_is_not_killed(start: Start) -> None:
    """That worker may be about to end by itself; where it was killed, the kernel has killed its runs."""
    earlier, other, held = start("job_earlier", "1"), start(""), card(0)
    holds(held, other, earlier)
    cleared = Clearing(Driver(Nvml(held)))
    cleared.notice([GPU])
    assert cleared.fault(GPU) == f"process {earlier} of an earlier run still holds its memory"
    assert not is_gone(earlier)
    holds(held, other)
    assert cleared.fault(GPU) is None


def test_what_a_worker_before_began_and_is_ending_holds_a_gpu(start: Start) -> None:
    dying, held = start("job_earlier", "1"), card(0)
    os.kill(dying, signal.SIGKILL)
    until(lambda: is_gone(dying))
    holds(held, dying)
    cleared = Clearing(Driver(Nvml(held)))
    cleared.notice([GPU])
    assert cleared.fault(GPU) is not None
    os.waitpid(dying, 0)
    assert cleared.fault(GPU) is None


def test_a_process_of_somebody_else_on_a_gpu_is_told_once_and_holds_nothing_up(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    other, neighbour, held = start(""), start("job_neighbour", "1"), card(0)
    holds(held, other, neighbour)
    cleared = Clearing(Driver(Nvml(held)))
    for _ in range(2):
        cleared.clear(ENDED, [GPU], threading.Event())
    assert cleared.fault(GPU) is None
    assert not is_gone(other)
    assert caplog.text.count("is no run of this service") == 1
    assert f"process {other}, which" in caplog.text


def test_a_gpu_that_the_driver_has_lost_is_at_fault_until_it_is_back() -> None:
    held = card(0)
    cleared = Clearing(Driver(Nvml(held)))
    assert cleared.fault(GPU) is None
    held["lost"] = True
    assert cleared.fault(GPU) == "the driver has lost it"
    held["lost"] = False
    assert cleared.fault(GPU) is None


def test_one_that_only_tells_less_than_others_is_well() -> None:
    part = card(0)
    del part["nvmlDeviceGetMemoryInfo"], part["nvmlDeviceGetComputeRunningProcesses"]
    cleared = Clearing(Driver(Nvml(part)))
    cleared.clear(ENDED, [GPU], threading.Event())
    assert cleared.fault(GPU) is None
