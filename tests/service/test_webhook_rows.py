"""Webhooks, as the store keeps them: what is told and when, claims that fence each other off, ends."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, update

from acmix.errors import Reason
from acmix.events import Event
from service.store import deliveries as module
from service.store.database import clock, writing
from service.store.deliveries import LONGEST_PATIENCE_SECONDS, MOST_ATTEMPTS, WAIT_SECONDS, Deliveries
from service.store.errors import DeliveryNotFound, WebhookDisabled, WebhookNotFound, WebhooksExhausted
from service.store.ledger import Ledger
from service.store.reading import Reader
from service.store.rows import Delivery, Dispatch, Outcome, Webhook
from service.store.states import EVENT_TYPES
from service.store.tables import deliveries as table
from service.store.webhooks import MOST_WEBHOOKS, Webhooks
from tests.service.work import at_once, claim, let_lease_run_out, submit

URL = "https://example.com/hooks"
NONE = "dlv_01J9ZK6Q5W8Y3T4V7XB2D0M1NC"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def webhooks(engine: Engine) -> Webhooks:
    return Webhooks(engine)


@pytest.fixture
def deliveries(engine: Engine) -> Deliveries:
    return Deliveries(engine)


def added(webhooks: Webhooks, *types: Any, name: str = "") -> Webhook:
    return webhooks.add(name=name, url=URL, types=types or EVENT_TYPES)


def told(reader: Reader, webhook: Webhook) -> list[Delivery]:
    """What there is to tell it, in the order in which it happened."""
    return reader.deliveries(webhook.id, limit=200).data[::-1]


def claimed(deliveries: Deliveries) -> Dispatch:
    found = deliveries.claim()
    assert found is not None
    return found


def set_back(engine: Engine, delivery_id: str, column: str, **span: float) -> None:
    """As if so much time had passed since."""
    with writing(engine).begin() as connection:
        then = clock(connection) - timedelta(**span)
        connection.execute(update(table).where(table.c.id == delivery_id).values({column: then}))


def let_come_due(engine: Engine, delivery_id: str) -> None:
    set_back(engine, delivery_id, "not_before", seconds=1)


# What is told


def test_every_status_of_a_job_is_told_once_in_order_with_the_event_that_tells_of_it(
    ledger: Ledger, reader: Reader, webhooks: Webhooks
) -> None:
    webhook = added(webhooks)
    job = submit(ledger, name="late attention", metadata={"study": "depth"})
    ledger.request_pause(job.id)
    ledger.resume(job.id)
    attempt = claim(ledger).job.attempt
    ledger.record(job.id, attempt, [Event("progress", "step 1", {"step": 1})])
    ledger.finish(job.id, attempt, Outcome("failed", Reason("diverged", "the loss is nan", "user")))
    messages = [json.loads(each.body) for each in told(reader, webhook)]
    assert [message["type"] for message in messages] == [
        "job.queued",
        "job.paused",
        "job.queued",
        "job.running",
        "job.failed",
    ]
    statuses = {each.number: each for each in reader.events(job.id) if each.type == "status"}
    for message in messages:
        event = statuses.pop(message["data"]["event"])
        assert event.data["status"] == message["data"]["status"] == message["type"].removeprefix("job.")
        assert message["timestamp"] == f"{event.at:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert statuses == {}
    assert messages[-1]["data"] == {
        "job": job.id,
        "kind": "train",
        "name": "late attention",
        "status": "failed",
        "status_reason": {
            "code": "diverged",
            "message": "the loss is nan",
            "blame": "user",
            "retryable": False,
            "hint": None,
        },
        "attempt": 1,
        "event": messages[-1]["data"]["event"],
        "metadata": {"study": "depth"},
    }


@on_sqlite
def test_a_webhook_is_told_what_it_asked_for_from_when_it_was_made(
    ledger: Ledger, reader: Reader, webhooks: Webhooks
) -> None:
    before = submit(ledger)
    ends, all_of_it = added(webhooks, "job.cancelled"), added(webhooks)
    ledger.request_cancel(before.id)
    assert [(each.type, each.job) for each in told(reader, ends)] == [("job.cancelled", before.id)]
    submit(ledger)
    assert [each.type for each in told(reader, ends)] == ["job.cancelled"]
    assert [each.type for each in told(reader, all_of_it)] == ["job.cancelled", "job.queued"]


@on_sqlite
def test_a_lost_attempt_is_told_by_whoever_finds_it(
    engine: Engine, ledger: Ledger, reader: Reader, webhooks: Webhooks
) -> None:
    submit(ledger)
    job = claim(ledger).job
    webhook = added(webhooks)
    let_lease_run_out(engine, job.id)
    ledger.sweep()
    [message] = told(reader, webhook)
    assert json.loads(message.body)["data"]["status_reason"]["code"] == "worker_lost"


def test_what_is_not_committed_is_not_told(ledger: Ledger, reader: Reader, webhooks: Webhooks, engine: Engine) -> None:
    """The message and the end of a job are one transaction: neither is there without the other."""
    submit(ledger)
    job = claim(ledger).job
    webhook = added(webhooks)

    def fail(*_: Any) -> None:
        raise RuntimeError("the process ends here")

    event.listen(engine, "commit", fail)
    with pytest.raises(RuntimeError, match="the process ends here"):
        ledger.finish(job.id, job.attempt, Outcome("succeeded"))
    event.remove(engine, "commit", fail)
    assert (reader.job(job.id).status, told(reader, webhook)) == ("running", [])
    ledger.finish(job.id, job.attempt, Outcome("succeeded"))
    assert [each.type for each in told(reader, webhook)] == ["job.succeeded"]


def test_a_deletion_beside_it_takes_no_end_of_a_job_along(ledger: Ledger, reader: Reader, webhooks: Webhooks) -> None:
    for _ in range(10):
        job, doomed = submit(ledger), added(webhooks)
        at_once(lambda doomed=doomed: webhooks.delete(doomed.id), lambda job=job: ledger.request_cancel(job.id))  # type: ignore[misc]  # each round's own
        assert reader.job(job.id).status == "cancelled"


def test_another_tenants_jobs_are_not_told(ledger: Ledger, reader: Reader, webhooks: Webhooks) -> None:
    mine, others = added(webhooks.of("mine")), added(webhooks.of("others"))
    submit(ledger.of("mine"))
    assert [each.type for each in told(reader, mine)] == ["job.queued"]
    assert told(reader, others) == []
    assert [each.id for each in reader.of("mine").webhooks().data] == [mine.id]
    assert reader.of("mine").deliveries(others.id).data == []
    [message] = told(reader, mine)
    theirs = webhooks.of("others")
    for call in (
        lambda: reader.of("others").webhook(mine.id),
        lambda: theirs.delete(mine.id),
        lambda: theirs.test(mine.id),
        lambda: theirs.retry(mine.id, message.id),
    ):
        with pytest.raises(WebhookNotFound):
            call()
    with pytest.raises(DeliveryNotFound):
        theirs.retry(others.id, message.id)
    assert told(reader, mine) == [message]


@on_sqlite
def test_a_message_outlives_its_job(ledger: Ledger, reader: Reader, webhooks: Webhooks) -> None:
    job, webhook = submit(ledger), added(webhooks, "job.cancelled")
    ledger.request_cancel(job.id)
    ledger.delete(job.id)
    assert [each.job for each in told(reader, webhook)] == [job.id]


@on_sqlite
def test_a_secret_is_not_printed(webhooks: Webhooks, deliveries: Deliveries) -> None:
    webhook = added(webhooks)
    webhooks.test(webhook.id)
    dispatch = claimed(deliveries)
    assert dispatch.secret == webhook.secret
    assert "whsec_" not in f"{webhook} {dispatch}"


def test_of_webhooks_that_are_made_at_once_no_more_than_there_may_be_are(webhooks: Webhooks, reader: Reader) -> None:
    def add() -> int:
        try:
            added(webhooks)
        except WebhooksExhausted:
            return 0
        return 1

    for _ in range(MOST_WEBHOOKS - 3):
        add()
    assert sum(at_once(*[add] * 8)) == 3
    assert len(reader.webhooks(limit=200).data) == MOST_WEBHOOKS
    added(webhooks.of("another"))
    webhooks.delete(reader.of("default").webhooks().data[0].id)
    assert add() == 1


# Claims


def test_of_couriers_at_once_each_delivery_has_one(webhooks: Webhooks, deliveries: Deliveries) -> None:
    made = sorted(webhooks.test(added(webhooks).id).id for _ in range(8))

    def work() -> list[str]:
        found = []
        while dispatch := deliveries.claim():
            found.append(dispatch.id)
        return found

    assert sorted(each for several in at_once(*[work] * 4) for each in several) == made


def test_a_webhook_is_sent_one_message_at_a_time_in_order_and_holds_up_no_other(
    webhooks: Webhooks, deliveries: Deliveries
) -> None:
    slow, quick = added(webhooks), added(webhooks)
    first, second = webhooks.test(slow.id), webhooks.test(slow.id)
    other = webhooks.test(quick.id)
    taken = claimed(deliveries)
    assert (taken.id, claimed(deliveries).id, deliveries.claim()) == (first.id, other.id, None)
    assert deliveries.deliver(taken, 200)
    assert claimed(deliveries).id == second.id


def test_a_claim_that_ran_out_is_anothers_under_the_same_id_and_the_first_can_write_no_more(
    engine: Engine, webhooks: Webhooks, deliveries: Deliveries, reader: Reader
) -> None:
    webhook = added(webhooks)
    message = webhooks.test(webhook.id)
    first = claimed(deliveries)
    assert deliveries.claim() is None
    set_back(engine, message.id, "lease_expires_at", seconds=1)
    second = claimed(deliveries)
    assert (second.id, second.body, second.claims, second.attempts) == (first.id, first.body, 2, 2)
    for late in (deliveries.deliver(first, 200), deliveries.fail(first, "no"), deliveries.disable(first, "no", 410)):
        assert not late
    assert reader.webhook(webhook.id).disabled_at is None
    assert deliveries.deliver(second, 204)
    [after] = told(reader, webhook)
    assert (after.status, after.response_status, after.error, after.lease_expires_at) == ("delivered", 204, None, None)


@on_sqlite
def test_one_whose_last_courier_never_came_back_is_dead(
    engine: Engine, webhooks: Webhooks, deliveries: Deliveries, reader: Reader
) -> None:
    webhook = added(webhooks)
    message = webhooks.test(webhook.id)
    for _ in range(MOST_ATTEMPTS):
        claimed(deliveries)
        set_back(engine, message.id, "lease_expires_at", seconds=1)
    assert deliveries.claim() is None
    [after] = told(reader, webhook)
    assert (after.status, after.error) == ("dead", "the last attempt never came to its end")


# Ends


def test_what_is_not_taken_is_sent_again_later_each_time_then_it_is_dead(
    engine: Engine, webhooks: Webhooks, deliveries: Deliveries, reader: Reader
) -> None:
    webhook = added(webhooks)
    message = webhooks.test(webhook.id)
    for planned in WAIT_SECONDS:
        assert deliveries.fail(claimed(deliveries), "the receiver answered 500", 500)
        [waits] = told(reader, webhook)
        assert waits.attempted_at is not None
        assert (waits.status, waits.response_status, waits.error) == ("pending", 500, "the receiver answered 500")
        waited = (waits.not_before - waits.attempted_at).total_seconds()
        assert planned <= waited < 1.2 * planned + 60
        assert deliveries.claim() is None
        let_come_due(engine, message.id)
    assert deliveries.fail(claimed(deliveries), "no connection\0could be made")
    [after] = told(reader, webhook)
    assert (after.status, after.attempts, after.response_status) == ("dead", MOST_ATTEMPTS, None)
    assert after.error == "no connection\ufffdcould be made"
    assert after.ended_at is not None
    assert deliveries.claim() is None


@on_sqlite
def test_waits_differ(webhooks: Webhooks, deliveries: Deliveries, reader: Reader) -> None:
    waits = set()
    for _ in range(5):
        webhook = added(webhooks)
        webhooks.test(webhook.id)
        deliveries.fail(claimed(deliveries), "no")
        [one] = told(reader, webhook)
        assert one.attempted_at is not None
        waits.add(one.not_before - one.attempted_at)
    assert len(waits) == 5


@on_sqlite
@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(0.5, 5, 66), (600.0, 600, 660), (1e9, LONGEST_PATIENCE_SECONDS, LONGEST_PATIENCE_SECONDS + 60)],
)
def test_a_receiver_is_given_the_time_it_asks_for_within_reason(
    webhooks: Webhooks, deliveries: Deliveries, reader: Reader, asked: float, least: float, most: float
) -> None:
    webhook = added(webhooks)
    webhooks.test(webhook.id)
    deliveries.fail(claimed(deliveries), "busy", 503, asked)
    [waits] = told(reader, webhook)
    assert waits.attempted_at is not None
    assert least <= (waits.not_before - waits.attempted_at).total_seconds() < most


def test_a_receiver_that_wants_no_more_is_told_nothing_more(
    ledger: Ledger, webhooks: Webhooks, deliveries: Deliveries, reader: Reader
) -> None:
    webhook, other = added(webhooks), added(webhooks)
    webhooks.test(webhook.id)
    submit(ledger)
    assert deliveries.disable(claimed(deliveries), "the receiver answered 410", 410)
    submit(ledger)
    assert [(each.status, each.error) for each in told(reader, webhook)] == [("dead", "the receiver answered 410")] * 2
    stands = reader.webhook(webhook.id)
    assert (stands.disabled_reason, stands.disabled_at is not None) == ("the receiver answered 410", True)
    for refused in (webhooks.test, lambda each: webhooks.retry(each, told(reader, webhook)[0].id)):
        with pytest.raises(WebhookDisabled, match="is disabled: the receiver answered 410; delete it and make another"):
            refused(webhook.id)
    assert [each.status for each in told(reader, other)] == ["pending", "pending"]


def test_what_was_to_be_sent_when_its_webhook_was_disabled_is_dead(
    engine: Engine, webhooks: Webhooks, deliveries: Deliveries, reader: Reader
) -> None:
    """A job may have ended beside it, and have seen the webhook as it was."""
    webhook = added(webhooks)
    late = webhooks.test(webhook.id)
    deliveries.disable(claimed(deliveries), "the receiver answered 410", 410)
    with writing(engine).begin() as connection:
        connection.execute(update(table).where(table.c.id == late.id).values(status="pending", ended_at=None))
    assert deliveries.claim() is None
    [after] = told(reader, webhook)
    assert (after.status, after.error) == ("dead", "the receiver answered 410")


def test_once_deleted_nothing_more_is_sent(webhooks: Webhooks, deliveries: Deliveries, reader: Reader) -> None:
    webhook = added(webhooks)
    webhooks.test(webhook.id)
    under_way = claimed(deliveries)
    webhooks.test(webhook.id)
    webhooks.delete(webhook.id)
    assert not deliveries.fail(under_way, "the receiver answered 500", 500)
    assert deliveries.claim() is None
    assert told(reader, webhook) == []
    with pytest.raises(WebhookNotFound):
        webhooks.delete(webhook.id)


@pytest.mark.parametrize("end", ["delivered", "dead"])
def test_an_ended_one_goes_out_again_as_it_was(
    engine: Engine, webhooks: Webhooks, deliveries: Deliveries, reader: Reader, end: str
) -> None:
    webhook = added(webhooks)
    message = webhooks.test(webhook.id)
    if end == "delivered":
        deliveries.deliver(claimed(deliveries), 200)
    for _ in range(MOST_ATTEMPTS if end == "dead" else 0):
        deliveries.fail(claimed(deliveries), "no")
        let_come_due(engine, message.id)
    [ended] = told(reader, webhook)
    assert ended.status == end
    again = webhooks.retry(webhook.id, message.id)
    assert (again.status, again.attempts, again.ended_at) == ("pending", 0, None)
    dispatch = claimed(deliveries)
    assert (dispatch.id, dispatch.body, dispatch.attempts) == (message.id, message.body, 1)
    assert dispatch.claims == ended.claims + 1, "the number that fences writes only rises"


@on_sqlite
def test_one_that_waits_can_be_sent_at_once(webhooks: Webhooks, deliveries: Deliveries) -> None:
    webhook = added(webhooks)
    message = webhooks.test(webhook.id)
    deliveries.fail(claimed(deliveries), "no")
    assert deliveries.claim() is None
    webhooks.retry(webhook.id, message.id)
    assert claimed(deliveries).attempts == 1
    with pytest.raises(DeliveryNotFound):
        webhooks.retry(webhook.id, NONE)


def test_what_ended_long_ago_is_removed_and_what_waits_is_not(
    engine: Engine, webhooks: Webhooks, deliveries: Deliveries, reader: Reader
) -> None:
    kept = []
    for status, days, stays in (("delivered", 6, 1), ("delivered", 8, 0), ("dead", 29, 1), ("dead", 31, 0)):
        message = webhooks.test(added(webhooks).id)
        with writing(engine).begin() as connection:
            connection.execute(update(table).where(table.c.id == message.id).values(status=status))
        set_back(engine, message.id, "ended_at", days=days)
        kept += [message.id] * stays
    kept.append(webhooks.test(added(webhooks).id).id)
    set_back(engine, kept[-1], "created_at", days=100)
    assert deliveries.expire() == 2
    with engine.connect() as connection:
        assert sorted(connection.execute(select(table.c.id)).scalars()) == sorted(kept)


@on_sqlite
def test_a_job_costs_one_query_more_where_there_is_no_webhook(engine: Engine, ledger: Ledger) -> None:
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))
    submit(ledger)
    about = [statement for statement in asked if "webhooks" in statement or "deliveries" in statement]
    assert len(about) == 1
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_the_schedule_is_that_of_standard_webhooks() -> None:
    assert [seconds / 60 for seconds in WAIT_SECONDS] == [5 / 60, 5, 30, 120, 300, 600, 840, 1200, 1440]
    assert module.LEASE_SECONDS > 15, "a claim outlasts an attempt"
