"""What a run says: plain events, one JSON line each on a pipe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

EventType = Literal["status", "progress", "metrics", "trace", "checkpoint", "evaluation", "warning"]


@dataclass(frozen=True)
class Event:
    """One thing that happened. The ledger adds number, time and attempt."""

    type: EventType
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """One line of strict JSON, without its end of line."""
        return json.dumps(
            {"type": self.type, "message": self.message, "data": self.data}, allow_nan=False, separators=(",", ":")
        )

    @classmethod
    def from_line(cls, line: str | bytes) -> "Event":
        """The event of a line; ValueError if the line is none."""
        raw = json.loads(line)
        if not (isinstance(raw, dict) and raw.get("type") in get_args(EventType) and isinstance(raw.get("data"), dict)):
            raise ValueError(f"not an event: {line[:200]!r}")
        return cls(raw["type"], str(raw.get("message", "")), raw["data"])


def status(state: Literal["running", "succeeded", "failed", "stopped"], message: str, **data: Any) -> Event:
    """How the run stands. The last event of a run is one of succeeded, failed, stopped."""
    return Event("status", message, {"status": state, **data})


def progress(phase: str, *, message: str = "", **data: Any) -> Event:
    """`phase` and, while training, epoch, epochs, step, steps, samples_per_second."""
    return Event("progress", message or phase, {"phase": phase, **data})


def metrics(step: Sequence[int], values: Mapping[str, Sequence[float]], *, epoch: int) -> Event:
    """Values by metric name, one for each of the optimizer steps in `step`."""
    return Event("metrics", f"step {step[-1]}", {"epoch": epoch, "step": list(step), "values": dict(values)})


def trace(step: int, layers: Mapping[str, Mapping[str, float | None]]) -> Event:
    """alpha, beta, attention_rms and convolution_rms of every ACmix layer, in depth order, at one step."""
    names = ("alpha", "beta", "attention_rms", "convolution_rms")
    columns = {name: [values[name] for values in layers.values()] for name in names}
    return Event("trace", f"step {step}", {"step": step, "layers": list(layers), **columns})


def warning(code: str, message: str, **data: Any) -> Event:
    return Event("warning", message, {"code": code, **data})
