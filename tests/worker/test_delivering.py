"""The housekeeper tells webhooks of jobs, over real TLS to receivers on this machine: once, again, or no more."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from pathlib import Path

import pytest

from service.store.backend import Backend
from service.store.deliveries import MOST_ATTEMPTS
from service.store.rows import Delivery, Outcome, Webhook
from service.store.signatures import signed
from service.store.states import END_TYPES
from tests.scrapes import Counted
from tests.service.test_webhook_rows import let_come_due, set_back
from tests.service.work import at_once, claim, submit, until
from tests.worker.receivers import Receiver, receiving
from worker import delivering, sending
from worker.delivering import Courier
from worker.housekeeping import Housekeeper

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def backend(backend: Backend, tls: Path) -> Backend:
    """That of all workers' tests, whose receivers are on this machine."""
    networks = (ip_network("127.0.0.0/8"),)
    return replace(
        backend,
        settings=replace(backend.settings, webhook_networks=networks, webhook_ca_file=tls / "authority.pem"),
    )


@pytest.fixture
def receiver(tls: Path) -> Iterator[Receiver]:
    with receiving(tls) as receiver:
        yield receiver


def added(backend: Backend, receiver: Receiver) -> Webhook:
    return backend.webhooks.add(name="", url=receiver.url, types=END_TYPES)


def told(backend: Backend, webhook: Webhook) -> list[Delivery]:
    """In the order in which it happened."""
    return backend.reader.deliveries(webhook.id, limit=200).data[::-1]


def look(backend: Backend) -> None:
    """One round of a courier, to the end of all that it sends."""
    courier = Courier(backend)
    courier.look()
    courier.wait(60)


def ids(receiver: Receiver) -> list[str]:
    return [each.headers["webhook-id"] for each in receiver.received]


class Gate:
    """An answer that is held back until it is opened."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self._open = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self._open.wait(60)
        handler.send_response(self.status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def open(self) -> None:
        self._open.set()


def test_the_end_of_a_job_is_told_signed_by_the_secret_that_was_shown(backend: Backend, receiver: Receiver) -> None:
    webhook = added(backend, receiver)
    job = submit(backend.ledger, name="late attention")
    backend.ledger.finish(job.id, claim(backend.ledger).job.attempt, Outcome("succeeded"))
    look(backend)
    [came] = receiver.received
    message = json.loads(came.body)
    assert (message["type"], message["data"]["job"], message["data"]["name"]) == (
        "job.succeeded",
        job.id,
        "late attention",
    )
    [row] = told(backend, webhook)
    assert (row.status, row.response_status, row.attempts, row.error) == ("delivered", 200, 1, None)
    assert row.attempted_at is not None
    expected = signed(webhook.secret, row.id, int(row.attempted_at.timestamp()), came.body)
    assert {name: came.headers[name] for name in expected} == expected
    look(backend)
    assert len(receiver.received) == 1, "what was taken is not sent again"


def test_what_is_not_taken_is_sent_again_under_the_same_id_until_it_is(backend: Backend, receiver: Receiver) -> None:
    webhook = added(backend, receiver)
    message = backend.webhooks.test(webhook.id)
    for status, stands in ((500, "pending"), (302, "pending"), (404, "pending"), (204, "delivered")):
        receiver.answer = status
        look(backend)
        [row] = told(backend, webhook)
        assert (row.status, row.response_status) == (stands, status)
        look(backend)
        let_come_due(backend.engine, message.id)
    assert ids(receiver) == [message.id] * 4
    assert {each.body for each in receiver.received} == {message.body.encode()}
    assert (row.attempts, row.error) == (4, None)


@on_sqlite
def test_what_nobody_takes_is_dead_after_the_last_attempt_and_can_be_sent_again(
    backend: Backend, receiver: Receiver
) -> None:
    webhook = added(backend, receiver)
    message = backend.webhooks.test(webhook.id)
    receiver.answer = 500
    for _ in range(MOST_ATTEMPTS + 2):
        look(backend)
        let_come_due(backend.engine, message.id)
    [row] = told(backend, webhook)
    assert (row.status, row.attempts, row.error) == ("dead", MOST_ATTEMPTS, "the receiver answered 500")
    assert len(receiver.received) == MOST_ATTEMPTS
    receiver.answer = 200
    backend.webhooks.retry(webhook.id, message.id)
    look(backend)
    assert (told(backend, webhook)[0].status, set(ids(receiver))) == ("delivered", {message.id})


@on_sqlite
def test_attempts_are_counted_by_what_became_of_them(backend: Backend, receiver: Receiver) -> None:
    counted, outcomes = Counted(), {"delivered": 0, "failed": 0, "dead": 0, "disabled": 0}
    webhook = added(backend, receiver)
    message = backend.webhooks.test(webhook.id)
    receiver.answer = 500
    for _ in range(MOST_ATTEMPTS):
        look(backend)
        let_come_due(backend.engine, message.id)
    for receiver.answer in (200, 410):
        backend.webhooks.test(webhook.id)
        look(backend)
    found = {outcome: counted("acmix_deliveries_total", outcome=outcome) for outcome in outcomes}
    assert found == {"delivered": 1, "failed": MOST_ATTEMPTS - 1, "dead": 1, "disabled": 1}
    assert counted("acmix_delivery_seconds_count") == MOST_ATTEMPTS + 2


@on_sqlite
def test_a_receiver_may_ask_for_patience_with_some_answers_alone(backend: Backend, receiver: Receiver) -> None:
    def ask(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Retry-After", "3000")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    receiver.answer = ask
    for status, least, most in ((429, 3000, 3060), (503, 3000, 3060), (500, 5, 66)):
        webhook = added(backend, receiver)
        backend.webhooks.test(webhook.id)
        look(backend)
        [row] = told(backend, webhook)
        assert row.attempted_at is not None
        assert least <= (row.not_before - row.attempted_at).total_seconds() < most, status


@on_sqlite
def test_a_receiver_that_is_gone_is_told_nothing_more(backend: Backend, receiver: Receiver) -> None:
    webhook = added(backend, receiver)
    backend.webhooks.test(webhook.id)
    backend.webhooks.test(webhook.id)
    receiver.answer = 410
    look(backend)
    look(backend)
    assert len(receiver.received) == 1
    assert [each.status for each in told(backend, webhook)] == ["dead", "dead"]
    assert backend.reader.webhook(webhook.id).disabled_reason == "the receiver answered 410, which asks for no more"


@on_sqlite
def test_a_private_address_is_not_sent_to_and_the_owner_is_told_why(backend: Backend, receiver: Receiver) -> None:
    """It was let through when it was made, and is no more."""
    webhook = added(backend, receiver)
    backend.webhooks.test(webhook.id)
    look(replace(backend, settings=replace(backend.settings, webhook_networks=())))
    [row] = told(backend, webhook)
    assert (row.status, row.response_status) == ("pending", None)
    assert row.error == "url names 127.0.0.1, which is not a global address; a public host would do"
    assert receiver.received == []


@on_sqlite
def test_slow_receivers_hold_up_no_other(backend: Backend, receiver: Receiver, tls: Path) -> None:
    with ExitStack() as stack:
        gates, slow = [Gate() for _ in range(4)], []
        for gate in gates:
            each = stack.enter_context(receiving(tls))
            each.answer = gate
            slow.append(added(backend, each))
            backend.webhooks.test(slow[-1].id)
        quick = added(backend, receiver)
        backend.webhooks.test(quick.id)
        courier = Courier(backend)
        courier.look()
        until(lambda: told(backend, quick)[0].status == "delivered")
        assert [told(backend, each)[0].status for each in slow] == ["pending"] * 4
        for gate in gates:
            gate.open()
        courier.wait(60)
        assert [told(backend, each)[0].status for each in slow] == ["delivered"] * 4


@on_sqlite
def test_a_receiver_that_does_not_come_to_an_end_is_cut_off_and_asked_again(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "ATTEMPT_SECONDS", 0.5)
    gate = Gate()
    receiver.answer = gate
    webhook = added(backend, receiver)
    message = backend.webhooks.test(webhook.id)
    look(backend)
    gate.open()
    [row] = told(backend, webhook)
    assert (row.status, row.response_status, row.error) == ("pending", None, "no whole answer came within 0.5 s")
    receiver.answer = 200
    let_come_due(backend.engine, message.id)
    look(backend)
    assert told(backend, webhook)[0].status == "delivered"


def test_two_couriers_send_each_message_once(backend: Backend, receiver: Receiver) -> None:
    made = sorted(backend.webhooks.test(added(backend, receiver).id).id for _ in range(12))
    at_once(*[lambda: look(backend)] * 2)
    look(backend)
    assert sorted(ids(receiver)) == made


@on_sqlite
def test_no_more_than_so_many_are_sent_at_once(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "AT_ONCE", 3)
    gate = Gate()
    receiver.answer = gate
    for _ in range(5):
        backend.webhooks.test(added(backend, receiver).id)
    courier = Courier(backend)
    courier.look()
    until(lambda: len(receiver.received) == 3)
    courier.look()
    assert len(courier._at_work) == 3
    gate.open()
    courier.wait(60)
    courier.look()
    courier.wait(60)
    assert len(receiver.received) == 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_killed_courier_had_begun_is_sent_again_under_the_same_id(backend: Backend, receiver: Receiver) -> None:
    """It may have come already: the receiver knows it by its id. Until the lease has run out nobody takes over."""
    webhook = added(backend, receiver)
    message = backend.webhooks.test(webhook.id)
    receiver.answer = Gate()
    code = """
import signal
from service import settings
from service.store.backend import open_backend
from worker.delivering import Courier
Courier(open_backend(settings.load())).start()
signal.pause()
"""
    given = backend.settings
    environment = {
        **os.environ,
        "DATABASE_URL": given.database_url,
        "BROKER_URL": given.broker_url,
        "ACMIX_DATA": str(given.data_folder),
        "WEBHOOK_NETWORKS": "127.0.0.0/8",
        "WEBHOOK_CA_FILE": str(given.webhook_ca_file),
    }
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as killed:
        until(lambda: len(receiver.received) == 1, seconds=60)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    receiver.answer = 200
    look(backend)
    assert len(receiver.received) == 1, "its lease has not run out yet"
    set_back(backend.engine, message.id, "lease_expires_at", seconds=1)
    look(backend)
    first, second = receiver.received
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    [row] = told(backend, webhook)
    assert (row.status, row.attempts, row.claims) == ("delivered", 2, 2)


@on_sqlite
def test_what_came_of_it_cannot_be_written_while_the_database_is_away(
    backend: Backend, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    webhook = added(backend, receiver)
    message = backend.webhooks.test(webhook.id)
    gate = Gate()
    receiver.answer = gate
    courier = Courier(backend)
    courier.look()
    until(lambda: len(receiver.received) == 1)
    rename(backend, "deliveries", "deliveries_away")
    gate.open()
    courier.wait(60)
    assert "what came of it could not be written" in caplog.text
    rename(backend, "deliveries_away", "deliveries")
    assert told(backend, webhook)[0].status == "pending"
    set_back(backend.engine, message.id, "lease_expires_at", seconds=1)
    look(backend)
    assert (ids(receiver), told(backend, webhook)[0].status) == ([message.id] * 2, "delivered")


@on_sqlite
def test_once_a_webhook_is_deleted_nothing_more_comes(backend: Backend, receiver: Receiver) -> None:
    doomed, other = added(backend, receiver), added(backend, receiver)
    for webhook in (doomed, other):
        backend.webhooks.test(webhook.id)
    job = submit(backend.ledger)
    backend.webhooks.delete(doomed.id)
    backend.ledger.request_cancel(job.id)
    for _ in range(3):
        look(backend)
    assert sorted(json.loads(each.body)["type"] for each in receiver.received) == ["job.cancelled", "webhook.test"]
    assert ids(receiver) == [each.id for each in told(backend, other)]


@on_sqlite
def test_the_housekeeper_has_a_courier_that_looks_by_itself_and_when_it_is_rung_for(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "LOOK_SECONDS", 0.05)
    housekeeper = Housekeeper(backend)
    [courier] = [helper for helper in housekeeper.helpers if isinstance(helper, Courier)]
    webhook = added(backend, receiver)
    courier.start()
    try:
        backend.webhooks.test(webhook.id)
        until(lambda: len(receiver.received) == 1)
        monkeypatch.setattr(delivering, "LOOK_SECONDS", 1000.0)
        courier.ring()
        backend.webhooks.test(webhook.id)

        def came() -> bool:
            housekeeper.ring()
            return len(receiver.received) == 2

        until(came)
    finally:
        housekeeper.drain()
        courier.stop()
    backend.webhooks.test(webhook.id)
    courier.look()
    assert len(receiver.received) == 2, "one that drains begins nothing more"


@on_sqlite
def test_a_courier_outlives_a_database_that_is_away(
    backend: Backend, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivering, "LOOK_SECONDS", 0.05)
    webhook = added(backend, receiver)
    courier = Courier(backend)
    rename(backend, "deliveries", "deliveries_away")
    courier.start()
    try:
        until(lambda: caplog.text.count("the database does not answer") >= 2)
        rename(backend, "deliveries_away", "deliveries")
        backend.webhooks.test(webhook.id)
        until(lambda: len(receiver.received) == 1)
    finally:
        courier.drain()
        courier.stop()


def rename(backend: Backend, table: str, to: str) -> None:
    """Without its table every query is refused, as by a database that is away."""
    with backend.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {to}")


@on_sqlite
def test_neither_a_secret_nor_a_url_is_logged(
    backend: Backend, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for status in (200, 500, 410):
        receiver.answer = status
        backend.webhooks.test(added(backend, receiver).id)
        look(backend)
    said = caplog.text
    assert "whsec_" not in said
    assert "v1," not in said
    assert "/hooks" not in said, "a receiver's own secret may be in its URL"
