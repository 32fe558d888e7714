"""One attempt at a delivery: signed, to an address that was looked at, over before its time is."""

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from ipaddress import IPv6Address
from ssl import SSLContext

import httpx

from service.settings import Settings
from service.store.addresses import (
    HTTPS,
    AddressRefused,
    HostUnresolved,
    Receiver,
    UrlInvalid,
    addresses_of,
    receiver,
)
from service.store.rows import Dispatch
from service.store.signatures import signed

ATTEMPT_SECONDS = 15.0  # for all of it: the name, the connection, the request and the answer, however slowly it drips
CONNECT_SECONDS = 5.0  # then the next address has its turn
ANSWER_BYTES = 16 * 2**10  # what is read of an answer, and not kept
HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "acmix-webhooks/1"}

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells every URL, and a receiver's may hold a secret


class Unanswered(Exception):
    """Nothing came that could be taken for an answer; the message is a sentence for the webhook's owner."""


@dataclass(frozen=True)
class Answer:
    """What a receiver said; `retry_after_seconds` where it asks for patience."""

    status: int
    retry_after_seconds: float | None = None


class Sender:
    """Sends deliveries. What they go through besides is nobody's to say: no proxy, no redirect, no cookie."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = settings.webhook_networks
        self._ca_file = settings.webhook_ca_file

    def send(self, dispatch: Dispatch) -> Answer:
        """Post it. The URL and the addresses of its host are looked at each time: neither may be what it was.

        Raises:
            Unanswered: it could not be sent, or no answer came to its end in time.
        """
        give_up_at = time.monotonic() + ATTEMPT_SECONDS
        try:
            to = receiver(dispatch.url, self._allowed)
            addresses = addresses_of(to, ATTEMPT_SECONDS, self._allowed)
        except (UrlInvalid, HostUnresolved, AddressRefused) as error:
            raise Unanswered(str(error)) from None
        return asyncio.run(self._post(dispatch, to, addresses, give_up_at - time.monotonic()))

    async def _post(self, dispatch: Dispatch, to: Receiver, addresses: Sequence[str], seconds: float) -> Answer:
        """To the first of the addresses where somebody is."""
        try:
            async with asyncio.timeout(seconds), self._client() as client:
                for address in addresses[:-1]:
                    try:
                        return await _post_to(client, dispatch, to, address)
                    except (httpx.ConnectError, httpx.ConnectTimeout):
                        continue
                return await _post_to(client, dispatch, to, addresses[-1])
        except TimeoutError:
            raise Unanswered(f"no whole answer came within {ATTEMPT_SECONDS:g} s") from None
        except httpx.ConnectTimeout:
            raise Unanswered(f"no connection could be made within {CONNECT_SECONDS:g} s") from None
        except httpx.ConnectError as error:
            raise Unanswered(f"no connection could be made: {error}"[:300]) from None
        except httpx.HTTPError as error:
            raise Unanswered(f"the answer broke off: {type(error).__name__}") from None

    def _client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(verify=self._certificates, trust_env=False)
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False, trust_env=False)

    @cached_property
    def _certificates(self) -> SSLContext:
        context = httpx.create_ssl_context(trust_env=False)
        if self._ca_file:
            context.load_verify_locations(self._ca_file)
        return context


async def _post_to(client: httpx.AsyncClient, dispatch: Dispatch, to: Receiver, address: str) -> Answer:
    """To this very address, in the name of the host: a second look at the name could find another one."""
    body = dispatch.body.encode()
    async with client.stream(
        "POST",
        httpx.URL(dispatch.url).copy_with(host=address),
        content=body,
        headers={
            **HEADERS,
            "Host": _named(to),
            **signed(dispatch.secret, dispatch.id, int(dispatch.attempted_at.timestamp()), body),
        },
        extensions={"sni_hostname": to.host},
    ) as response:
        async for _ in response.aiter_raw(ANSWER_BYTES):
            break
        return Answer(response.status_code, _retry_after_seconds(response.headers))


def _named(to: Receiver) -> str:
    host = f"[{to.host}]" if isinstance(to.address, IPv6Address) else to.host
    return host if to.port == HTTPS else f"{host}:{to.port}"


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds, or a date, which is read by the clock of whoever wrote it."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        waited = parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return waited.total_seconds()
