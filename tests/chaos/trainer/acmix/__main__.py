"""Stands in for the library's commands: training is a chain of hashes, told and saved as the library does it.

A run of milliseconds where torch takes seconds to load: what is tried here is whatever is around it. Its spec's
metadata say how many steps it has, how long each takes, and of what it dies at its third, if it is poison.
"""

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from acmix import events, manifest, pulse, tether
from acmix.events import Event
from tests.chaos.chain import SAVE_EVERY, START, following, value_of

FILE = "model.safetensors"
POISON_STEP = 3


def main() -> None:
    if sys.argv[1] == "catalog":
        print(Path(os.environ["PYTHON_CHAOS_CARD"]).read_text())
        return
    assert sys.argv[1] == "run", sys.argv
    tether.to_parent(int(_argument("--tether")))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spec = json.loads(Path(sys.argv[2]).read_text())
    _train(Path(_argument("--folder")), spec["metadata"], stop)


def _train(folder: Path, labels: dict[str, str], stop: threading.Event) -> None:
    steps, seconds = int(labels["steps"]), float(labels["step_seconds"])
    sign = pulse.Pulse(folder)
    step, chain = _newest(folder / "checkpoints")
    _tell(events.status("running", f"from step {step}", versions={}, devices=["cpu"]))
    while step < steps:
        time.sleep(seconds)
        if step % SAVE_EVERY == POISON_STEP:
            _die(labels.get("poison", ""), labels.get("memory_group", ""))
        sign.beat()
        step, chain = step + 1, following(chain)
        _tell(events.metrics([step], {"train/loss": [value_of(chain)]}, epoch=1))
        _tell(events.progress("training", epoch=0, epochs=1, step=step, steps=steps, samples_per_second=1.0))
        if stop.is_set():
            _save(folder / "checkpoints", step, chain, "stop")
            _tell(events.status("stopped", "stopped when asked"))
            return
        if step == steps or step % SAVE_EVERY == 0:
            _save(folder / "checkpoints", step, chain, "epoch" if step == steps else "time")
    _tell(events.status("succeeded", f"{steps} steps"))


def _die(poison: str, memory_group: str) -> None:
    """Or not, of no poison."""
    if poison in ("SIGKILL", "SIGSEGV", "SIGABRT"):
        os.kill(os.getpid(), signal.Signals[poison])
    if poison == "memory":
        Path(memory_group).write_text(str(os.getpid()))
        taken = bytearray(2**30)
        taken[:: resource.getpagesize()] = b"x" * len(taken[:: resource.getpagesize()])
    if poison == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(3600)
    if poison == "exit":
        os._exit(3)


def _newest(parent: Path) -> tuple[int, str]:
    """Where the run before it got to."""
    found = sorted(parent.glob("step-*"))
    if not found:
        return 0, START
    manifest.check(found[-1])
    said: dict[str, Any] = json.loads((found[-1] / FILE).read_text())
    return said["step"], said["chain"]


def _save(parent: Path, step: int, chain: str, kind: str) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    final, writing = parent / f"step-{step:09d}", parent / f".writing-{step:09d}"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    (writing / FILE).write_text(json.dumps({"ballast": chain * 1000, "step": step, "chain": chain}))
    files = manifest.write(writing, [FILE])
    shutil.rmtree(final, ignore_errors=True)
    writing.rename(final)
    manifest.sync(parent)
    about = {
        "folder": final.name,
        "epoch": int(kind == "epoch"),
        "step": step,
        "kind": kind,
        "metrics": {},
        **files[FILE],
    }
    _tell(Event("checkpoint", f"step {step}", {**about, "best": False, "metric": "val/loss"}))
    for older in sorted(parent.glob("step-*"))[:-2]:
        shutil.rmtree(older, ignore_errors=True)


def _tell(event: Event) -> None:
    print(event.to_line(), flush=True)


def _argument(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    main()
