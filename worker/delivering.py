"""Deliveries to webhooks: whatever is due is sent, several at once, each in a thread of its own."""

import logging
import threading
import time

from sqlalchemy.exc import DBAPIError

from service.store.backend import Backend
from service.store.database import AWAY
from service.store.deliveries import MOST_ATTEMPTS
from service.store.rows import Dispatch
from worker import vitals
from worker.rounds import Rounds
from worker.sending import Answer, Sender, Unanswered

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # nobody rings when a job ends
AT_ONCE = 32
STOP_SECONDS = 5.0
OK, MULTIPLE_CHOICES, GONE = 200, 300, 410
PATIENT = {429, 503}  # of the answers that may ask for patience


class Courier(Rounds):
    """Claims deliveries and sends them. One that is cut short by this process's end is sent again by its lease."""

    def __init__(self, backend: Backend) -> None:
        super().__init__("deliveries")
        self.deliveries = backend.deliveries
        self.sender = Sender(backend.settings)
        self._at_work: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def look(self) -> None:
        """Begin to send all that is due and there is room for."""
        while not self._draining.is_set() and self._has_room() and (dispatch := self.deliveries.claim()):
            thread = threading.Thread(target=self._see_through, args=(dispatch,), name=dispatch.id, daemon=True)
            with self._lock:
                self._at_work.add(thread)
            thread.start()

    def stop(self) -> None:
        super().stop()
        self.wait(STOP_SECONDS)

    def wait(self, seconds: float) -> None:
        """For what is being sent, at most so long."""
        give_up_at = time.monotonic() + seconds
        with self._lock:
            threads = list(self._at_work)
        for thread in threads:
            thread.join(max(0.0, give_up_at - time.monotonic()))

    def _loop(self) -> None:
        while not self._draining.is_set():
            try:
                self.look()
            except (DBAPIError, *AWAY) as error:
                log.warning("the database does not answer: %s", error)
            except Exception:  # whatever ailed one round, other deliveries are waited for
                log.exception("a round of deliveries failed")
            self._wait(LOOK_SECONDS)

    def _has_room(self) -> bool:
        with self._lock:
            return len(self._at_work) < AT_ONCE

    def _see_through(self, dispatch: Dispatch) -> None:
        """Send it and write down what came of it. What cannot be written now, the lease brings back."""
        try:
            self._settle(dispatch)
        except (DBAPIError, *AWAY) as error:
            log.warning("%s: what came of it could not be written: %s", dispatch.id, error)
        except Exception:  # one delivery's fault is not the others'
            log.exception("%s: attempt %s failed", dispatch.id, dispatch.attempts)
        finally:
            with self._lock:
                self._at_work.discard(threading.current_thread())
            self.ring()

    def _settle(self, dispatch: Dispatch) -> None:
        try:
            with vitals.timed(vitals.DELIVERY):
                answer = self.sender.send(dispatch)
        except Unanswered as error:
            written = self._fail(dispatch, str(error))
        else:
            written = self._write(dispatch, answer)
        if not written:
            log.warning("%s: claim %s is over; what came of it is not written", dispatch.id, dispatch.claims)

    def _write(self, dispatch: Dispatch, answer: Answer) -> bool:
        why = f"the receiver answered {answer.status}"
        if OK <= answer.status < MULTIPLE_CHOICES:
            vitals.DELIVERIES.labels("delivered").inc()
            return self.deliveries.deliver(dispatch, answer.status)
        if answer.status == GONE:
            vitals.DELIVERIES.labels("disabled").inc()
            return self.deliveries.disable(dispatch, f"{why}, which asks for no more", answer.status)
        patience = answer.retry_after_seconds if answer.status in PATIENT else None
        return self._fail(dispatch, why, answer.status, patience)

    def _fail(self, dispatch: Dispatch, why: str, status: int | None = None, patience: float | None = None) -> bool:
        vitals.DELIVERIES.labels("dead" if dispatch.attempts >= MOST_ATTEMPTS else "failed").inc()
        return self.deliveries.fail(dispatch, why, status, patience)
