"""Requests for plans and their answers, as the store keeps them."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, func, select, update

from service.store.database import clock
from service.store.plans import Plans
from service.store.requests import MOST_CLAIMS
from service.store.rows import Asked
from service.store.tables import plans as table
from tests.service.work import at_once

REQUEST = {"backbone": {"name": "resnet26"}, "assume": {"num_classes": 10, "image_px": 8}}
ANSWER = {"plan": {"layers": [], "totals": {}, "warnings": []}}


@pytest.fixture
def plans(engine: Engine) -> Plans:
    return Plans(engine)


def ask(plans: Plans, number: int = 0) -> Asked:
    return plans.ask({**REQUEST, "number": number}, version="1")


def claimed(plans: Plans) -> Asked:
    found = plans.claim()
    assert found is not None
    return found


def set_back(engine: Engine, plan: Asked, column: str, **span: float) -> None:
    """As if so much time had passed since."""
    with engine.execution_options(writes=True).begin() as connection:
        then = clock(connection) - timedelta(**span)
        connection.execute(update(table).where(table.c.id == plan.id).values({column: then}))


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_request_is_one_row_however_often_and_in_whatever_order_of_fields_it_comes(
    engine: Engine, plans: Plans
) -> None:
    first = ask(plans)
    again = plans.ask(dict(reversed({**REQUEST, "number": 0}.items())), version="1")
    assert (again.id, again.answered_at, count(engine)) == (first.id, None, 1)
    assert again.requested_at >= first.requested_at


def test_other_requests_and_other_versions_of_the_library_are_other_rows(engine: Engine, plans: Plans) -> None:
    rows = {ask(plans, 1).id, ask(plans, 2).id, plans.ask({**REQUEST, "number": 1}, version="2").id}
    assert len(rows) == count(engine) == 3


def test_an_answer_is_there_for_whoever_asks_the_same_again(plans: Plans) -> None:
    ask(plans)
    plan = claimed(plans)
    assert (plan.request["number"], plan.claims) == (0, 1)
    assert plans.answer(plan, ANSWER, library="a" * 64)
    found = ask(plans)
    assert (found.answer, found.library, found.failure, found.lease_expires_at) == (ANSWER, "a" * 64, None, None)
    assert found.answered_at is not None
    assert plans.claim() is None


def test_who_came_first_is_answered_first(plans: Plans) -> None:
    for number in range(3):
        ask(plans, number)
    assert [claimed(plans).request["number"] for _ in range(3)] == [0, 1, 2]
    assert plans.claim() is None


def test_requests_claimed_by_many_are_claimed_once_each(plans: Plans) -> None:
    for number in range(20):
        ask(plans, number)

    def work() -> list[str]:
        found = []
        while plan := plans.claim():
            found.append(plan.id)
        return found

    taken = [plan_id for several in at_once(*[work] * 4) for plan_id in several]
    assert len(taken) == len(set(taken)) == 20


def test_askers_at_once_make_one_row(engine: Engine, plans: Plans) -> None:
    assert len({plan.id for plan in at_once(*[lambda: ask(plans)] * 8)}) == count(engine) == 1


def test_a_claim_that_ran_out_is_anothers_and_the_first_can_write_no_more(engine: Engine, plans: Plans) -> None:
    ask(plans)
    first = claimed(plans)
    assert plans.renew(first)
    set_back(engine, first, "lease_expires_at", seconds=1)
    second = claimed(plans)
    assert (second.id, second.claims) == (first.id, 2)
    assert not plans.renew(first)
    assert not plans.answer(first, {"plan": "late"}, library="a")
    assert not plans.fail(first, "late")
    assert not plans.release(first)
    assert plans.answer(second, ANSWER, library="a")
    assert ask(plans).answer == ANSWER


def test_a_claim_that_is_given_back_is_free_at_once(plans: Plans) -> None:
    ask(plans)
    assert plans.release(claimed(plans))
    assert claimed(plans).failures == 0


def test_a_request_that_fails_twice_is_answered_so_and_not_made_again(engine: Engine, plans: Plans) -> None:
    ask(plans)
    assert plans.fail(claimed(plans), "it hangs")
    assert ask(plans).failure is None
    assert plans.fail(claimed(plans), "it hangs")
    found = ask(plans)
    assert found.failure is not None
    assert found.failure["message"] == "this cannot be planned: it hangs"
    assert plans.claim() is None
    set_back(engine, found, "answered_at", minutes=11)
    assert ask(plans).failure is None, "after a while it is tried anew"
    assert claimed(plans).failures == 0


def test_a_request_that_takes_every_housekeeper_along_is_given_up(engine: Engine, plans: Plans) -> None:
    ask(plans)
    for _ in range(MOST_CLAIMS):
        set_back(engine, claimed(plans), "lease_expires_at", seconds=1)
    behind = ask(plans, 1)
    assert claimed(plans).id == behind.id
    failure = ask(plans).failure
    assert failure is not None
    assert "never came back" in failure["message"]


def test_what_nobody_waits_for_any_longer_is_not_made_and_goes(engine: Engine, plans: Plans) -> None:
    left = ask(plans)
    set_back(engine, left, "requested_at", seconds=61)
    assert plans.claim() is None
    ask(plans)
    assert plans.release(claimed(plans))
    set_back(engine, left, "requested_at", seconds=121)
    assert (plans.expire(), count(engine)) == (1, 0)


def test_old_answers_go_and_beyond_the_most_that_are_kept_the_oldest(
    engine: Engine, plans: Plans, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for number in range(6):
        ask(plans, number)
        kept.append(claimed(plans))
        plans.answer(kept[-1], ANSWER, library="a")
        set_back(engine, kept[-1], "requested_at", minutes=10 - number)
    waiting = ask(plans, 6)
    assert plans.expire() == 0
    set_back(engine, kept[5], "answered_at", hours=25)
    assert plans.expire() == 1
    monkeypatch.setattr(Plans, "most_kept", 3)
    assert plans.expire() == 3
    assert [plans.find(plan.id) is None for plan in kept] == [True, True, True, False, False, True]
    assert plans.find(waiting.id) is not None


def test_answers_of_another_library_are_forgotten_and_what_waits_is_not(engine: Engine, plans: Plans) -> None:
    for number, library in enumerate(("old", "new")):
        ask(plans, number)
        plans.answer(claimed(plans), ANSWER, library=library)
    waiting = ask(plans, 2)
    assert plans.forget_others("new") == 1
    assert (ask(plans, 0).answer, ask(plans, 1).answer) == (None, ANSWER)
    assert plans.find(waiting.id) is not None
