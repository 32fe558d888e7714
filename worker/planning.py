"""Plans: requests from the store answered by one warm child process, which holds torch so that this one need not."""

import logging
import threading
import time
from typing import Any

from sqlalchemy.exc import DBAPIError

from service.store.plans import Plans
from service.store.rows import Plan
from worker.planner_child import PlannerChild, PlannerGone
from worker.supervise import AWAY

log = logging.getLogger(__name__)

START_SECONDS = 120.0  # for torch to load and a first plan to be made
PLAN_SECONDS = 30.0
LOOK_SECONDS = 1.0  # a message may be lost, and who asked waits 10 s at most
RENEW_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


class Planner:
    """Claims requests and answers them, one after the other, in a thread of its own."""

    def __init__(self, plans: Plans) -> None:
        self.plans = plans
        self._rung = threading.Event()
        self._draining = threading.Event()
        # the child is tied to the thread that starts it: that one lives as long as there are plans to make
        self._thread = threading.Thread(target=self._loop, name="plans", daemon=True)
        self._child: PlannerChild | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        self._rung.set()

    def drain(self) -> None:
        self._draining.set()
        self._rung.set()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._thread.join(5)

    def _loop(self) -> None:
        try:
            while not self._draining.is_set():
                self._round()
        finally:
            self._end_child()

    def _round(self) -> None:
        """Make what plans there are to make, then wait for a ring."""
        try:
            child = self._warm_child()
            while child.is_alive() and not self._draining.is_set() and (plan := self.plans.claim()):
                self._see_through(child, plan)
        except PlannerGone as error:
            log.error("no process that makes plans could be started: %s", error)
            self._end_child()
            self._draining.wait(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        except (DBAPIError, *AWAY) as error:
            log.warning("the database does not answer: %s", error)
        except Exception:  # whatever ailed one plan, others are waited for
            log.exception("a round of planning failed")
        self._rung.wait(LOOK_SECONDS)
        self._rung.clear()

    def _warm_child(self) -> PlannerChild:
        """The child, started if there is none; answers of other libraries than its own are forgotten then."""
        if self._child is None or not self._child.is_alive():
            self._end_child()
            self._child = PlannerChild()
            self._child.wait_ready(START_SECONDS, give_up=self._draining)
            self._pause_seconds = FIRST_PAUSE_SECONDS
            log.info("plans are made by process %s", self._child.process.pid)
            self.plans.forget_others(self._child.library)
        return self._child

    def _see_through(self, child: PlannerChild, plan: Plan) -> None:
        """Have a claimed plan made; its answer or why there is none is in the row when this returns."""
        try:
            child.ask(plan.request)
            answer = self._awaited(child, plan)
        except PlannerGone as error:
            self._end_child()
            log.warning("plan %s: %s", plan.id[:12], error)
            self.plans.release(plan) if self._draining.is_set() else self.plans.fail(plan, str(error))
            return
        if "error" in answer:
            self.plans.fail(plan, answer["error"]["message"])
        else:
            self.plans.answer(plan, answer, library=child.library)

    def _awaited(self, child: PlannerChild, plan: Plan) -> dict[str, Any]:
        """The child's answer; the claim is renewed meanwhile."""
        give_up_at = time.monotonic() + PLAN_SECONDS
        while (answer := child.answer(RENEW_SECONDS)) is None:
            if self._draining.is_set():
                raise PlannerGone("the housekeeper ends")
            if time.monotonic() > give_up_at:
                raise PlannerGone(f"it takes longer than {PLAN_SECONDS:g} s")
            self._renew(plan)
        return answer

    def _renew(self, plan: Plan) -> None:
        try:
            self.plans.renew(plan)
        except AWAY as error:
            log.warning("plan %s: the claim could not be renewed: %s", plan.id[:12], error)

    def _end_child(self) -> None:
        if self._child:
            self._child.close()
            self._child = None
