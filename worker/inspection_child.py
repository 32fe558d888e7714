"""The process that unpacks and checks data sets: `python -m acmix inspect`, lines of JSON for what it found."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from acmix.errors import AcmixError
from service.store.rows import storable
from worker import child_log
from worker.child import environment

INSPECT = (sys.executable, "-m", "acmix", "inspect")
MAX_LINE_BYTES = 32 * 2**20
MAX_PROGRESS_BYTES = 1000

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]


class Report(BaseModel):
    """The last line; what else it says is kept as it is said."""

    model_config = {"extra": "allow"}


class Ready(Report):
    status: Literal["ready"]
    sha256: Sha256
    size_bytes: Count
    files: Count
    classes: list[str] | None = None
    num_classes: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    has_masks: bool | None = None
    splits: dict[str, JsonValue]
    statistics: dict[str, JsonValue] | None = None
    warnings: list[JsonValue] = []
    root: str
    options: dict[str, JsonValue] = {}


class Fault(BaseModel):
    file: str | None = None
    code: str
    message: str


class Rejected(Report):
    status: Literal["rejected"]
    faults: list[Fault]
    faults_total: Count
    expected: JsonValue = None
    found: JsonValue = None


class Unpacked(Report):
    status: Literal["unpacked"]
    root: str
    sha256: Sha256


Found = Ready | Rejected | Unpacked
_REPORT: TypeAdapter[Found] = TypeAdapter(Annotated[Found, Field(discriminator="status")])


class InspectionFailed(AcmixError):
    """The process ended without a report; the message says how."""

    code = "inspection_failed"
    retryable = True


class InspectionChild:
    """Started when made, without credentials; what it logs goes where this process logs."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        self.progress: dict[str, Any] | None = None
        self.process = subprocess.Popen(
            [*command, *arguments, "--tether", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=child_log.stderr(),
            env=environment([], threads=1),
            start_new_session=True,
        )
        child_log.follow(self.process, "inspect")
        assert self.process.stdout is not None
        self._last = b""
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def has_ended(self, within_seconds: float) -> bool:
        """Whether the process ends within this time."""
        try:
            self.process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def found(self) -> Found:
        """The report of a process that has ended; InspectionFailed if it left none."""
        self._kill()  # what it left behind would hold the pipe open
        self._reader.join()
        status = self.process.wait()
        if status != 0:
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
            raise InspectionFailed(f"the process that inspects data sets was ended {how}")
        try:
            return _REPORT.validate_python(_storable(json.loads(self._last)))
        except (ValidationError, ValueError, RecursionError):
            raise InspectionFailed("the process that inspects data sets ended without a report") from None

    def close(self) -> None:
        """SIGKILL to its whole group."""
        self._kill()
        self.process.wait()
        self._reader.join(5)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in iter(partial(pipe.readline, MAX_LINE_BYTES), b""):
                self._last = line
                self.progress = _progress(line) or self.progress


def _progress(line: bytes) -> dict[str, Any] | None:
    """What a line says of how far it is, if that; a report is longer."""
    if len(line) > MAX_PROGRESS_BYTES:
        return None
    try:
        said = json.loads(line)["progress"]
        of = said.get("of")
        return {"phase": str(said["phase"])[:40], "done": int(said["done"]), "of": None if of is None else int(of)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _storable(value: Any) -> Any:
    """What was said, as text that can be stored and sent: names of files may hold what is no Unicode, and NUL."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {storable(name): _storable(each) for name, each in value.items()}
    return value
