"""Plans, made by a child that is warm from the start: who asks for one waits for it."""

from service.store.plans import Plans
from worker.answering import Answerer

PLAN_SECONDS = 30.0


class Planner(Answerer):
    command = "plan"
    what = "makes plans"

    def __init__(self, plans: Plans) -> None:
        super().__init__(plans, seconds=PLAN_SECONDS)
