"""Plans that are asked for, and those that were made."""

from datetime import timedelta

from service.store import tables
from service.store.requests import Requests


class Plans(Requests):
    """A request is the essence of a spec, its answer the planner's own words."""

    table = tables.plans
    answer_kept = timedelta(days=1)
    most_kept = 2000
    failure_code = "plan_failed"
    failing = "this cannot be planned"
