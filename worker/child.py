"""An attempt's process: `python -m acmix run` in a process group of its own, its events and its log read from pipes."""

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from acmix.catalog import Device
from acmix.events import Event
from acmix.training.launch import LOADERS
from worker import processes
from worker.processes import Attempt

log = logging.getLogger(__name__)

MAX_LINE_CHARACTERS = 4000
MAX_LOG_BYTES = 2**20  # read at once: a log without an end of line must not fill the memory
PIPES_SECONDS = 10.0  # after its end, in which its pipes are closed: what the kernel cannot kill may hold them open
MAX_WAITING_BYTES = 256 * 2**20  # told by the child and not yet recorded; beyond it the child waits

_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHON", "VIRTUAL_ENV"),
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "OPENBLAS_", "TORCH", "SSL_CERT", "HF_"),
)
T = TypeVar("T")


class Child:
    """Started when made. `take` gives what it said since the last call; it never blocks."""

    def __init__(
        self,
        spec: Path,
        folder: Path,
        data_root: Path,
        devices: Sequence[Device],
        threads: int,
        weights: Path | None = None,
        dataset_folder: Path | None = None,
        ids: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "acmix", "run", str(spec), "--folder", str(folder)]
        command += ["--weights", str(weights)] if weights else []
        command += ["--dataset-folder", str(dataset_folder)] if dataset_folder else []
        self.process = subprocess.Popen(
            [*command, "--data-root", str(data_root), "--tether", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(devices, threads), **_named(ids or {}), LOADERS: str(threads)},
            start_new_session=True,
        )
        _have_killed_first(self.process.pid)
        self._strays: set[int] = set()
        self._gone_at: float | None = None
        self._attempt = Attempt(ids["job"], int(ids["attempt"])) if ids else None
        self._events: queue.SimpleQueue[tuple[Event, int]] = queue.SimpleQueue()
        self._lines: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._closed = False
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_events, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def has_ended(self) -> bool:
        """Whether the process is gone and all that it said has been read; what cannot be killed is not waited for."""
        if self.process.poll() is None:
            return False
        self._gone_at = self._gone_at or time.monotonic()
        is_read = not any(reader.is_alive() for reader in self._readers)
        return is_read or (time.monotonic() > self._gone_at + PIPES_SECONDS and not self.waits_to_be_heard())

    def wait(self, seconds: float) -> None:
        """Return when the process has ended or the time is up."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        self.kill()  # what it left behind would hold the pipes open
        for reader in self._readers:
            reader.join(seconds)

    def waits_to_be_heard(self) -> bool:
        """Whether something that it said has not been taken."""
        return self._waiting_bytes > 0

    def events_waiting(self) -> int:
        """How many it told that were not taken."""
        return self._events.qsize()

    def take_events(self, most: int) -> list[Event]:
        """Events in the order they were told, at most so many."""
        return self._take(self._events, most)

    def take_lines(self, most: int) -> list[str]:
        """Lines of its log, at most so many."""
        return self._take(self._lines, most)

    def ask_to_stop(self) -> None:
        """SIGTERM to the process alone: it finishes its step, saves and ends its own children."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def tell_where_it_stands(self) -> None:
        """SIGUSR1: it logs the stacks of its threads."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL to the whole group; what the process left behind goes too, be it in a session of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self._attempt is not None:
            self._kill_strays(self._attempt)

    def close(self) -> None:
        """Kill it and listen no longer: what it still has to say is lost."""
        self.kill()
        self.process.wait()
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _kill_strays(self, attempt: Attempt) -> None:
        """Those outside of the group, as the ranks that torchrun starts; what is in it has been killed."""
        for pid in attempt.pids():
            if processes.group_of(pid) not in (self.process.pid, None):
                if pid not in self._strays:
                    log.warning("process %s of %s outlived it and is killed", pid, attempt)
                self._strays.add(pid)
                attempt.kill(pid)

    def _read_events(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                try:
                    event = Event.from_line(line)
                except ValueError:
                    self._keep(self._lines, _readable(line), len(line))
                    continue
                self._keep(self._events, event, len(line))

    def _read_log(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in iter(partial(pipe.readline, MAX_LOG_BYTES), b""):
                self._keep(self._lines, _readable(line), len(line))

    def _keep(self, waiting: "queue.SimpleQueue[tuple[T, int]]", said: T, size_bytes: int) -> None:
        """Put it behind what is already waiting, once there is room."""
        with self._room:
            self._room.wait_for(lambda: self._closed or self._waiting_bytes < MAX_WAITING_BYTES)
            self._waiting_bytes += size_bytes
        waiting.put((said, size_bytes))

    def _take(self, waiting: "queue.SimpleQueue[tuple[T, int]]", most: int) -> list[T]:
        taken: list[T] = []
        while len(taken) < most and not waiting.empty():
            said, size_bytes = waiting.get()
            taken.append(said)
            with self._room:
                self._waiting_bytes -= size_bytes
                self._room.notify_all()
        return taken


def environment(devices: Sequence[Device], threads: int) -> dict[str, str]:
    """Its devices and threads, and no credentials of database, broker or store."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
    inherited.setdefault("OMP_NUM_THREADS", str(threads))
    inherited["CUDA_VISIBLE_DEVICES"] = ",".join(_cuda_name(device) for device in devices)
    inherited["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what deterministic matrix products ask for
    return inherited


def _named(ids: Mapping[str, str]) -> dict[str, str]:
    """What the run's own lines can name: ACMIX_REQUEST_ID, ACMIX_JOB, ACMIX_ATTEMPT."""
    return {f"ACMIX_{name.upper()}": ids[name] for name in ("request_id", "job", "attempt") if name in ids}


def _have_killed_first(pid: int) -> None:
    """Where memory runs out, the run goes, not the worker, the broker or the database beside it."""
    with suppress(OSError):  # only Linux has it
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")


def _readable(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\n").replace("\0", "\ufffd")[:MAX_LINE_CHARACTERS]


def _cuda_name(device: Device) -> str:
    """Its name for CUDA; where the UUID is not known, its index, which counts among those that this process sees."""
    if device.uuid:
        return device.uuid
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[device.index].strip() if visible else str(device.index)
