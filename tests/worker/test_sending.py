"""Attempts at deliveries, over real TLS to receivers on this machine."""

import base64
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import settings
from service.store import addresses
from service.store.rows import Dispatch
from service.store.signatures import new_secret
from tests.worker.receivers import HERE, NAME, THERE, Receiver, receiving
from worker import sending
from worker.sending import Answer, Sender, Unanswered

BODY = '{"type":"job.succeeded","data":{"name":"caf\\u00e9"}}'
SECRET = new_secret()


@pytest.fixture
def receiver(tls: Path) -> Iterator[Receiver]:
    with receiving(tls) as receiver:
        yield receiver


def sender(tls: Path, networks: str = "127.0.0.0/8", *, trusting: bool = True) -> Sender:
    trusted = {"WEBHOOK_CA_FILE": str(tls / "authority.pem")} if trusting else {}
    return Sender(settings.load({"WEBHOOK_NETWORKS": networks, **trusted}))


def dispatch(url: str) -> Dispatch:
    at = datetime(2026, 11, 24, 18, 42, 49, 630000, tzinfo=UTC)
    return Dispatch("dlv_01J9ZK6Q5W8Y3T4V7XB2D0M1NC", "whk_1", url, SECRET, BODY, 1, 1, at)


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """The resolver answers `NAME` with these in turn, the last one ever after; returns what it was asked."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host not in {NAME, NAME.encode()}:
            return real(host, port, *args, **more)
        asked.append(NAME)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_a_message_comes_as_it_was_written_and_its_signature_is_the_secrets(tls: Path, receiver: Receiver) -> None:
    assert sender(tls).send(dispatch(receiver.url)) == Answer(200)
    [came] = receiver.received
    assert (came.path, came.body) == ("/hooks?of=acmix", BODY.encode())
    assert came.headers["content-type"] == "application/json"
    assert came.headers["host"] == f"{HERE}:{receiver.port}"
    assert (came.headers["webhook-id"], came.headers["webhook-timestamp"]) == (
        "dlv_01J9ZK6Q5W8Y3T4V7XB2D0M1NC",
        "1795545769",
    )
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    text = f"{came.headers['webhook-id']}.{came.headers['webhook-timestamp']}.".encode() + came.body
    assert came.headers["webhook-signature"] == "v1," + base64.b64encode(
        hmac.new(key, text, hashlib.sha256).digest()
    ).decode("ascii")


@pytest.mark.parametrize("status", [204, 302, 307, 404, 410, 500])
def test_what_a_receiver_answers_is_told(tls: Path, receiver: Receiver, status: int) -> None:
    receiver.answer = status
    assert sender(tls).send(dispatch(receiver.url)) == Answer(status)


def test_a_redirect_is_not_followed(tls: Path, receiver: Receiver) -> None:
    with receiving(tls) as target:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(307)
            handler.send_header("Location", target.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        receiver.answer = redirect
        assert sender(tls).send(dispatch(receiver.url)) == Answer(307)
        assert (len(receiver.received), target.received) == (1, [])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": "Tue, 24 Nov 2026 18:43:00 GMT", "Date": "Tue, 24 Nov 2026 18:42:00 GMT"}, 60.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({}, None),
    ],
)
def test_a_receiver_may_ask_for_patience(
    tls: Path, receiver: Receiver, headers: dict[str, str], seconds: float | None
) -> None:
    def ask(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(503)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    receiver.answer = ask
    assert sender(tls).send(dispatch(receiver.url)) == Answer(503, seconds)


def drip_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    _drip(handler)


def drip_continue(handler: BaseHTTPRequestHandler) -> None:
    _drip(handler, b"HTTP/1.1 100 Continue\r\n\r\n")


def say_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)


def _drip(handler: BaseHTTPRequestHandler, drop: bytes = b"a") -> None:
    while True:  # until the connection is closed
        handler.wfile.write(drop)
        handler.wfile.flush()
        threading.Event().wait(0.02)


@pytest.mark.parametrize("slow", [drip_head, drip_body, drip_continue, say_nothing])
def test_a_receiver_that_drips_is_cut_off(
    tls: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, slow: Any
) -> None:
    monkeypatch.setattr(sending, "ATTEMPT_SECONDS", 0.3)
    cut_off = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        try:
            slow(handler)
        finally:
            cut_off.set()

    receiver.answer = answer
    began_at = time.monotonic()
    with pytest.raises(Unanswered, match=r"no whole answer came within 0\.3 s"):
        sender(tls).send(dispatch(receiver.url))
    assert time.monotonic() - began_at < 10, "it would have dripped for ever"
    assert cut_off.wait(10), "the connection is closed as well"


def test_one_that_listens_and_does_not_even_shake_hands_is_cut_off(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "CONNECT_SECONDS", 0.2)
    with socket.create_server((HERE, 0)) as silent:
        url = f"https://{HERE}:{silent.getsockname()[1]}/"
        with pytest.raises(Unanswered, match=r"no connection could be made within 0\.2 s"):
            sender(tls).send(dispatch(url))


def test_of_a_long_answer_only_the_beginning_is_read(tls: Path, receiver: Receiver) -> None:
    sent = threading.Event()
    written = 0

    def pour(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while written < 2**30:
                written += handler.wfile.write(bytes(2**16))
        finally:
            sent.set()

    receiver.answer = pour
    assert sender(tls).send(dispatch(receiver.url)) == Answer(200)
    assert sent.wait(10)
    assert written < 2**26, "what the machine's buffers hold, and not the whole"


@pytest.mark.parametrize("said", [b"220 mail.test ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b""])
def test_what_is_no_whole_answer_is_none(tls: Path, receiver: Receiver, said: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(said)
        handler.close_connection = True

    receiver.answer = answer
    with pytest.raises(Unanswered, match="the answer broke off: RemoteProtocolError"):
        sender(tls).send(dispatch(receiver.url))


def test_where_nobody_listens_no_connection_is_made(tls: Path) -> None:
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unanswered, match="no connection could be made"):
        sender(tls).send(dispatch(f"https://{HERE}:{port}/"))


# Certificates


def test_a_certificate_of_an_unknown_authority_is_refused(tls: Path, receiver: Receiver) -> None:
    with pytest.raises(Unanswered, match="certificate verify failed"):
        sender(tls, trusting=False).send(dispatch(receiver.url))
    assert receiver.received == []


def test_a_certificate_must_be_the_hosts_whatever_the_address(
    tls: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names receiver.test and 127.0.0.1: another name at the same address is another's."""
    resolving(monkeypatch, [HERE])
    assert sender(tls).send(dispatch(f"https://{NAME}:{receiver.port}/")) == Answer(200)
    assert receiver.received[0].headers["host"] == f"{NAME}:{receiver.port}"
    with pytest.raises(Unanswered, match="certificate verify failed"):
        sender(tls).send(dispatch(f"https://localhost:{receiver.port}/"))


# Addresses


def test_a_private_address_is_refused_when_it_is_to_be_sent_to(
    tls: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, [HERE])
    named = f"https://{NAME}:{receiver.port}/"
    for url in (receiver.url, named, f"https://localhost:{receiver.port}/"):
        with pytest.raises(Unanswered, match=r"not a global|nobody's on the internet"):
            sender(tls, networks="").send(dispatch(url))
    assert receiver.received == []


def test_without_the_look_at_addresses_the_same_would_be_reached(
    tls: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: what keeps a message from a private address is this look alone."""
    resolving(monkeypatch, [HERE])
    monkeypatch.setattr(addresses, "is_let_through", lambda *_: True)
    for url in (receiver.url, f"https://{NAME}:{receiver.port}/"):
        assert sender(tls, networks="").send(dispatch(url)) == Answer(200)
    assert len(receiver.received) == 2


def test_a_name_that_means_something_else_a_moment_later_is_not_asked_again(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that was looked at is the one that is used. A client that asks for itself goes astray: the control."""
    with receiving(tls, THERE) as good, receiving(tls, HERE, port=good.port) as private:
        url = f"https://{NAME}:{good.port}/"
        asked = resolving(monkeypatch, [THERE], [HERE])
        assert sender(tls, networks=f"{THERE}/32").send(dispatch(url)) == Answer(200)
        assert (len(asked), len(good.received), len(private.received)) == (1, 1, 0)
        with httpx.Client(verify=sender(tls)._certificates, trust_env=False) as naive:
            naive.post(url, content=BODY)
        assert (len(good.received), len(private.received)) == (1, 1)


def test_where_nobody_is_at_the_first_address_the_next_is_tried(
    tls: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, [THERE, HERE])
    assert sender(tls).send(dispatch(f"https://{NAME}:{receiver.port}/")) == Answer(200)


def test_a_host_of_which_one_address_is_private_is_not_sent_to_at_all(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(tls, THERE) as good:
        resolving(monkeypatch, [THERE, HERE])
        with pytest.raises(Unanswered, match=rf"{NAME} has an address that is not a global one"):
            sender(tls, networks=f"{THERE}/32").send(dispatch(f"https://{NAME}:{good.port}/"))
        assert good.received == []


def test_no_proxy_of_the_environment_is_taken(tls: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HERE, 0)) as proxy:
        proxy.setblocking(False)
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{HERE}:{proxy.getsockname()[1]}")
        assert sender(tls).send(dispatch(receiver.url)) == Answer(200)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_an_address_of_ipv6_is_named_in_brackets(tls: Path) -> None:
    with receiving(tls, "::1") as receiver:
        assert sender(tls, networks="::1/128").send(dispatch(receiver.url)) == Answer(200)
        assert receiver.received[0].headers["host"] == f"[::1]:{receiver.port}"
