"""Requests from the store answered by one warm child process, which holds torch so that this one need not."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from sqlalchemy.exc import DBAPIError

from acmix.errors import AcmixError
from service.store.requests import Requests
from service.store.rows import Asked
from worker import vitals
from worker.rounds import Rounds
from worker.serving_child import ServerGone, ServingChild
from worker.supervise import AWAY

log = logging.getLogger(__name__)

START_SECONDS = 120.0  # for torch to load and a first request to be answered
LOOK_SECONDS = 1.0  # a message may be lost, and who asked waits 10 s at most
RENEW_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


class Answerer(Rounds):
    """Claims requests and answers them, one after the other, in a thread of its own.

    The child is there from the start, unless it is to end when nothing was asked for `idle_seconds`: then it starts
    with the first request.
    """

    command: ClassVar[str]  # of `python -m acmix`
    what: ClassVar[str]  # what the child does, in messages

    def __init__(self, requests: Requests, *, seconds: float, idle_seconds: float = math.inf) -> None:
        super().__init__(self.command)
        self.requests = requests
        self.seconds = seconds  # what one answer may take
        self.idle_seconds = idle_seconds
        self._child: ServingChild | None = None
        self._used_at = 0.0
        self._pause_seconds = FIRST_PAUSE_SECONDS

    @contextmanager
    def told(self, asked: Asked) -> Iterator[Any]:
        """What the child is told of a request; what that needs is there until it has answered.

        An AcmixError is the answer: the child is told nothing then.
        """
        yield asked.request

    def keep(self, asked: Asked, answer: dict[str, Any], told: Any, library: str) -> None:  # noqa: ARG002  # for those that need it
        """Store an answer; the child's own failure is tried again."""
        if "error" in answer:
            self.requests.fail(asked, answer["error"]["message"])
        else:
            self.requests.answer(asked, answer, library=library)

    def renew(self, asked: Asked) -> None:
        """Keep the claim from running out, if the database can be reached."""
        try:
            self.requests.renew(asked)
        except AWAY as error:
            log.warning("%s %s: the claim could not be renewed: %s", self.command, asked.id[:12], error)

    def _loop(self) -> None:
        try:
            while not self._draining.is_set():
                self._round()
        finally:
            self._end_child()

    def _round(self) -> None:
        """Answer what there is to answer, then wait for a ring."""
        try:
            if self.idle_seconds == math.inf or self.requests.is_waited_for():
                self._answer_all(self._warm_child())
            elif self._child and time.monotonic() > self._used_at + self.idle_seconds:
                self._end_child()
        except ServerGone as error:
            log.error("no process that %s could be started: %s", self.what, error)
            self._end_child()
            self._draining.wait(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        except (DBAPIError, *AWAY) as error:
            log.warning("the database does not answer: %s", error)
        except Exception:  # whatever ailed one request, others are waited for
            log.exception("a round of requests failed")
        self._wait(LOOK_SECONDS)

    def _answer_all(self, child: ServingChild) -> None:
        while child.is_alive() and not self._draining.is_set() and (asked := self.requests.claim()):
            self._see_through(child, asked)
            self._used_at = time.monotonic()

    def _warm_child(self) -> ServingChild:
        """The child, started if there is none; answers of other libraries than its own are forgotten then."""
        if self._child is None or not self._child.is_alive():
            self._end_child()
            self._child = ServingChild(self.command, self.what)
            self._child.wait_ready(START_SECONDS, give_up=self._draining)
            self._pause_seconds = FIRST_PAUSE_SECONDS
            self._used_at = time.monotonic()
            log.info("process %s %s", self._child.process.pid, self.what)
            self.requests.forget_others(self._child.library)
        return self._child

    def _see_through(self, child: ServingChild, asked: Asked) -> None:
        """Have a claimed request answered; the answer or why there is none is in the row when this returns."""
        try:
            with vitals.timed(vitals.ANSWER.labels(self.command)), self.told(asked) as told:
                child.ask(told)
                answer = self._awaited(child, asked)
                self.keep(asked, answer, told, child.library)
            vitals.ANSWERS.labels(self.command, "failed" if "error" in answer else "answered").inc()
        except AcmixError as error:
            vitals.ANSWERS.labels(self.command, "answered").inc()
            self.keep(asked, {"error": error.reason().as_json()}, None, child.library)
        except ServerGone as error:
            self._end_child()
            log.warning("%s %s: %s", self.command, asked.id[:12], error)
            vitals.ANSWERS.labels(self.command, "lost").inc()
            self.requests.release(asked) if self._draining.is_set() else self.requests.fail(asked, str(error))

    def _awaited(self, child: ServingChild, asked: Asked) -> dict[str, Any]:
        """The child's answer; the claim is renewed meanwhile."""
        give_up_at = time.monotonic() + self.seconds
        while (answer := child.answer(RENEW_SECONDS)) is None:
            if self._draining.is_set():
                raise ServerGone("the housekeeper ends")
            if time.monotonic() > give_up_at:
                raise ServerGone(f"it takes longer than {self.seconds:g} s")
            self.renew(asked)
        return answer

    def _end_child(self) -> None:
        if self._child:
            self._child.close()
            self._child = None
