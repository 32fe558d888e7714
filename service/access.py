"""Who calls, and whether they may: asked of every request before anything else of it is read."""

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request

from acmix.errors import Problem
from service import logs
from service.errors import RequestRefused
from service.store.backend import Backend
from service.store.errors import KeyRefused
from service.store.rows import SCOPES, Scope
from service.store.scope import DEFAULT

OPEN = frozenset({"/healthz", "/readyz"})
VITALS = "/metrics"
READS = frozenset({"GET", "HEAD"})
AREAS = {
    "catalog": "jobs",
    "plans": "jobs",
    "jobs": "jobs",
    "checkpoints": "jobs",
    "workers": "jobs",
    "queue": "jobs",
    "usage": "jobs",
    "datasets": "data",
    "weights": "data",
}
CHANGES_NOTHING = frozenset({"/v1/plans", "/v1/checkpoints/{checkpoint_id}/predict"})  # though it is a POST
# the fleet is everybody's: what changes it is no single tenant's affair
FOR_ADMINS = frozenset({"/v1/workers/{worker_id}/drain", "/v1/workers/{worker_id}/resume"})
FORWARDED = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"})


@dataclass(frozen=True)
class Access:
    """For whom a request is answered, and what they may ask."""

    tenant: str
    scopes: frozenset[Scope]
    most_requests: int | None = None


WITHOUT_KEYS = Access(DEFAULT, frozenset(SCOPES))


def admit(request: Request) -> None:
    """Let a request pass, its `state.access` set, if whoever sent it may send it.

    Raises:
        RequestRefused: 401, no key or none that is good; 403, the key is not for this, or no key was ever made and
            the request may come from elsewhere; 429, too many requests of this tenant within a minute.
    """
    path = request.scope["route"].path
    if path in OPEN or (path == VITALS and _is_scraper(request)):
        return
    access = _access(request)
    needed = scope_of(request.method, path)
    if needed not in access.scopes and "admin" not in access.scopes:
        sentence = f"this needs a key with the scope {needed}; this key has {', '.join(sorted(access.scopes))}"
        challenge = f'Bearer error="insufficient_scope", scope="{needed}"'
        raise RequestRefused(403, "scope_missing", sentence, headers={"WWW-Authenticate": challenge})
    _check_rate(request, access)
    request.state.access = access
    logs.add(tenant=access.tenant)


def is_welcome(request: Request) -> bool:
    """Whether a request that was let pass would be again: its key may have been revoked, or have expired."""
    let_pass: Access = request.state.access
    try:
        return _access(request) == let_pass
    except RequestRefused:
        return False


def scope_of(method: str, path: str) -> Scope:
    """What a key must be for to use a route; `admin` for one that has no area, or is not for its users."""
    area = AREAS.get(path.removeprefix("/v1/").partition("/")[0])
    if area is None or path in FOR_ADMINS:
        return "admin"
    reads = method in READS or path in CHANGES_NOTHING
    scope: Scope = f"{area}:{'read' if reads else 'write'}"  # type: ignore[assignment]  # a Scope by the table above
    return scope


def _is_scraper(request: Request) -> bool:
    """Whether it shows METRICS_TOKEN. The database is not asked: the vitals are needed most while that is away."""
    token = request.app.state.backend.settings.metrics_token
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(text.strip().encode(), (token or "").encode())
    return token is not None and scheme.lower() == "bearer" and is_right


def _access(request: Request) -> Access:
    backend: Backend = request.app.state.backend
    header = request.headers.get("authorization")
    if header is None:
        if backend.tenants.are_keys_in_use():
            raise _unauthorized("key_missing", "send an API key: Authorization: Bearer acmix_...")
        _check_local(request)
        return WITHOUT_KEYS
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("key_refused", "the Authorization header must be: Bearer, a space, the key")
    try:
        caller = backend.tenants.caller(text.strip())
    except KeyRefused as error:
        raise _unauthorized("key_refused", str(error)) from None
    return Access(caller.key.tenant, frozenset(caller.key.scopes), caller.most_requests)


def _check_local(request: Request) -> None:
    """Without keys this machine alone may call, and of it no page of another site that a browser here shows.

    Such a page can send simple requests anywhere, which then name its origin; and its own host may be made to resolve
    to this machine, which then shows in the Host header: a name with a dot that is not localhost's.
    """
    client = request.client.host if request.client else ""
    if not _is_this_machine(client) or FORWARDED & set(request.headers.keys()):  # a proxy here hides who calls
        sentence = "no API key was made yet, and until then only this machine may call; `acmix keys create` makes one"
        raise RequestRefused(403, "keys_needed", sentence)
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _is_local_name(urlsplit(f"//{host}").hostname or ""):
        sentence = f"without API keys the service is reached as 127.0.0.1 or localhost, not as {host[:100]!r}"
        raise RequestRefused(403, "host_refused", sentence)
    if origin is not None and request.method not in READS and urlsplit(origin).netloc != host:
        sentence = f"without API keys no page of {origin[:100]!r} may change anything here"
        raise RequestRefused(403, "origin_refused", sentence)


def _is_this_machine(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return bool(client)  # no address at all: the app is called within its own process


def _is_local_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(".localhost")
    return True


def _check_rate(request: Request, access: Access) -> None:
    if access.most_requests is None:
        return
    wait_seconds = request.app.state.rates.take(access.tenant, access.most_requests)
    if wait_seconds:
        sentence = f"tenant {access.tenant} may make {access.most_requests} requests a minute; wait {wait_seconds} s"
        fault = Problem("", "rate_limited", sentence, limit=access.most_requests)
        headers = {"Retry-After": str(wait_seconds)}
        raise RequestRefused(429, "rate_limited", sentence, problems=[fault], headers=headers)


def _unauthorized(code: str, sentence: str) -> RequestRefused:
    challenge = "Bearer" if code == "key_missing" else 'Bearer error="invalid_token"'
    return RequestRefused(401, code, sentence, headers={"WWW-Authenticate": challenge})
