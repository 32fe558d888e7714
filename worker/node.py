"""A node: its devices, its slots, and the jobs it claims for them."""

import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

from acmix import spec
from acmix.catalog import Catalog, Device
from acmix.errors import SpecInvalid
from acmix.fleet import Demand
from service import logs
from service.store.backend import Backend
from service.store.errors import ArtifactsAway
from service.store.rows import WorkerCard
from worker import child_log
from worker.alive import SignOfLife
from worker.supervise import AWAY, Supervisor

log = logging.getLogger(__name__)

FILES_TRUSTED_SECONDS = 60.0  # how long it is not asked again whether files can be stored


@dataclass(frozen=True)
class Card:
    """What this machine is and can run."""

    catalog: Catalog
    devices: list[Device]
    versions: dict[str, Any]


def card_of_this_machine() -> Card:
    """Asked of the library in a process of its own: neither torch nor CUDA ever starts in this one."""
    command = [sys.executable, "-m", "acmix", "catalog", "--tether", str(os.getpid())]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=child_log.stderr(), check=False)
    child_log.pass_on((answer.stderr or b"").splitlines(), "catalog")
    answer.check_returncode()
    raw = json.loads(answer.stdout)
    return Card(
        Catalog.model_validate(raw["catalog"]),
        [Device.model_validate(card) for card in raw["devices"]],
        raw["versions"],
    )


class Node:
    """Runs queued jobs, one a slot: when rung, and by looking at the ledger itself when not.

    A slot is a GPU; a machine without one has a single slot that trains on the CPU.
    """

    def __init__(self, backend: Backend, card: Card) -> None:
        self.backend = backend
        self.settings = backend.settings
        self.ledger = backend.ledger
        self.card = card
        self.id = f"wk_{platform.node()}_{uuid.uuid4().hex[:8]}"
        self.slots = max(1, len(card.devices))
        # one core is left to the service: threads that spin for each other crawl when one is interrupted
        self.threads = max(1, (_cores() - 1) // self.slots)
        self._sign = SignOfLife(backend.settings, "train")
        self._free = list(range(self.slots))
        self._files_trusted_until = 0.0
        self._lock = threading.Lock()
        self._draining = threading.Event()
        self._threads = [
            threading.Thread(target=loop, name=name, daemon=True)
            for name, loop in (("look", self._look_for_ever), ("seen", self._be_seen_for_ever))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def ring(self) -> None:
        """Run queued jobs while a slot is free. Returns when nothing is left to claim, or all slots are busy."""
        while not self._draining.is_set():
            with self._slot() as slot:
                if slot is None or not self._run_one(slot):
                    return

    def drain(self) -> None:
        self._draining.set()

    def stop(self) -> None:
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self.settings.stop_grace_seconds + 5)
        try:
            self.ledger.leave(self.id)
        except (DBAPIError, *AWAY) as error:
            log.warning("the database was not told that this worker leaves: %s", error)

    @contextmanager
    def _slot(self) -> Iterator[int | None]:
        with self._lock:
            slot = self._free.pop(0) if self._free else None
        try:
            yield slot
        finally:
            if slot is not None:
                with self._lock:
                    self._free = sorted([*self._free, slot])

    def _run_one(self, slot: int) -> bool:
        """Claim a job and see it through; False when there is none, or its files could not be reached."""
        if not self._reaches_files():
            return False
        claim = self.ledger.claim(
            self.id, free=[slot], slots=self.slots, has_gpus=bool(self.card.devices), can_run=self._can_run
        )
        if claim is None:
            return False
        devices = [self.card.devices[slot]] if claim.job.resolved_spec["resources"]["gpus"] else []
        job = claim.job
        ids = {"request_id": job.request_id, "tenant": job.tenant, "job": job.id, "attempt": job.attempt}
        with logs.about(**ids, worker=self.id):
            Supervisor(self.backend, claim, devices, self.threads, self._draining).run()
        return True

    def _reaches_files(self) -> bool:
        """Whether the store of files answers: of a wrong key, a queue must not come to harm job by job."""
        if time.monotonic() < self._files_trusted_until:
            return True
        try:
            self.backend.artifacts.ping()
        except (ArtifactsAway, OSError) as error:
            log.warning("no job is claimed: %s", error)
            return False
        self._files_trusted_until = time.monotonic() + FILES_TRUSTED_SECONDS
        return True

    def _can_run(self, _demand: Demand, resolved_spec: dict[str, Any]) -> bool:
        """Whether every name of a spec is on this machine's menu. A spec of another version is left to its workers."""
        try:
            job = spec.parse(resolved_spec)
        except SpecInvalid:
            return False
        wanted = {
            ("tasks", job.task.name),
            ("datasets", job.dataset.name),
            ("optimizers", job.training.optimizer.name),
            ("schedules", job.training.schedule.name),
            ("augments", job.training.augment.name),
            *(("mixers", swap.mixer.name) for swap in job.swaps),
        }
        menu = self.card.catalog
        named = all(any(entry.name == name for entry in getattr(menu, section)) for section, name in wanted)
        return named and menu.backbone(job.backbone.name) is not None

    def _look_for_ever(self) -> None:
        """A message may be lost: look at the ledger now and then."""
        while not self._draining.is_set():
            try:
                self.ring()
            except (DBAPIError, *AWAY) as error:
                log.warning("the database does not answer: %s", error)
            except Exception:  # whatever ailed one job, there are others to look for
                log.exception("a job could not be seen through")
            self._draining.wait(self.settings.idle_look_seconds)

    def _be_seen_for_ever(self) -> None:
        """Post the menu, then a sign of life every so often; again from the start after the database was away."""
        enrolled = False
        self._sign.forget_others()
        while not self._draining.is_set():
            self._sign.give()
            try:
                if not enrolled:
                    self.ledger.enrol(self._worker_card())
                    enrolled = True
                self.ledger.seen(self.id, self.slots - len(self._free))
            except (DBAPIError, *AWAY) as error:
                enrolled = False
                log.warning("the database does not answer: %s", error)
            self._draining.wait(self.settings.idle_look_seconds if enrolled else 1)

    def _worker_card(self) -> WorkerCard:
        card = self.card
        given = (card.devices, card.versions, card.catalog)
        return WorkerCard(self.id, platform.node(), self.slots, *given, cores=_cores())


def _cores() -> int:
    """Those that this process may use; only Linux tells."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
