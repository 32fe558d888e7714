"""Where a webhook may go: the form of its URL, the addresses that its host has, and which of them are let through."""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import SplitResult, urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MOST_CHARACTERS = 2000
MOST_HOST_CHARACTERS = 253
HTTPS = 443
LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
WRITTEN = re.compile(r"[!#-;=?-\[\]_a-z~]+")  # what a URL is written with (RFC 3986)

# What ipaddress takes for global, some of it in some versions alone, and is nobody's server on the internet.
NOT_FOR_SERVERS = (
    IPv4Network("192.0.0.0/24"),  # protocols' own; in Oracle's cloud an instance's secrets among them
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv4Network("168.63.129.16/32"),  # what a virtual machine of Azure asks for its settings
    IPv6Network("2001::/23"),  # protocols' own, Teredo's tunnels among them
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4: tunnels to whatever IPv4 address is in it
    IPv6Network("3fff::/20"),  # documentation
)
UNICAST = IPv6Network("2000::/3")  # all that has been given out of IPv6; ipaddress takes most of the rest for global
INNER = ("localhost", "local", "internal", "intranet", "lan", "home", "corp")
TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64: what goes there arrives at the IPv4 address in its last four bytes


class UrlInvalid(Exception):
    """A URL that no webhook can have; the message is a sentence that says what would do."""


class HostUnresolved(Exception):
    """No address is known for a host, or none came in time."""


class AddressRefused(Exception):
    """A host has an address that is not let through. It is not told which: an inner name's would be learned so."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} has an address that is not a global one; nothing was sent")


@dataclass(frozen=True)
class Receiver:
    """Whom a URL names: a host name in lower case or an address without brackets, and a port."""

    host: str
    port: int

    @property
    def address(self) -> Address | None:
        """The one that is written in the URL, if it is no name."""
        return _literal(self.host)


def receiver(url: str, allowed: Sequence[Network] = ()) -> Receiver:
    """Whom a webhook's URL names; no name is looked up.

    Raises:
        UrlInvalid: it is not https, holds what a URL must not, a host of another form than a name or an address in
            its usual spelling, or an address that is not let through.
    """
    if len(url) > MOST_CHARACTERS:
        raise UrlInvalid(f"url must be at most {MOST_CHARACTERS} characters")
    if not WRITTEN.fullmatch(url):
        raise UrlInvalid(
            "url must be written in the characters of a URL: percent-encode others, and name an international host "
            "in its ASCII form, xn--..."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlInvalid("url must name a host and, if any, a port from 1 to 65535") from None
    _check_form(url, parts)
    found = Receiver(_host(parts), HTTPS if port is None else port)
    if found.port == 0:
        raise UrlInvalid("url must name a host and, if any, a port from 1 to 65535")
    if found.address is not None and not is_let_through(found.address, allowed):
        raise UrlInvalid(f"url names {found.host}, which is not a global address; a public host would do")
    if not allowed and found.address is None and _is_inner(found.host):
        raise UrlInvalid(f"url names {found.host}, which is nobody's on the internet; a public host would do")
    return found


def addresses_of(to: Receiver, seconds: float, allowed: Sequence[Network] = ()) -> list[str]:
    """The addresses to connect to, in the system's order of preference: all that the host has, each let through.

    Raises:
        HostUnresolved: it has none, or the answer takes longer than `seconds`.
        AddressRefused: one of them is not let through.
    """
    found = [to.address] if to.address else [ip_address(text) for text in _looked_up(to, seconds)]
    if not all(is_let_through(address, allowed) for address in found):
        raise AddressRefused(to.host)
    return [str(address) for address in found]


def is_let_through(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether it is a global address of one machine, or of a network that is allowed all the same.

    Where a form of IPv6 stands for an address of IPv4, the latter decides; one with a zone is never global.
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if address.ipv4_mapped is not None:
            return is_let_through(address.ipv4_mapped, allowed)
        if address in TRANSLATED:
            return is_let_through(IPv4Address(int(address) & 0xFFFFFFFF), allowed)
    if any(address in network for network in allowed):
        return True
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_FOR_SERVERS)


def _check_form(url: str, parts: SplitResult) -> None:
    if parts.scheme != "https":
        raise UrlInvalid("url must begin with https://")
    if "@" in parts.netloc:
        raise UrlInvalid("url must hold no user and password; every delivery is signed")
    if "#" in url:
        raise UrlInvalid("url must have no fragment: what follows # is never sent")


def _host(parts: SplitResult) -> str:
    """A name or an address, in the one spelling that everybody reads alike."""
    host = parts.hostname or ""
    if not host:
        raise UrlInvalid("url must name a host, as in https://example.com/hooks")
    if _literal(host) is not None:
        return host
    if host.startswith("[") or ":" in host or "[" in parts.netloc:
        raise UrlInvalid("url must have a plain IPv6 address in its brackets, without a zone")
    labels = host.split(".")
    if len(host) > MOST_HOST_CHARACTERS or not all(re.fullmatch(LABEL, label) for label in labels):
        raise UrlInvalid("url must name its host by letters, digits and hyphens between single dots, none at its end")
    if re.fullmatch("[0-9]+|0x[0-9a-f]*", labels[-1]):
        raise UrlInvalid("url must have an IPv4 address as four plain numbers, such as 192.0.2.1")
    return host


def _is_inner(host: str) -> bool:
    """A name that only a machine, or a network of its own, knows (RFC 6761, 6762, 8375; ICANN on .internal)."""
    return "." not in host or host.rsplit(".", 1)[1] in INNER or host.endswith(".home.arpa")


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host) if "%" not in host else None
    except ValueError:
        return None


def _looked_up(to: Receiver, seconds: float) -> list[str]:
    """What the system's resolver answers. It takes no time limit: a thread that is late is left behind."""
    answers: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))
        else:
            answers.put(list(dict.fromkeys(str(each[4][0]) for each in found)))

    Thread(target=look_up, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=max(seconds, 0.0))
    except Empty:
        raise HostUnresolved(f"no address of {to.host} was found in time") from None
    if isinstance(answer, OSError) or not answer:
        raise HostUnresolved(f"{to.host} has no address")
    return answer
