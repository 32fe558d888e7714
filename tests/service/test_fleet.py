"""A fleet over simulated days, under the real ledger: benchmarks/fleet.py, and the promises of the scheduler."""

from benchmarks.fleet import SLOTS, simulated
from benchmarks.workload import in_strict_order, made, with_backfill

FLEET, JOBS, DAYS = 6, 150, 0.6


def test_no_slot_is_given_twice_and_no_blocked_job_waits_past_its_bound(database_url: str) -> None:
    work = made(FLEET * SLOTS, JOBS, DAYS)
    books = simulated(database_url, work, FLEET)
    assert books.twice == 0
    assert sorted(each.work.number for each in books.done) == [each.number for each in work]
    assert books.blocked
    assert books.kept, "or nothing would be proved"
    assert books.kept_too_long() == 0
    assert books.past_the_bound(FLEET) == 0


def test_the_rivals_fill_no_worker_beyond_its_slots() -> None:
    work = made(FLEET * SLOTS, JOBS, DAYS)
    for done in (in_strict_order(work, FLEET, SLOTS), with_backfill(work, FLEET, SLOTS)):
        assert sorted(each.work.number for each in done) == [each.number for each in work]
        for begun in done:
            beside = [each for each in done if each.worker == begun.worker and each.begins <= begun.begins < each.ends]
            assert sum(each.work.slots for each in beside) <= SLOTS
