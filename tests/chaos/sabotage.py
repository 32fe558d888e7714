"""What a cluster does without: a right clock, or one of the guards. Without a guard the suite must fail."""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
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


def _no_spool(supervise: Any) -> None:
    """What cannot be recorded now is let go of."""
    record = supervise.Supervisor._record

    def forgetful(self: Any, child: Any) -> None:
        try:
            record(self, child)
        except supervise.AWAY:
            self._unrecorded = []
            raise

    supervise.Supervisor._record = forgetful


def _no_wish(ledger: Any) -> None:
    """Whoever holds a job never learns what is wished of it."""
    heartbeat = ledger.Ledger.heartbeat
    ledger.Ledger.heartbeat = lambda self, *held: heartbeat(self, *held) and None
    ledger.Ledger.wish = lambda *_: None


def _no_drain(node: Any) -> None:
    """A worker that is asked to leave is gone."""
    node.Node.drain = lambda _self: os._exit(1)


def _no_database_clock(database: Any) -> None:
    """Every process goes by its own clock."""
    database.clock = lambda _connection: datetime.fromtimestamp(time.time(), UTC)


def _no_last_event_id(events: Any) -> None:
    """A stream begins at the beginning, whatever its reader has heard."""
    stream = events._stream
    events._stream = lambda request, reader, job_id, _after, types: stream(request, reader, job_id, 0, types)


def _no_random_state(state: Any) -> None:
    """Random generators begin anew when a run goes on."""
    state.set_random_state = lambda _tree: None


def _no_scaler(state: Any) -> None:
    """So does the scale of fp16's gradients."""
    restore = state.State.restore

    def forgetful(self: Any, weights: Any, tree: Any) -> None:
        restore(self, weights, {**tree, "scaler": self.scaler.state_dict()})

    state.State.restore = forgetful


def _no_outbox(outbox: Any) -> None:
    """What happens is told to no webhook."""
    outbox.tell = lambda *_: None


GUARDS: dict[str, tuple[str, Patch]] = {
    "database clock": ("service.store.database", _no_database_clock),
    "drain": ("worker.node", _no_drain),
    "fence": ("service.store._journal", _no_fence),
    "last event id": ("service.routes.events", _no_last_event_id),
    "outbox": ("service.store._outbox", _no_outbox),
    "random state": ("acmix.training.state", _no_random_state),
    "scaler": ("acmix.training.state", _no_scaler),
    "spool": ("worker.supervise", _no_spool),
    "wish": ("service.store.ledger", _no_wish),
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
