"""What runs once beside all workers: sweep, nudges for jobs long queued, plans, checks, webhooks. Safe twice."""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.exc import DBAPIError

from service.store.backend import Backend
from worker import vitals
from worker.alive import SignOfLife
from worker.delivering import Courier
from worker.inspecting import Inspector
from worker.inspection_child import INSPECT
from worker.planning import Planner
from worker.predicting import Predictor
from worker.supervise import AWAY

log = logging.getLogger(__name__)

LONG_QUEUED_SECONDS = 15.0
EXPIRE_SECONDS = 60.0
ROUNDS_A_LEASE = 3  # at least, or every one would seem to come after an outage
PAUSE = 0.9  # of a lease: after a shorter one, no lease that was renewed before it has run out


class Housekeeper:
    """A loop on the database; a message only makes it look at once."""

    def __init__(self, backend: Backend, inspect_command: Sequence[str] = INSPECT) -> None:
        self.settings = backend.settings
        self.ledger = backend.ledger
        self.reader = backend.reader
        self.queue = backend.queue
        self.pruning = backend.pruning
        self.expiring = (backend.plans, backend.predictions, backend.deliveries)
        self.inspector = Inspector(backend, inspect_command)
        planner = Planner(backend.plans, idle_seconds=self.settings.planner_idle_seconds)
        self.helpers = (planner, Predictor(backend), self.inspector, Courier(backend))
        self._sign = SignOfLife(backend.settings, "housekeeping")
        self._rung = threading.Event()
        self._draining = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweep", daemon=True)
        self._looked_at: datetime | None = None
        self._sweep_from = 0.0
        self._nudge_from = 0.0
        self._expire_from = 0.0
        self._prune_from = 0.0

    def start(self) -> None:
        self._spare_the_living()
        self._thread.start()
        for helper in self.helpers:
            helper.start()

    def ring(self) -> None:
        self._rung.set()
        for helper in self.helpers:
            helper.ring()

    def drain(self) -> None:
        self._draining.set()
        self._rung.set()
        for helper in self.helpers:
            helper.drain()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._thread.join(5)
        for helper in self.helpers:
            helper.stop()

    def look(self) -> None:
        """One round: what is due is done. It asks for the time first, and so sees an outage as soon as there is one."""
        self._note_time(self.reader.now())
        now = time.monotonic()
        if now >= self._sweep_from:
            for job_id in self.ledger.sweep():
                log.warning("%s: its lease ran out", job_id)
                vitals.SWEPT.inc()
                self.queue.nudge_train()
        if now >= self._nudge_from:
            self._nudge_from = now + LONG_QUEUED_SECONDS
            for _ in self.ledger.long_queued(LONG_QUEUED_SECONDS)[:10]:
                self.queue.nudge_train()
        if now >= self._expire_from:
            self._expire_from = now + EXPIRE_SECONDS
            for part in self.expiring:
                part.expire()
        if now >= self._prune_from and not self.pruning.prune():  # a batch a round, for as long as there is more
            self._prune_from = now + EXPIRE_SECONDS

    def _loop(self) -> None:
        self._sign.forget_others()
        while not self._draining.is_set():
            self._sign.give()
            try:
                self.look()
                vitals.ROUNDS.labels("ok").inc()
                vitals.LAST_ROUND.set_to_current_time()
            except (DBAPIError, *AWAY) as error:
                log.warning("the database does not answer: %s", error)
                vitals.ROUNDS.labels("failed").inc()
                self._spare_the_living()
            except Exception:  # whatever ailed one round, without the sweep lost jobs would wait for ever
                log.exception("a round of housekeeping failed")
                vitals.ROUNDS.labels("failed").inc()
            self._rung.wait(min(self.settings.sweep_seconds, self.settings.lease_seconds / ROUNDS_A_LEASE))
            self._rung.clear()

    def _note_time(self, now: datetime) -> None:
        """Where a lease has passed since the last round, workers may have stood still as well: a laptop was asleep."""
        if self._looked_at and (now - self._looked_at).total_seconds() > PAUSE * self.settings.lease_seconds:
            self._spare_the_living()
        self._looked_at = now

    def _spare_the_living(self) -> None:
        """After a start or an outage no lease counts as run out until its holder had time to renew it."""
        self._sweep_from = time.monotonic() + self.settings.lease_seconds
