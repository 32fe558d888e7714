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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError

from acmix import spec
from acmix.catalog import Catalog, Device
from acmix.errors import SpecInvalid
from acmix.fleet import SHARED, Demand, Machine, ranks_of, unmet
from service import logs
from service.settings import Settings
from service.store.backend import Backend
from service.store.errors import ArtifactsAway
from service.store.rows import Claim, Draining, Json, WorkerCard
from worker import child_log, devices, load
from worker.alive import SignOfLife
from worker.clearing import Clearing
from worker.driver import Driver
from worker.processes import Attempt
from worker.slots import Slots
from worker.supervise import AWAY, Supervisor

log = logging.getLogger(__name__)

FILES_TRUSTED_SECONDS = 60.0  # how long it is not asked again whether files can be stored
SIGNS_APART_SECONDS = 1.0  # at least, however fast jobs come and go


@dataclass(frozen=True)
class Card:
    """What this machine is and can run."""

    catalog: Catalog
    devices: list[Device]
    versions: dict[str, Any]


def card_of_this_machine(driver: Driver | None) -> Card:
    """Asked of the library in a process of its own: neither torch nor CUDA ever starts in this one."""
    command = [sys.executable, "-m", "acmix", "catalog", "--tether", str(os.getpid())]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=child_log.stderr(), check=False)
    child_log.pass_on((answer.stderr or b"").splitlines(), "catalog")
    answer.check_returncode()
    raw = json.loads(answer.stdout)
    told = [Device.model_validate(card) for card in raw["devices"]]
    found = devices.of_this_machine(driver, told, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Card(Catalog.model_validate(raw["catalog"]), found, raw["versions"])


class Node:
    """Runs queued jobs on its slots: when rung, and by looking at the ledger itself when not."""

    def __init__(self, backend: Backend, card: Card, driver: Driver | None = None) -> None:
        self.backend = backend
        self.settings = backend.settings
        self.ledger = backend.ledger
        self.card = card
        self.id = f"wk_{platform.node()}_{uuid.uuid4().hex[:8]}"
        self.machine = _machine(card, backend.settings)
        self.slots = Slots(card.devices, backend.settings.slots_per_gpu)
        self._driver = driver
        self._clearing = Clearing(driver)
        self._looking = threading.Lock()  # what one look at a GPU found must not be put down after what a later one did
        self._sign = SignOfLife(backend.settings, "train")
        self._files_trusted_until = 0.0
        self._claiming = threading.Lock()  # a slot that is offered stays free until the ledger has answered
        self._leaving = threading.Event()
        self._giving_back = threading.Event()  # the runs are to save and be queued again
        self._news = threading.Event()  # for the next sign of life, which is not to wait its time
        self._threads = [
            threading.Thread(target=loop, name=name, daemon=True)
            for name, loop in (("look", self._look_for_ever), ("seen", self._be_seen_for_ever))
        ]

    def start(self) -> None:
        self._clearing.notice(self.slots.devices)
        self._look_after(self.slots.devices)
        for thread in self._threads:
            thread.start()

    def ring(self) -> None:
        """Run queued jobs while a slot is free. Returns when nothing is left to claim, or all slots are busy."""
        while claim := self._claim():
            self._see_through(claim)

    def drain(self) -> None:
        """This process is to end."""
        self._leaving.set()
        self._giving_back.set()
        self._news.set()

    def stop(self) -> None:
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self.settings.stop_grace_seconds + 5)
        try:
            self.ledger.leave(self.id)
        except (DBAPIError, *AWAY) as error:
            log.warning("the database was not told that this worker leaves: %s", error)

    def _claim(self) -> Claim | None:
        """The next job, with the slots that it takes; None where there is none, or its files could not be reached."""
        with self._claiming:
            slots, free = self.slots, self.slots.free()
            if self._giving_back.is_set() or not free or not self._reaches_files():
                return None
            claim = self.ledger.claim(
                self.id, free=free, slots=slots.count, has_gpus=bool(slots.devices), can_run=self._can_run
            )
            if claim is not None:
                slots.take(claim.slots, claim.job.id)
                self._news.set()
            return claim

    def _see_through(self, claim: Claim) -> None:
        job = claim.job
        ids = {"request_id": job.request_id, "tenant": job.tenant, "job": job.id, "attempt": job.attempt}
        with logs.about(**ids, worker=self.id):
            try:
                self._supervisor(claim).run()
            finally:
                self._give_back(claim)

    def _supervisor(self, claim: Claim) -> Supervisor:
        """The attempt's guardian, with its devices and what each of its processes may use of the cores."""
        resolved_spec = claim.job.resolved_spec
        given = self.slots.devices_of(claim.slots) if resolved_spec["resources"]["gpus"] else []
        # one core is left to the service: threads that spin for each other crawl when one is interrupted
        threads = (self.machine.cores - 1) * len(claim.slots) // (self.slots.count * ranks_of(resolved_spec))
        return Supervisor(self.backend, claim, given, max(1, threads), self._giving_back, self._leaving)

    def _give_back(self, claim: Claim) -> None:
        """Once nothing of the attempt is left on them, its slots are free; what is left puts its GPU aside."""
        held = self.slots.devices_of(claim.slots)
        try:
            self._clearing.clear(Attempt(claim.job.id, claim.job.attempt), held, self._leaving)
            self._look_after(held)
        finally:
            self.slots.give_back(claim.slots)
            self._news.set()

    def _look_after(self, these: Sequence[Device]) -> None:
        with self._looking:
            for device in these:
                fault = self._clearing.fault(device)
                if self.slots.put_aside(device, fault):
                    log.warning("GPU %s, %s: %s", device.index, device.uuid, fault or "it is well again")

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

    def _can_run(self, demand: Demand, resolved_spec: Json) -> bool:
        """Whether this machine has all that is asked for. A spec of another version is left to its workers."""
        return unmet(demand, self.machine, self.card.catalog) is None and self._understands(resolved_spec)

    @staticmethod
    def _understands(resolved_spec: Json) -> bool:
        try:
            spec.parse(resolved_spec)
        except SpecInvalid:
            return False
        return True

    def _look_for_ever(self) -> None:
        """A message may be lost: look at the ledger now and then, for each slot that is free."""
        running: list[threading.Thread] = []
        while not self._leaving.is_set():
            running = [thread for thread in running if thread.is_alive()]
            with self._told():
                while claim := self._claim():
                    running.append(threading.Thread(target=self._run_on, args=(claim,), name="run", daemon=True))
                    running[-1].start()
            self._leaving.wait(self.settings.idle_look_seconds)
        for thread in running:
            thread.join()

    def _run_on(self, claim: Claim) -> None:
        """See this job through, and whatever then waits for its slots."""
        with self._told():
            self._see_through(claim)
            self.ring()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever ailed one job, there are others to look for."""
        try:
            yield
        except (DBAPIError, *AWAY) as error:
            log.warning("the database does not answer: %s", error)
        except Exception:
            log.exception("a job could not be seen through")

    def _be_seen_for_ever(self) -> None:
        """Post the menu, then signs of life: every so often, and soon after a job came or went.

        After the database was away it is begun anew.
        """
        enrolled = False
        apart = min(SIGNS_APART_SECONDS, self.settings.idle_look_seconds)
        self._sign.forget_others()
        while not self._leaving.is_set():
            self._sign.give()
            self._news.clear()
            try:
                if not enrolled:
                    self.ledger.enrol(self._worker_card())
                    enrolled = True
                self._look_after(self.slots.devices)
                slots, told = self.slots, load.of(self.slots, self._driver)
                self._obey(self.ledger.seen(self.id, slots.busy(), told, aside=slots.aside()))
            except (DBAPIError, *AWAY) as error:
                enrolled = False
                log.warning("the database does not answer: %s", error)
            if not self._leaving.wait(apart) and enrolled:
                self._news.wait(self.settings.idle_look_seconds - apart)

    def _obey(self, orders: Draining | None) -> None:
        """Have the runs give their jobs back, if that is ordered of this worker, or be content with them again."""
        if orders == "requeue":
            self._giving_back.set()
            return
        self._giving_back.clear()
        if self._leaving.is_set():  # since the line above, perhaps
            self._giving_back.set()

    def _worker_card(self) -> WorkerCard:
        card, machine = self.card, self.machine
        given = (card.devices, card.versions, card.catalog)
        return WorkerCard(self.id, platform.node(), self.slots.count, *given, sorted(machine.labels), machine.cores)


def _machine(card: Card, settings: Settings) -> Machine:
    """A worker whose GPUs are shared says so by a label, and takes only jobs that ask for it."""
    is_shared = settings.slots_per_gpu > 1 and bool(card.devices)
    labels = {*settings.worker_labels, *([SHARED] if is_shared else [])}
    return Machine(tuple(card.devices), frozenset(labels), _cores())


def _cores() -> int:
    """Those that this process may use; only Linux tells."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
