"""Plans, made by a child that, unless told otherwise, is warm from the start: who asks for one waits for it."""

import math

from service.store.plans import Plans
from worker.answering import Answerer

PLAN_SECONDS = 30.0


class Planner(Answerer):
    command = "plan"
    what = "makes plans"

    def __init__(self, plans: Plans, *, idle_seconds: float = math.inf) -> None:
        super().__init__(plans, seconds=PLAN_SECONDS, idle_seconds=idle_seconds)
