"""Deliveries to webhooks: claimed by a housekeeper, sent, and what came of it.

A claim is a lease. Its number fences every write, and one that ran out is anybody's again: who never came back may have
sent it, and it is sent once more under the same id.
"""

from datetime import datetime, timedelta
from secrets import SystemRandom
from typing import Any

from sqlalchemy import Connection, Engine, Update, and_, delete, or_, select, update

from service.store.database import clock, writing
from service.store.rows import Delivery, Dispatch, read, storable
from service.store.tables import deliveries, webhooks

LEASE_SECONDS = 60.0  # several times what an attempt may take
MINUTE, HOUR = 60.0, 3600.0
# After each failed attempt, before the next; after the last there is none. Source: Standard Webhooks.
WAIT_SECONDS = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
JITTER = 0.2  # of a wait, at most, so that what failed together does not come back together
MOST_ATTEMPTS = len(WAIT_SECONDS) + 1
LONGEST_PATIENCE_SECONDS = 24 * HOUR  # that a receiver may ask for
DELIVERED_KEPT, DEAD_KEPT = timedelta(days=7), timedelta(days=30)

_random = SystemRandom()


class Deliveries:
    """What a housekeeper writes about deliveries: False where its claim is over, and then nothing was written."""

    def __init__(self, engine: Engine) -> None:
        self._reading = engine
        self._writing = writing(engine)

    def claim(self) -> Dispatch | None:
        """Take on the delivery that is due the longest, one of a webhook at a time; None if none is due."""
        with self._reading.connect() as connection:
            if connection.execute(_due(clock(connection)).limit(1)).first() is None:
                return None  # without the lock that a write takes
        with self._writing.begin() as connection:
            while True:
                now = clock(connection)
                next_one = _due(now).limit(1).with_for_update(skip_locked=True, of=deliveries)
                row = connection.execute(next_one).mappings().one_or_none()
                if row is None:
                    return None
                why = _given_up(row)
                if why is None:
                    return _take(connection, row, now)
                _end(connection, read(Delivery, row), now, "dead", error=why)

    def deliver(self, dispatch: Dispatch, response_status: int) -> bool:
        """It was taken."""
        with self._writing.begin() as connection:
            now = clock(connection)
            return _end(connection, dispatch, now, "delivered", response_status=response_status, error=None)

    def fail(
        self,
        dispatch: Dispatch,
        why: str,
        response_status: int | None = None,
        retry_after_seconds: float | None = None,
    ) -> bool:
        """It was not taken. It is sent again, later each time and not before the receiver asks, then it is dead."""
        told = {"response_status": response_status, "error": storable(why)}
        with self._writing.begin() as connection:
            now = clock(connection)
            if dispatch.attempts >= MOST_ATTEMPTS:
                return _end(connection, dispatch, now, "dead", **told)
            later = now + timedelta(seconds=_wait_seconds(dispatch.attempts, retry_after_seconds or 0.0))
            freed = _held(dispatch).values(lease_expires_at=None, not_before=later, **told)
            return connection.execute(freed).rowcount == 1

    def disable(self, dispatch: Dispatch, why: str, response_status: int) -> bool:
        """Its receiver wants no more: neither this one nor another is sent."""
        this = webhooks.c.id == dispatch.webhook
        waiting = and_(deliveries.c.webhook == dispatch.webhook, deliveries.c.status == "pending")
        with self._writing.begin() as connection:
            connection.execute(select(webhooks.c.id).where(this).with_for_update())  # before the rows below it
            now = clock(connection)
            if not _end(connection, dispatch, now, "dead", response_status=response_status, error=why):
                return False
            enabled = update(webhooks).where(this, webhooks.c.disabled_at.is_(None))
            connection.execute(enabled.values(disabled_at=now, disabled_reason=why))
            dead = {"status": "dead", "error": why, "lease_expires_at": None, "ended_at": now}
            connection.execute(update(deliveries).where(waiting).values(**dead))
            return True

    def expire(self) -> int:
        """Remove what has ended long ago; how many rows went."""
        with self._writing.begin() as connection:
            now = clock(connection)
            ended, table = deliveries.c.ended_at, deliveries.c
            delivered = and_(table.status == "delivered", ended < now - DELIVERED_KEPT)
            dead = and_(table.status == "dead", ended < now - DEAD_KEPT)
            return connection.execute(delete(deliveries).where(or_(delivered, dead))).rowcount


def _due(now: datetime) -> Any:
    """Deliveries that nobody is at work on and nothing holds back, with their webhooks, the longest due first.

    A webhook that is being sent to waits for the next: one slow receiver takes up one place.
    """
    table = deliveries.c
    other = deliveries.alias()
    under_way = select(other.c.webhook).where(other.c.status == "pending", other.c.lease_expires_at > now)
    free = or_(table.lease_expires_at.is_(None), table.lease_expires_at <= now)
    due = select(deliveries, webhooks.c.url, webhooks.c.secret, webhooks.c.disabled_reason).join(webhooks)
    due = due.where(table.status == "pending", table.not_before <= now, free, table.webhook.not_in(under_way))
    return due.order_by(table.not_before, table.id)


def _given_up(row: Any) -> str | None:
    """Why one that is due is sent no more."""
    if row["disabled_reason"] is not None:
        return str(row["disabled_reason"])
    return "the last attempt never came to its end" if row["attempts"] >= MOST_ATTEMPTS else None


def _take(connection: Connection, row: Any, now: datetime) -> Dispatch:
    counted = {"attempts": row["attempts"] + 1, "claims": row["claims"] + 1, "attempted_at": now}
    expiry = now + timedelta(seconds=LEASE_SECONDS)
    connection.execute(
        update(deliveries).where(deliveries.c.id == row["id"]).values(**counted, lease_expires_at=expiry)
    )
    return read(Dispatch, {**row, **counted})


def _held(claimed: Delivery | Dispatch) -> Update:
    return update(deliveries).where(
        deliveries.c.id == claimed.id, deliveries.c.claims == claimed.claims, deliveries.c.status == "pending"
    )


def _end(connection: Connection, claimed: Delivery | Dispatch, now: datetime, status: str, **values: Any) -> bool:
    ended = {"status": status, "lease_expires_at": None, "ended_at": now, **values}
    return connection.execute(_held(claimed).values(**ended)).rowcount == 1


def _wait_seconds(attempts: int, asked_seconds: float) -> float:
    planned = WAIT_SECONDS[attempts - 1] * (1 + JITTER * _random.random())
    return max(planned, min(asked_seconds, LONGEST_PATIENCE_SECONDS))
