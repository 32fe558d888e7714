"""What runs once beside all workers: the sweep, nudges for jobs long queued, files without a row. Safe to run twice."""

import logging
import threading
import time

from sqlalchemy.exc import DBAPIError

from service.store.backend import Backend
from service.store.errors import JobNotFound
from service.store.states import ENDED
from worker.supervise import AWAY

log = logging.getLogger(__name__)

LONG_QUEUED_SECONDS = 15.0
CLEANING_SECONDS = 3600.0


class Housekeeper:
    """A loop on the database; a message only makes it look at once."""

    def __init__(self, backend: Backend) -> None:
        self.settings = backend.settings
        self.ledger = backend.ledger
        self.reader = backend.reader
        self.artifacts = backend.artifacts
        self.queue = backend.queue
        self._rung = threading.Event()
        self._draining = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweep", daemon=True)
        self._sweep_from = 0.0
        self._clean_from = 0.0
        self._nudge_from = 0.0

    def start(self) -> None:
        self._spare_the_living()
        self._thread.start()

    def ring(self) -> None:
        self._clean_from = 0.0
        self._rung.set()

    def drain(self) -> None:
        self._draining.set()
        self._rung.set()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._thread.join(5)

    def look(self) -> None:
        """One round: what is due is done."""
        now = time.monotonic()
        if now >= self._sweep_from:
            for job_id in self.ledger.sweep():
                log.warning("%s: its lease ran out", job_id)
                self.queue.nudge_train()
        if now >= self._nudge_from:
            self._nudge_from = now + LONG_QUEUED_SECONDS
            for _ in self.ledger.long_queued(LONG_QUEUED_SECONDS)[:10]:
                self.queue.nudge_train()
        if now >= self._clean_from:
            self._clean_from = now + CLEANING_SECONDS
            self._remove_files_without_a_row()

    def _loop(self) -> None:
        while not self._draining.is_set():
            try:
                self.look()
            except (DBAPIError, *AWAY) as error:
                log.warning("the database or the store does not answer: %s", error)
                self._spare_the_living()
            except Exception:  # whatever ailed one round, without the sweep lost jobs would wait for ever
                log.exception("a round of housekeeping failed")
            self._rung.wait(self.settings.sweep_seconds)
            self._rung.clear()

    def _spare_the_living(self) -> None:
        """After a start or an outage no lease counts as run out until its holder had time to renew it."""
        self._sweep_from = time.monotonic() + self.settings.lease_seconds

    def _remove_files_without_a_row(self) -> None:
        """What deleted jobs and checkpoints that were never committed left behind."""
        for job_prefix in self.artifacts.prefixes("jobs"):
            try:
                job = self.reader.job(job_prefix.split("/")[-1])
            except JobNotFound:
                log.info("removing %s: the job is gone", job_prefix)
                self.artifacts.delete_prefix(job_prefix)
                continue
            if job.status in ENDED:  # before that, what has no row may be about to get one
                self._remove_unlisted_checkpoints(job.id)

    def _remove_unlisted_checkpoints(self, job_id: str) -> None:
        listed = {checkpoint.key for checkpoint in self.reader.checkpoints(job_id)}
        for key in self.artifacts.prefixes(f"jobs/{job_id}/checkpoints"):
            if key not in listed:
                log.info("removing %s: the checkpoint is not listed", key)
                self.artifacts.delete_prefix(key)
