"""Plans: asked for by the API, made by a housekeeper, kept for whoever asks the same again.

A row is a request under the hash of all that its answer depends on. Its answer is right for as long as the library
stays the same, so rows are removed for room alone, or because another library has come.
"""

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Update, and_, delete, or_, select, update

from acmix.errors import Reason
from service.store.database import clock, insert_unless_there, writing
from service.store.rows import Json, Plan, read
from service.store.tables import plans

LEASE_SECONDS = 6.0  # renewed every second by a housekeeper at work
WANTED_SECONDS = 60.0  # who waits for an answer asks again; what nobody waits for is not made
MOST_FAILURES = 2
MOST_CLAIMS = 5  # also by housekeepers that never came back: they may not be without blame, nor is the request
FAILURE_KEPT = timedelta(minutes=10)  # then it is tried anew if asked for
ANSWER_KEPT = timedelta(days=1)
MOST_KEPT = 2000


class Plans:
    """Requests and answers. A housekeeper's writes are fenced by the number of its claim: False where it is over."""

    def __init__(self, engine: Engine) -> None:
        self._reading = engine
        self._writing = writing(engine)

    # What the API does

    def ask(self, request: Json, *, version: str) -> Plan:
        """The row of a request, made if it is not there; `version` is the library's that the asker knows."""
        plan_id = id_of(request, version)
        found = self.find(plan_id)
        if found and found.answer is not None:
            return found
        with self._writing.begin() as connection:
            now = clock(connection)
            if not insert_unless_there(connection, plans, _new_row(plan_id, request, now)):
                connection.execute(_row(plan_id).where(plans.c.answered_at.is_(None)).values(requested_at=now))
                long_ago = and_(plans.c.failure.is_not(None), plans.c.answered_at < now - FAILURE_KEPT)
                connection.execute(_row(plan_id).where(long_ago).values(**_new_row(plan_id, request, now)))
            return _read(connection, plan_id)

    def find(self, plan_id: str) -> Plan | None:
        with self._reading.connect() as connection:
            row = connection.execute(select(plans).where(plans.c.id == plan_id)).mappings().one_or_none()
        return read(Plan, row) if row else None

    # What a housekeeper does

    def claim(self) -> Plan | None:
        """Take on the request that has waited longest; None if nobody waits for any."""
        with self._reading.connect() as connection:
            if connection.execute(_due(clock(connection)).limit(1)).first() is None:
                return None  # without the lock that a write takes
        with self._writing.begin() as connection:
            while True:
                now = clock(connection)
                plan_id = connection.execute(_due(now).limit(1).with_for_update(skip_locked=True)).scalar_one_or_none()
                if plan_id is None:
                    return None
                plan = _read(connection, plan_id)
                if plan.claims < MOST_CLAIMS:
                    taken = {"claims": plan.claims + 1, "lease_expires_at": now + timedelta(seconds=LEASE_SECONDS)}
                    connection.execute(_row(plan_id).values(**taken))
                    return _read(connection, plan_id)
                _end(connection, plan, now, failure=_given_up(f"{plan.claims} housekeepers never came back from it"))

    def renew(self, plan: Plan) -> bool:
        """Keep a claim from running out."""
        with self._writing.begin() as connection:
            expiry = clock(connection) + timedelta(seconds=LEASE_SECONDS)
            return connection.execute(_held(plan).values(lease_expires_at=expiry)).rowcount == 1

    def answer(self, plan: Plan, answer: Json, *, library: str) -> bool:
        """What came out: the planner's answer, and which library gave it."""
        with self._writing.begin() as connection:
            return _end(connection, plan, clock(connection), answer=answer, library=library)

    def fail(self, plan: Plan, why: str) -> bool:
        """The planner did not survive it. It is tried once more, then this is the answer."""
        with self._writing.begin() as connection:
            if plan.failures + 1 >= MOST_FAILURES:
                failure = _given_up(why)
                return _end(connection, plan, clock(connection), failure=failure, failures=plan.failures + 1)
            again = _held(plan).values(failures=plan.failures + 1, lease_expires_at=None)
            return connection.execute(again).rowcount == 1

    def release(self, plan: Plan) -> bool:
        """Give a claim back before it runs out."""
        with self._writing.begin() as connection:
            return connection.execute(_held(plan).values(lease_expires_at=None)).rowcount == 1

    def forget_others(self, library: str) -> int:
        """Remove the answers of all other libraries; how many there were."""
        with self._writing.begin() as connection:
            others = and_(plans.c.answered_at.is_not(None), or_(plans.c.library != library, plans.c.library.is_(None)))
            return connection.execute(delete(plans).where(others)).rowcount

    def expire(self) -> int:
        """Remove what is old, or more than there is room for; how many rows went."""
        with self._writing.begin() as connection:
            now = clock(connection)
            old = or_(plans.c.answered_at < now - ANSWER_KEPT, _unwanted(now))
            newest_first = plans.c.requested_at.desc()
            one_too_many = select(plans.c.requested_at).order_by(newest_first).offset(MOST_KEPT).limit(1)
            beyond = connection.execute(one_too_many).scalar_one_or_none()
            if beyond is not None:
                old = or_(old, and_(plans.c.requested_at <= beyond, plans.c.answered_at.is_not(None)))
            return connection.execute(delete(plans).where(old)).rowcount


def id_of(request: Json, version: str) -> str:
    """The hash of a request to a library of this version."""
    text = json.dumps({"request": request, "version": version}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _new_row(plan_id: str, request: Json, now: datetime) -> dict[str, Any]:
    empty = dict.fromkeys(("lease_expires_at", "answered_at", "library", "answer", "failure"))
    return {"id": plan_id, "request": request, "requested_at": now, "claims": 0, "failures": 0, **empty}


def _due(now: datetime) -> Any:
    """Requests that somebody waits for and nobody is at work on, in the order in which they came."""
    free = or_(plans.c.lease_expires_at.is_(None), plans.c.lease_expires_at <= now)
    wanted = plans.c.requested_at > now - timedelta(seconds=WANTED_SECONDS)
    waiting = select(plans.c.id).where(plans.c.answered_at.is_(None), wanted, free)
    return waiting.order_by(plans.c.requested_at, plans.c.id)


def _unwanted(now: datetime) -> ColumnElement[bool]:
    given_up = plans.c.requested_at < now - 2 * timedelta(seconds=WANTED_SECONDS)
    idle = or_(plans.c.lease_expires_at.is_(None), plans.c.lease_expires_at < now)
    return and_(plans.c.answered_at.is_(None), given_up, idle)


def _row(plan_id: str) -> Update:
    return update(plans).where(plans.c.id == plan_id)


def _held(plan: Plan) -> Update:
    return _row(plan.id).where(plans.c.claims == plan.claims, plans.c.answered_at.is_(None))


def _end(connection: Connection, plan: Plan, now: datetime, **values: Any) -> bool:
    return connection.execute(_held(plan).values(answered_at=now, lease_expires_at=None, **values)).rowcount == 1


def _read(connection: Connection, plan_id: str) -> Plan:
    return read(Plan, connection.execute(select(plans).where(plans.c.id == plan_id)).mappings().one())


def _given_up(why: str) -> Json:
    return Reason("plan_failed", f"this cannot be planned: {why}").as_json()
