"""Tenants and their keys: who may call, for what, and how much of the service is theirs."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, bindparam, insert, or_, select, update

from service.store import _quotas
from service.store.database import clock, clock_time, insert_unless_there, one_at_a_time, reading, writing
from service.store.errors import KeyNotFound, KeyRefused
from service.store.ids import new_id
from service.store.rows import Key, Scope, Tenant, Used, columns, read
from service.store.tables import keys, tenants

KEY = re.compile(r"acmix_([0-9A-Za-z]{8})_([0-9A-Za-z_-]{43})", re.ASCII)
SECRET_BYTES = 32
PREFIX_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PREFIX_LENGTH = 8
USED_EVERY = timedelta(minutes=1)
CALLER = (
    select(*columns(Key, keys), keys.c.sha256, tenants.c.most_requests, clock_time().label("now"))
    .join(tenants)
    .where(keys.c.prefix == bindparam("prefix"))
)


@dataclass(frozen=True)
class Caller:
    """Whose key it was, and how many requests a minute its tenant may make; None is no limit."""

    key: Key
    most_requests: int | None


class Tenants:
    """What `acmix keys` and `acmix tenants` write, and what the API asks of every request."""

    def __init__(self, engine: Engine) -> None:
        self._reading = reading(engine)
        self._writing = writing(engine)

    # Keys

    def create_key(
        self, tenant: str, *, name: str, scopes: Sequence[Scope], lasts: timedelta | None = None
    ) -> tuple[Key, str]:
        """A new key of a tenant, which is made if it is not there, and the text that is told this once."""
        prefix = "".join(secrets.choice(PREFIX_ALPHABET) for _ in range(PREFIX_LENGTH))
        text = f"acmix_{prefix}_{secrets.token_urlsafe(SECRET_BYTES)}"
        with self._writing.begin() as connection:
            return _insert_key(connection, text, tenant, name, scopes, lasts), text

    def keep_key(self, text: str, tenant: str, *, name: str, scopes: Sequence[Scope]) -> bool:
        """Make the key of a text that was chosen elsewhere, if it is not there; whether it was made.

        KeyRefused where the text is none of a key, or the key was revoked or has expired.
        """
        prefix = _prefix(text)
        with self._writing.begin() as connection:
            one_at_a_time(connection, f"key {prefix}")
            matching = _matching(connection, prefix, text)
            if matching:
                found, now = matching
                _check_good(found.key, now)
            else:
                _insert_key(connection, text, tenant, name, scopes)
        return matching is None

    def all_keys(self) -> list[Key]:
        """All of them, oldest first, those too that are good no more."""
        with self._reading.connect() as connection:
            rows = connection.execute(select(*columns(Key, keys)).order_by(keys.c.id)).mappings()
            return [read(Key, row) for row in rows]

    def revoke_key(self, key_id: str) -> Key:
        """From now on it is refused; KeyNotFound. Once revoked it stays so."""
        with self._writing.begin() as connection:
            this = keys.c.id == key_id
            good = update(keys).where(this, keys.c.revoked_at.is_(None))
            connection.execute(good.values(revoked_at=clock(connection)))
            row = connection.execute(select(*columns(Key, keys)).where(this)).mappings().one_or_none()
            if row is None:
                raise KeyNotFound(key_id)
            return read(Key, row)

    def are_keys_in_use(self) -> bool:
        """Whether a key was ever made. That the last one was revoked lets nobody in."""
        with self._reading.connect() as connection:
            return connection.execute(select(keys.c.id).limit(1)).first() is not None

    def caller(self, text: str) -> Caller:
        """Whose key this is; KeyRefused where it is none, was revoked or has expired."""
        prefix = _prefix(text)
        with self._reading.connect() as connection:
            matching = _matching(connection, prefix, text)
        if matching is None:
            raise KeyRefused("there is no such key")
        found, now = matching
        _check_good(found.key, now)
        if found.key.used_at is None or found.key.used_at < now - USED_EVERY:
            self._note_use(found.key.id, now)
        return found

    # Limits

    def limit(self, tenant: str, limits: Mapping[str, float | None]) -> Tenant:
        """Set some limits of a tenant, which is made if it is not there; None takes one away.

        ValueError for a share of nothing: its jobs would never have their turn.
        """
        share = limits.get("share")
        if share is not None and share <= 0:
            raise ValueError(f"share={share} of tenant {tenant} will not do; a number above 0 would")
        with self._writing.begin() as connection:
            insert_unless_there(connection, tenants, {"name": tenant, "created_at": clock(connection)})
            this = tenants.c.name == tenant
            if limits:
                connection.execute(update(tenants).where(this).values(**limits))
            found = select(*columns(Tenant, tenants)).where(this)
            return read(Tenant, connection.execute(found).mappings().one())

    def all_tenants(self) -> list[Tenant]:
        """By name."""
        with self._reading.connect() as connection:
            rows = connection.execute(select(*columns(Tenant, tenants)).order_by(tenants.c.name)).mappings()
            return [read(Tenant, row) for row in rows]

    def usage(self, tenant: str) -> tuple[Tenant, Used]:
        """The limits of a tenant, and what it uses of them; without a row it has none."""
        with self._reading.connect() as connection:
            wanted = select(*columns(Tenant, tenants)).where(tenants.c.name == tenant)
            row = connection.execute(wanted).mappings().one_or_none()
            limits = read(Tenant, row) if row else Tenant(tenant, None, None, None, None, None)
            return limits, _quotas.used(connection, tenant, clock(connection))

    def check_room(self, tenant: str, more_bytes: int) -> None:
        """QuotaExceeded where a tenant may not store so many bytes more."""
        with self._reading.connect() as connection:
            _quotas.check_stored(connection, tenant, more_bytes)

    def _note_use(self, key_id: str, now: datetime) -> None:
        before = or_(keys.c.used_at.is_(None), keys.c.used_at < now)
        with self._writing.begin() as connection:
            connection.execute(update(keys).where(keys.c.id == key_id, before).values(used_at=now))


def _insert_key(
    connection: Connection,
    text: str,
    tenant: str,
    name: str,
    scopes: Sequence[Scope],
    lasts: timedelta | None = None,
) -> Key:
    """Of a tenant, which is made if it is not there."""
    now = clock(connection)
    insert_unless_there(connection, tenants, {"name": tenant, "created_at": now})
    row = {
        "id": new_id("key"),
        "tenant": tenant,
        "name": name,
        "prefix": _prefix(text),
        "sha256": _sha256(text),
        "scopes": list(scopes),
        "created_at": now,
        "expires_at": now + lasts if lasts else None,
    }
    inserted = insert(keys).values(**row).returning(*columns(Key, keys))
    return read(Key, connection.execute(inserted).mappings().one())


def _prefix(text: str) -> str:
    """What a key is found by; KeyRefused where the text is none of a key."""
    form = KEY.fullmatch(text)
    if form is None:
        raise KeyRefused("the key has not the form of one; they begin with acmix_")
    return form.group(1)


def _matching(connection: Connection, prefix: str, text: str) -> tuple[Caller, datetime] | None:
    """The key of this text and what time it is: found by its prefix, which is no secret, told by its hash.

    The hash is compared in constant time. One statement does, since every request waits for it.
    """
    for row in connection.execute(CALLER, {"prefix": prefix}).mappings():
        if hmac.compare_digest(row["sha256"], _sha256(text)):
            return Caller(read(Key, row), row["most_requests"]), row["now"]
    return None


def _check_good(key: Key, now: datetime) -> None:
    if key.revoked_at is not None:
        raise KeyRefused(f"key {key.id} was revoked at {key.revoked_at:%Y-%m-%dT%H:%M:%SZ}")
    if key.expires_at is not None and key.expires_at <= now:
        raise KeyRefused(f"key {key.id} has expired at {key.expires_at:%Y-%m-%dT%H:%M:%SZ}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
