"""A process that answers: `python -m acmix ... --serve`, a line of JSON in for a line of JSON out."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import IO, Any

from worker import child_log
from worker.child import environment

MAX_ANSWER_BYTES = 32 * 2**20


class ServerGone(Exception):
    """The process has ended, or must be ended; the message says why, as the end of a sentence."""


class ServingChild:
    """Started when made, without credentials; what it logs goes where this process logs.

    `what` says in messages what the process does: makes plans.
    """

    library: str  # which one it is, once it is ready

    def __init__(self, command: str, what: str) -> None:
        self.what = what
        self.process = subprocess.Popen(
            [sys.executable, "-m", "acmix", command, "--serve", "--tether", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=child_log.stderr(),
            env=environment([], threads=1),
            start_new_session=True,
        )
        child_log.follow(self.process, command)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def wait_ready(self, seconds: float, *, give_up: threading.Event) -> None:
        """Until it answers as fast as it ever will; ServerGone if it does not come to that."""
        give_up_at = time.monotonic() + seconds
        while (ready := self.answer(0.5)) is None:
            if give_up.is_set() or time.monotonic() > give_up_at:
                raise ServerGone(f"it is not ready after {seconds:g} s")
        self.library = str(ready.get("library", ""))

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: Any) -> None:
        """Hand over a request. Its answer must be taken before the next one."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise ServerGone(self._how_it_ended()) from None

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The answer, if it comes in time. ServerGone if none will ever come."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        try:
            said = json.loads(line)
        except ValueError:
            raise ServerGone(self._how_it_ended()) from None
        if not isinstance(said, dict):
            raise ServerGone("its answer is none")
        return said

    def close(self) -> None:
        """SIGKILL to its whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)
        with suppress(OSError):  # what it did not read is lost
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _read(self, pipe: IO[bytes]) -> None:
        """Lines as they come, and an empty one at the end."""
        with pipe:
            for line in iter(partial(pipe.readline, MAX_ANSWER_BYTES), b""):
                self._lines.put(line)
            self._lines.put(b"")

    def _how_it_ended(self) -> str:
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return f"the process that {self.what} closed its output"
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the process that {self.what} ended with {how}"
