"""An attempt's guardian: starts the child, records what it says, renews the lease, and decides how it ended.

Training goes on while the database is away: what the child says waits in memory until it can be recorded.
Every write is fenced by the attempt's number; when the ledger refuses one, the child is killed and nothing is written.
"""

import errno
import json
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from acmix import events, pulse
from acmix.catalog import Device
from acmix.errors import AcmixError, DiskFull, Reason
from acmix.events import Event
from service import logs
from service.store import database
from service.store.backend import Backend
from service.store.errors import ArtifactsAway, ArtifactsFull, ArtifactsRefused, LeaseLost
from service.store.ids import new_id
from service.store.rows import Checkpoint, Claim, Outcome, Wish
from worker import exits, vitals
from worker.child import Child
from worker.data_cache import GivenUp
from worker.ending import Ending, Signs
from worker.exits import Exit
from worker.inspection_child import INSPECT
from worker.provisions import Provisions

log = logging.getLogger(__name__)
run_log = logging.getLogger("acmix.run")  # what runs print

RECORD_SECONDS = 1.0  # how long events gather before they are recorded together
RECORD_EVENTS = 500
WISH_SECONDS = 1.0
RENEWALS_A_LEASE = 12
TICK_SECONDS = 0.1
STALLED_GRACE_SECONDS = 2.0  # to tell where it stands
EXIT_SECONDS = 10.0  # from its last word to its end: a run may hang in taking itself down
LOOK_SECONDS = 1.0  # between looks at how many processes the kernel has killed for want of memory
LOOKS = 120  # that are kept: after the death of a rank, torchrun gives the others half a minute
MEMORY_SECONDS = 2.0  # before the death of a run or a rank, in which such a kill is taken to be the cause
WRITING_SECONDS = 3.0  # of the grace of a stop, for what is left to write when the run has ended

# The database or the files do not answer now; a write that the database answers with "impossible" is none of these.
FULL = (errno.ENOSPC, errno.EDQUOT)
AWAY = (*database.AWAY, OSError, ArtifactsAway)
T = TypeVar("T")


class Supervisor:
    """One attempt from claim to verdict, on these devices and so many CPU threads.

    The node sets `giving_back` for the run to save and be queued again, and `leaving` besides where it ends itself.
    """

    def __init__(
        self,
        backend: Backend,
        claim: Claim,
        devices: Sequence[Device],
        threads: int,
        giving_back: threading.Event,
        leaving: threading.Event,
        inspect_command: Sequence[str] = INSPECT,
    ) -> None:
        self.settings = backend.settings
        self.ledger = backend.ledger
        self.reader = backend.reader
        self.artifacts = backend.artifacts
        self.job = claim.job
        self.ran_seconds = claim.ran_seconds
        self.devices = devices
        self.threads = threads
        self.giving_back = giving_back
        self.leaving = leaving
        self.attempts_folder = backend.settings.data_folder / "attempts" / claim.job.id
        self.folder = self.attempts_folder / f"attempt-{claim.job.attempt}"
        self.provisions = Provisions(backend, claim.job, self.folder, inspect_command)
        self.last_status: Event | None = None
        self._child: Child | None = None
        self._unrecorded: list[Event] = []
        self._unlogged: list[str] = []
        self._last_event = 0  # the number of the last one that is known to be written
        self._checkpoint_ids: dict[int, str] = {}  # a commit that is tried again is the same commit
        self._unlisted: list[str] = []  # keys of checkpoints that no row names, whose files are to go
        self._refusal_told = False
        self._due = {"record": 0.0, "renew": 0.0, "wish": 0.0, "memory": 0.0}
        self._memory_kills: deque[tuple[float, int]] = deque(maxlen=LOOKS)  # when, and how many there had been
        self._look_at_memory()
        self._rank_died_seconds_ago = 0.0  # as its run tells at its end
        self._silent_seconds = 0.0

    def run(self) -> None:
        """See the attempt through. Returns when the ledger knows how it ended, or has taken the job away."""
        log.info("%s attempt %s starts", self.job.id, self.job.attempt)
        try:
            with vitals.attempt(self.job, self._backlog):
                outcome = self._attempt()
                log.info("%s attempt %s: %s", self.job.id, self.job.attempt, outcome.kind)
                self._patiently(lambda: self.ledger.finish(self.job.id, self.job.attempt, outcome))
            vitals.count_outcome(outcome)
        except LeaseLost:
            vitals.count_fence()
            log.warning("%s attempt %s was given to another; it ends here", self.job.id, self.job.attempt)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                self.attempts_folder.rmdir()  # unless another attempt has begun in it

    def _attempt(self) -> Outcome:
        """From the checkpoints to how the run ended. A fault of ours is an outcome too, not a lease left to run out."""
        held = ExitStack()
        try:
            with vitals.timed(vitals.PROVISION):
                provided = self._provide(held)
            child = self._start(*provided)
            self._last_event = self._patiently(lambda: self.reader.job(self.job.id).last_event)
            while not child.has_ended():
                child.wait(TICK_SECONDS)
                self._tick(child)
            self._look_at_memory()
            self._record_rest(child)
            self._remove([])
            return self._outcome(child.process.returncode)
        except LeaseLost:
            raise
        except GivenUp:
            return Outcome("drained")
        except AcmixError as error:
            return Outcome("failed", error.reason())
        except Exception as error:
            log.exception("%s attempt %s could not be seen through", self.job.id, self.job.attempt)
            fault = f"the worker failed: {type(error).__name__}: {error}"[:1000]
            return Outcome("failed", Reason("internal", fault, retryable=True))
        finally:
            if self._child:
                self._child.close()
            held.close()

    def _provide(self, held: ExitStack) -> tuple[Path | None, Path | None]:
        """Lay down what the run needs; the files of its weights and of its data. GivenUp where it is to end first."""
        provisions = self.provisions
        with self._lease_kept() as to_end:

            def give_up() -> bool:
                return self.giving_back.is_set() or to_end.is_set()

            self._patiently(provisions.lay_checkpoints)
            weights = self._patiently(provisions.lay_weights)
            return weights, self._patiently(lambda: provisions.hold_data(held, give_up))

    def _start(self, weights: Path | None, dataset_folder: Path | None) -> Child:
        spec = self.folder / "spec.json"
        spec.write_text(json.dumps(self.job.resolved_spec))
        self._started = time.monotonic()
        ids = {**logs.ids(), "job": self.job.id, "attempt": str(self.job.attempt)}
        given = (weights, dataset_folder, ids)
        child = Child(spec, self.folder, self.settings.data_root, self.devices, self.threads, *given)
        self._child, self._ending = child, Ending(child)
        self._signs = Signs(self.folder / pulse.FILE, patience_seconds=self.settings.stall_seconds)
        return child

    def _tick(self, child: Child) -> None:
        """What is due: record, renew, look for wishes, end what must end. The database may be away."""
        self._end_if_due(child)
        if self._is_due("memory", LOOK_SECONDS):
            self._look_at_memory()
        try:
            if self._is_due("record", RECORD_SECONDS):
                self._record(child)
            self._heed(self._wish())
        except AWAY as error:
            log.warning("%s: could not be recorded now, training goes on: %s", self.job.id, error)
            self._tell_refusal(error)

    def _wish(self) -> Wish | None:
        """Renew the lease, or only look what is wished of the job, when that is due."""
        if self._is_due("renew", self.settings.lease_seconds / RENEWALS_A_LEASE):
            return self._renew()
        if self._is_due("wish", WISH_SECONDS):
            return self.ledger.wish(self.job.id, self.job.attempt)
        return None

    def _renew(self) -> Wish | None:
        with vitals.renewal(LeaseLost):
            return self.ledger.heartbeat(self.job.id, self.job.attempt)

    def _is_due(self, what: str, every_seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every_seconds
        return True

    def _heed(self, wish: Wish | None) -> None:
        if wish and self._child:
            self._ending.ask(wish, self.settings.cancel_grace_seconds)

    def _end_if_due(self, child: Child) -> None:
        limit = self.job.resolved_spec["resources"]["max_runtime_seconds"]
        if limit is not None and self.ran_seconds + time.monotonic() - self._started > limit:
            self._ending.ask("max_runtime", self.settings.cancel_grace_seconds)
        if self.giving_back.is_set():
            self._ending.ask("drain", max(0.0, self.settings.stop_grace_seconds - WRITING_SECONDS))
        if self._is_stalled(child):
            child.tell_where_it_stands()
            self._ending.ask("stalled", STALLED_GRACE_SECONDS)
        self._ending.kill_if_due()

    def _is_stalled(self, child: Child) -> bool:
        """Whether it hangs. One that cannot be heard, since its words cannot be recorded now, does not."""
        if self._unrecorded or self._unlogged or child.waits_to_be_heard():
            self._signs.heard()
        silent_seconds = self._signs.silent_seconds()
        if silent_seconds is None or self._ending.cause == "stalled":
            return False
        self._silent_seconds = silent_seconds
        return True

    def _record(self, child: Child) -> None:
        """Write what the child said. What could not be written stays and comes first the next time."""
        self._take_lines(child, RECORD_EVENTS - len(self._unlogged))
        if self._unlogged:
            self.ledger.log(self.job.id, self.job.attempt, self._unlogged)
            self._unlogged = []
        self._unrecorded += child.take_events(RECORD_EVENTS - len(self._unrecorded))
        while self._unrecorded:
            self._record_some()

    def _take_lines(self, child: Child, most: int) -> None:
        """What the run printed, for its job's log; where ours is for machines, for that one too."""
        taken = child.take_lines(most)
        self._unlogged += taken
        if logs.is_json():
            for line in taken:
                run_log.info("%s", line)

    def _record_some(self) -> None:
        """Record events up to the next checkpoint, or commit that checkpoint."""
        first = self._unrecorded[0]
        if first.type == "checkpoint":
            self._commit(first)
            del self._unrecorded[0]
            return
        plain = self._up_to_a_checkpoint(self._unrecorded)
        for event in plain:
            if event.type == "warning" and event.data["code"] == "rank_died":
                self._rank_died_seconds_ago = event.data["seconds_ago"]
        told = [event for event in plain if not self._is_verdict(event)]
        if told:
            self._write(told)
        del self._unrecorded[: len(plain)]

    def _write(self, told: Sequence[Event]) -> None:
        """Once, be it that a try before was written and the word of it got lost with the connection."""
        with vitals.timed(vitals.RECORD):
            self.ledger.record(self.job.id, self.job.attempt, told, after=self._last_event)
        self._last_event += len(told)
        vitals.count_recorded(self.job, told)

    def _is_verdict(self, event: Event) -> bool:
        """The child's last word is for `_outcome`; the ledger writes the status event itself."""
        if event.type == "status" and event.data["status"] != "running":
            self.last_status = event
            self._ending.within(EXIT_SECONDS)
            return True
        return False

    @staticmethod
    def _up_to_a_checkpoint(events: Sequence[Event]) -> Sequence[Event]:
        stop = next((index for index, event in enumerate(events) if event.type == "checkpoint"), len(events))
        return events[:stop]

    def _commit(self, event: Event) -> None:
        """Files first, the row last; then what retention drops goes."""
        data, checkpoints = event.data, self.job.resolved_spec["checkpoints"]
        identity = self._checkpoint_ids.setdefault(data["step"], new_id("ckpt"))
        checkpoint = Checkpoint(
            id=identity,
            job=self.job.id,
            attempt=self.job.attempt,
            key=f"jobs/{self.job.id}/checkpoints/{identity}",
            **{name: data[name] for name in ("epoch", "step", "kind", "metrics", "size_bytes", "sha256")},
        )
        try:
            with self._lease_kept(), vitals.timed(vitals.STORE):
                folder = self.provisions.checkpoint_folder(data["step"])
                checkpoint = replace(checkpoint, stored_bytes=self.artifacts.put_folder(checkpoint.key, folder))
        except FileNotFoundError:
            log.info("%s: the checkpoint of step %s made way for a newer one", self.job.id, data["step"])
            self._remove([checkpoint.key])
            return
        except ArtifactsFull:
            self._remove([checkpoint.key])
            vitals.UNSTORED.inc()
            self._do_without(data)
            return
        removed = self.ledger.commit_checkpoint(
            self.job.id,
            self.job.attempt,
            checkpoint,
            event,
            keep_best=checkpoints["keep_best"],
            keep_latest=checkpoints["keep_latest"],
            metric=data["metric"],
            larger_is_better=not data["metric"].endswith("loss"),
            after=self._last_event,
        )
        self._last_event += 1
        vitals.STORED_BYTES.inc(checkpoint.stored_bytes)
        vitals.count_recorded(self.job, [event])
        self._remove([gone.key for gone in removed])

    def _remove(self, keys: Sequence[str]) -> None:
        """Remove files of checkpoints that are not listed; what cannot go now goes with the next, or with the job."""
        self._unlisted += keys
        if not self._unlisted:
            return
        try:
            with self._lease_kept():
                while self._unlisted:
                    self.artifacts.delete_prefix(self._unlisted[0])
                    del self._unlisted[0]
        except AWAY as error:
            log.warning("%s: files that nobody needs are left for now: %s", self.job.id, error)

    def _do_without(self, unstored: Mapping[str, Any]) -> None:
        """Training goes on without a checkpoint that found no room; DiskFull where it is the last one."""
        fault = f"there is no room to store the checkpoint of step {unstored['step']}"
        if unstored["kind"] == "epoch" and unstored["epoch"] == self.job.resolved_spec["training"]["epochs"]:
            raise DiskFull(fault, hint="free some space where the files are kept and retry")
        told = events.warning(DiskFull.code, f"{fault}; training goes on", step=unstored["step"])
        self._write([told])

    @contextmanager
    def _lease_kept(self) -> Iterator[threading.Event]:
        """Renew it from a thread meanwhile: a large checkpoint may take longer than a lease to fetch or to store.

        A run that is to end does so in that time too. The event is set once the job is wished to end or is another's;
        the next write tells which.
        """
        over, to_end = threading.Event(), threading.Event()

        def renew() -> None:
            while not over.wait(TICK_SECONDS):
                try:
                    if wish := self._wish():
                        to_end.set()
                        self._heed(wish)
                except LeaseLost:
                    to_end.set()
                    return
                except AWAY:
                    pass
                if self._child:
                    self._end_if_due(self._child)

        renewal = threading.Thread(target=copy_context().run, args=(renew,), daemon=True)
        renewal.start()
        try:
            yield to_end
        finally:
            over.set()
            renewal.join()

    def _record_rest(self, child: Child) -> None:
        """All that the child said to its end."""

        def rest() -> bool:
            self._record(child)
            return bool(self._unrecorded)

        while self._patiently(rest) or self._has_more(child):
            continue

    def _has_more(self, child: Child) -> bool:
        self._unrecorded += child.take_events(RECORD_EVENTS)
        self._take_lines(child, RECORD_EVENTS)
        return bool(self._unrecorded or self._unlogged)

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do it, again every second while the database or the store is away.

        A node that ends does not wait long, nor one that gives its jobs back for files that it alone may not reach.
        """
        give_up_at = float("inf")
        while True:
            try:
                return act()
            except AWAY as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise DiskFull(f"the worker's disk is full: {error}") from error
                log.warning("%s: tried again in a second: %s", self.job.id, error)
                self._tell_refusal(error)
                others_may_do = self.giving_back.is_set() and not isinstance(error, database.AWAY)
            if self.leaving.is_set() or others_may_do:
                give_up_at = min(give_up_at, time.monotonic() + self.settings.stop_grace_seconds)
            if time.monotonic() > give_up_at:
                raise LeaseLost(self.job.id, self.job.attempt)  # it will, when the lease runs out
            self._keep_lease()
            time.sleep(1)

    def _tell_refusal(self, error: Exception) -> None:
        """Tell once, in the job's own events, what waiting alone does not mend."""
        if not isinstance(error, ArtifactsRefused) or self._refusal_told:
            return
        told = events.warning("artifacts_refused", f"{error}; it is tried again until then")
        with suppress(*AWAY):
            if not self._last_event:
                self.ledger.record(self.job.id, self.job.attempt, [told])
            elif self.reader.job(self.job.id).last_event == self._last_event:
                self._write([told])
            else:
                return  # a write whose word got lost is to be tried again first, or this would be taken for it
            self._refusal_told = True

    def _keep_lease(self) -> None:
        """Renew it while waiting, LeaseLost if another has the job by now.

        If the job is to end, let it run out: the sweep then does as wished.
        """
        with suppress(*AWAY):
            if self.ledger.wish(self.job.id, self.job.attempt) is None:
                self._renew()

    def _backlog(self) -> int:
        """How many events of the run are not recorded yet."""
        return len(self._unrecorded) + (self._child.events_waiting() if self._child else 0)

    def _look_at_memory(self) -> None:
        self._memory_kills.append((time.monotonic(), exits.kills_for_memory()))

    def _memory_ran_out(self) -> bool:
        """Whether the kernel killed for want of memory since just before the run, or the first of its ranks, died."""
        ended_at, kills = self._memory_kills[-1]
        since = ended_at - self._rank_died_seconds_ago - MEMORY_SECONDS
        before = [count for at, count in self._memory_kills if at <= since]
        return kills > (before[-1] if before else self._memory_kills[0][1])

    def _outcome(self, returncode: int) -> Outcome:
        return exits.outcome(
            Exit(
                returncode,
                self.last_status,
                self._ending.cause,
                killed=self._ending.killed,
                memory_ran_out=self._memory_ran_out(),
                max_runtime_seconds=self.job.resolved_spec["resources"]["max_runtime_seconds"],
                silent_seconds=self._silent_seconds,
            )
        )
