"""Where a webhook may go: spellings of hosts, forms of addresses, and what a name is found to mean."""

import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.addresses import (
    AddressRefused,
    HostUnresolved,
    Receiver,
    UrlInvalid,
    addresses_of,
    is_let_through,
    receiver,
)

GLOBAL = [
    "8.8.8.8",
    "1.1.1.1",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.255",
    "192.88.98.255",
    "192.88.100.0",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "2001:200::1",
    "2003::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]
REFUSED = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd00:ec2::254"],
    "shared": ["100.64.0.1", "100.100.100.200", "100.127.255.255"],
    "link-local": ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%1", "febf::1", "fec0::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "multicast and broadcast": ["224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "198.18.0.1", "192.0.0.1", "192.0.0.192", "100::1", "5f00::1", "4000::1", "8000::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "of a cloud's inside": ["168.63.129.16"],
    "IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::ffff:224.0.0.1"],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "64:ff9b:1::808:808", "64:ff9b:0:1::808:808"],
    "6to4": ["2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1", "192.88.99.1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "protocols' own": ["2001:10::1", "2001:20::1", "2001:2::1"],
}


@pytest.mark.parametrize("text", GLOBAL)
def test_a_global_address_is_let_through(text: str) -> None:
    assert is_let_through(ip_address(text))


@pytest.mark.parametrize("text", [text for texts in REFUSED.values() for text in texts])
def test_any_other_address_is_not(text: str) -> None:
    assert not is_let_through(ip_address(text))


def test_a_network_that_is_allowed_is_let_through_in_every_form_of_its_addresses() -> None:
    allowed = [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"):
        assert is_let_through(ip_address(text), allowed), text
    for text in ("10.2.0.1", "::ffff:10.2.0.1", "127.0.0.1", "fc00::1", "fd00::1%1", "::10.1.2.3"):
        assert not is_let_through(ip_address(text), allowed), text
    assert is_let_through(ip_address("8.8.8.8"), allowed), "the others stay as they were"


# URLs


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://example.com", "example.com", 443),
        ("HTTPS://Hooks.Example.COM:8443/a/b?c=d&e=%20", "hooks.example.com", 8443),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443),
        ("https://1e100.net:/", "1e100.net", 443),
        ("https://8.8.8.8:65535/x", "8.8.8.8", 65535),
        ("https://[2606:4700::1111]:1/x", "2606:4700::1111", 1),
    ],
)
def test_a_url_names_a_host_and_a_port(url: str, host: str, port: int) -> None:
    assert receiver(url) == Receiver(host, port)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "written in the characters of a URL"),
        ("http://example.com/", "begin with https://"),
        ("ftp://example.com/", "begin with https://"),
        ("//example.com/", "begin with https://"),
        ("https:example.com/", "name a host"),
        ("https:///hooks", "name a host"),
        ("https://:443/hooks", "name a host"),
        ("https://example.com:0/", "port from 1 to 65535"),
        ("https://example.com:65536/", "port from 1 to 65535"),
        ("https://example.com:https/", "port from 1 to 65535"),
        ("https://user@example.com/", "no user and password"),
        ("https://user:secret@example.com/", "no user and password"),
        ("https://8.8.8.8@127.0.0.1/", "no user and password"),
        ("https://example.com/#", "no fragment"),
        ("https://example.com/#@127.0.0.1", "no fragment"),
        ("https://example.com\\@127.0.0.1/", "written in the characters of a URL"),
        ("https://example.com/a b", "written in the characters of a URL"),
        ("https://exam\nple.com/", "written in the characters of a URL"),
        ("https://example.com/\r\nX-Forged: 1", "written in the characters of a URL"),
        ("https://bücher.example/", "ASCII form, xn--"),
        ("https://１２７.0.0.1/", "ASCII form, xn--"),
        ("https://①②⑦.0.0.1/", "ASCII form, xn--"),
        ("https://127。0。0。1/", "ASCII form, xn--"),
        ("https://\u212aelvin.example/", "ASCII form, xn--"),
        ("https://example.com./", "single dots, none at its end"),
        ("https://127.0.0.1./", "single dots, none at its end"),
        ("https://a..b/", "single dots, none at its end"),
        ("https://-a.b/", "letters, digits and hyphens"),
        ("https://a_b.c/", "letters, digits and hyphens"),
        ("https://127%2e0.0.1/", "letters, digits and hyphens"),
        (f"https://{'a' * 64}.b/", "letters, digits and hyphens"),
        (f"https://{'.'.join(['a' * 63] * 4)}/", "letters, digits and hyphens"),
        ("https://127.1/", "four plain numbers"),
        ("https://2130706433/", "four plain numbers"),
        ("https://0x7f000001/", "four plain numbers"),
        ("https://0x7f.1/", "four plain numbers"),
        ("https://127.0.0.0x1/", "four plain numbers"),
        ("https://0X7F.0.0.0X1/", "four plain numbers"),
        ("https://0177.0.0.1/", "four plain numbers"),
        ("https://127.0.0.01/", "four plain numbers"),
        ("https://1.2.3.4.5/", "four plain numbers"),
        ("https://256.0.0.1/", "four plain numbers"),
        ("https://example.0x/", "four plain numbers"),
        ("https://127.0.0.1/", "names 127.0.0.1, which is not a global address"),
        ("https://169.254.169.254/latest/meta-data", "not a global address"),
        ("https://[::1]/", "not a global address"),
        ("https://[::ffff:127.0.0.1]/", "not a global address"),
        ("https://[0:0:0:0:0:ffff:7f00:1]/", "not a global address"),
        ("https://[64:ff9b::7f00:1]/", "not a global address"),
        ("https://[fe80::1%25eth0]/", "without a zone"),
        ("https://[fe80::1%eth0]/", "without a zone"),
        ("https://[::1/", "name a host"),
        ("https://localhost/", "names localhost, which is nobody's on the internet"),
        ("https://LOCALHOST:8443/", "names localhost"),
        ("https://api.localhost/", "nobody's on the internet"),
        ("https://redis/", "nobody's on the internet"),
        ("https://printer.local/", "nobody's on the internet"),
        ("https://metadata.google.internal/", "nobody's on the internet"),
        ("https://router.home.arpa/", "nobody's on the internet"),
        (f"https://example.com/{'a' * 1981}", "at most 2000 characters"),
    ],
)
def test_a_url_that_will_not_do_is_refused_with_what_would(url: str, sentence: str) -> None:
    with pytest.raises(UrlInvalid, match=sentence):
        receiver(url)


def test_a_url_of_the_greatest_length_is_taken() -> None:
    assert receiver(f"https://example.com/{'a' * 1980}").host == "example.com"


def test_an_address_of_an_allowed_network_can_be_named_and_so_can_inner_names() -> None:
    assert receiver("https://receiver:8443/", [ip_network("10.0.0.0/8")]) == Receiver("receiver", 8443)
    assert receiver("https://127.0.0.1:8443/", [ip_network("127.0.0.0/8")]) == Receiver("127.0.0.1", 8443)


ODD = st.text(alphabet="aA1.0x-_@:/\\#?[]%\u212a\uff11 \n", max_size=30)


@given(st.one_of(ODD.map(lambda text: f"https://{text}"), st.text(max_size=40), ODD))
def test_whatever_is_taken_is_read_alike_by_what_sends_it(url: str) -> None:
    try:
        found = receiver(url, [ip_network("0.0.0.0/0"), ip_network("::/0")])
    except UrlInvalid:
        return
    sent = httpx.URL(url)
    assert (sent.scheme, sent.host, sent.port or 443, sent.userinfo) == ("https", found.host, found.port, b"")


# Names


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """The system's resolver answers these to every name."""

    def answer(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


def looked_up(host: str = "example.com", seconds: float = 10.0, allowed: Sequence[Any] = ()) -> list[str]:
    return addresses_of(Receiver(host, 443), seconds, allowed)


def test_a_name_means_all_its_addresses_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "2606:4700::1111", "8.8.8.8", "8.8.8.8")
    assert looked_up() == ["2606:4700::1111", "8.8.8.8"]


@pytest.mark.parametrize("other", ["127.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0", "::ffff:169.254.169.254"])
def test_one_address_that_is_not_global_is_enough_to_refuse_a_name(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    answering(monkeypatch, "8.8.8.8", other)
    with pytest.raises(AddressRefused) as refused:
        looked_up()
    assert str(refused.value) == "example.com has an address that is not a global one; nothing was sent"


def test_names_of_this_machine_are_refused_by_the_systems_own_resolver() -> None:
    with pytest.raises(AddressRefused):
        looked_up("localhost")
    assert set(looked_up("localhost", allowed=[ip_network("127.0.0.0/8"), ip_network("::1/128")])) <= {
        "127.0.0.1",
        "::1",
    }


def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "127.0.0.1")
    assert looked_up("8.8.8.8") == ["8.8.8.8"]
    with pytest.raises(AddressRefused):
        looked_up("10.0.0.1")


def test_a_name_without_an_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(HostUnresolved, match=r"example\.com has no address"):
        looked_up()
    answering(monkeypatch)
    with pytest.raises(HostUnresolved, match=r"example\.com has no address"):
        looked_up()


def test_a_resolver_that_does_not_answer_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60) and [])
    with pytest.raises(HostUnresolved, match=r"no address of example\.com was found in time"):
        looked_up(seconds=0.05)
    over.set()
