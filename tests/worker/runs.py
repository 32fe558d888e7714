"""Attempts supervised in threads of their own, and what of their processes is alive."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import psutil

from service.store.artifacts import Artifacts
from service.store.backend import Backend
from service.store.rows import Claim
from worker.supervise import Supervisor


class Attempts:
    """Begins attempts. `draining` is both flags of their node."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.draining = threading.Event()
        self._threads = ThreadPoolExecutor()

    def begin(self, claim: Claim, backend: Backend | None = None) -> "Future[None]":
        """Supervise it; the result comes when the supervisor leaves."""
        supervisor = Supervisor(backend or self.backend, claim, [], 1, self.draining, self.draining)
        return self._threads.submit(supervisor.run)

    def see_through(self, claim: Claim) -> None:
        """Supervise it to its end."""
        self.begin(claim).result(60)

    def end_all(self) -> None:
        self.draining.set()
        self._threads.shutdown()


class PausingArtifacts(Artifacts):
    """Stops between "files stored" and whatever comes next."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.stored, self.go_on = threading.Event(), threading.Event()

    def put_folder(self, *arguments: object) -> int:
        size_bytes = super().put_folder(*arguments)  # type: ignore[arg-type]  # handed through as they came
        self.stored.set()
        assert self.go_on.wait(30)
        return size_bytes


def runs() -> list[int]:
    """Processes of runs that this process started and that are alive."""
    return [child.pid for child in psutil.Process().children() if "--folder" in words(child)]


def is_gone(pid: int) -> bool:
    """Whether the process is no more; one that nobody has yet asked how it ended is none."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def words(process: psutil.Process) -> list[str]:
    """Its words; none of a process that is no more."""
    try:
        return [] if is_gone(process.pid) else process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
