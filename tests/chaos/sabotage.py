"""What a cluster does without: a right clock, or one of the guards. Without a guard the suite must fail."""

import importlib.abc
import importlib.machinery
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Patch = Callable[[Any], None]


def shift_clock(seconds: float) -> None:
    """Have Python's wall clock be off by so much in this process."""
    if not seconds:
        return
    right = time.time
    time.time = lambda: right() + seconds  # type: ignore[assignment]  # on purpose


def take_out(guard: str | None) -> None:
    """Change the module that a guard lives in, as soon as it is imported."""
    if guard is None:
        return
    module, patch = GUARDS[guard]
    sys.meta_path.insert(0, _Patching(module, patch))


def _no_fence(journal: Any) -> None:
    """Whoever asks holds the job."""

    def unfenced(connection: Any, job_id: str, _attempt: int) -> Any:
        return journal.lock(connection, job_id, journal.jobs.c.id == job_id)

    journal.lock_held = unfenced


def _no_sweep(ledger: Any) -> None:
    """A lease that ran out is nobody's business."""
    ledger.Ledger.sweep = lambda _self: []


def _no_idempotency(ledger: Any) -> None:
    """A key is not looked up, nor kept."""
    submit = ledger.Ledger.submit
    ledger.Ledger.made_under = lambda *_: None
    ledger.Ledger.submit = lambda self, *arguments, **more: submit(
        self, *arguments, **{**more, "idempotency_key": None}
    )


def _no_look(node: Any) -> None:
    """A worker waits for messages alone."""
    node.Node._look_for_ever = lambda _self: None


def _no_manifest(manifest: Any) -> None:
    """What was stored is taken as it is."""
    manifest.check = lambda _folder: {}


def _no_tether(tether: Any) -> None:
    """A child does not care for its parent."""
    tether.to_parent = lambda _pid: None


GUARDS: dict[str, tuple[str, Patch]] = {
    "fence": ("service.store._journal", _no_fence),
    "sweep": ("service.store.ledger", _no_sweep),
    "idempotency": ("service.store.ledger", _no_idempotency),
    "look": ("worker.node", _no_look),
    "manifest": ("acmix.manifest", _no_manifest),
    "tether": ("acmix.tether", _no_tether),
}


class _Patching(importlib.abc.MetaPathFinder):
    """Finds one module as everyone else does, and changes it once it has been loaded."""

    def __init__(self, name: str, patch: Patch) -> None:
        self._name = name
        self._patch = patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            self._patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]  # this one loader's
        return spec
