"""A job that always dies is tried as often as its budget has it, and no other's attempt is the worse for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from service.store.backend import Backend
from service.store.ledger import Ledger
from service.store.states import ENDED
from tests.service.work import let_backoff_pass, look, submit
from tests.worker.runs import Attempts

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
StandIn = Callable[[str], None]
DYING = """
labels = json.loads(Path(sys.argv[2]).read_text())["metadata"]
if labels.get("poison") == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if labels.get("poison") == "fail":
    sys.exit(3)
tell("status", status="succeeded")
"""


@pytest.mark.parametrize(("poison", "most_attempts"), [("crash", 6), ("fail", 3)])
def test_a_job_that_always_dies_ends_and_the_others_succeed_at_once(
    poison: str, most_attempts: int, stand_in: StandIn, backend: Backend, attempts: Attempts
) -> None:
    stand_in(DYING)
    poisoned = submit(backend.ledger, metadata={"poison": poison})
    healthy = [submit(backend.ledger) for _ in range(3)]
    assert see_all_through(backend, attempts, poisoned.id) == most_attempts
    assert backend.reader.job(poisoned.id).status == "failed"
    assert {(job.status, job.attempt) for job in (backend.reader.job(each.id) for each in healthy)} == {
        ("succeeded", 1)
    }


def test_without_a_budget_it_would_go_on(stand_in: StandIn, backend: Backend) -> None:
    """The negative control."""
    stand_in(DYING)
    generous = replace(backend, ledger=Ledger(backend.engine, max_failures=100, max_losses=100))
    poisoned = submit(backend.ledger, metadata={"poison": "crash"})
    attempts = Attempts(generous)
    assert see_all_through(generous, attempts, poisoned.id, most=8) == 8
    assert backend.reader.job(poisoned.id).status not in ENDED
    attempts.end_all()


def see_all_through(backend: Backend, attempts: Attempts, poisoned: str, *, most: int = 20) -> int:
    """Claim and see through until there is nothing to claim; how often it was that job's turn, at `most`."""
    turns = 0
    while turns < most and (claimed := look(backend.ledger)):
        attempts.see_through(claimed)
        turns += claimed.job.id == poisoned
        if backend.reader.job(claimed.job.id).status == "queued":
            let_backoff_pass(backend.engine, claimed.job.id)
    return turns
