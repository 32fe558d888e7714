"""Requests: asked for by the API, answered by a housekeeper, kept for whoever asks the same again.

A row is a request under the hash of all that its answer depends on. Its answer is right for as long as the library
stays the same, so rows are removed for room alone, or because another library has come.
"""

import hashlib
import json
from datetime import datetime, timedelta
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Connection, Engine, Table, Update, and_, delete, or_, select, update

from acmix.errors import Reason
from service.store.database import clock, insert_unless_there, writing
from service.store.rows import Asked, Json, columns, read

LEASE_SECONDS = 6.0  # renewed every second by a housekeeper at work
WANTED_SECONDS = 60.0  # who waits for an answer asks again; what nobody waits for is not made
MOST_FAILURES = 2
MOST_CLAIMS = 5  # also by housekeepers that never came back: they may not be without blame, nor is the request
FAILURE_KEPT = timedelta(minutes=10)  # then it is tried anew if asked for


class Requests:
    """Requests of one kind and their answers, in a table of columns as Asked has, and more of its own perhaps.

    A housekeeper's writes are fenced by the number of its claim: False where it is over.
    """

    table: ClassVar[Table]
    answer_kept: ClassVar[timedelta]
    most_kept: ClassVar[int]
    failure_code: ClassVar[str]
    failing: ClassVar[str]  # the sentence that tells of a failure, up to why
    dropped: ClassVar[dict[str, Any]] = {}  # what becomes of further columns once it is answered

    def __init__(self, engine: Engine) -> None:
        self._reading = engine
        self._writing = writing(engine)

    # What the API does

    def ask(self, request: Json, *, version: str, **more: Any) -> Asked:
        """The row of a request, made if it is not there.

        Args:
            version: the library's that the asker knows.
            more: of a new row, its further columns.
        """
        row_id = id_of(request, version)
        found = self.find(row_id)
        if found and found.answer is not None:
            return found
        with self._writing.begin() as connection:
            now = clock(connection)
            new = {**_new_row(row_id, request, now), **more}
            if not insert_unless_there(connection, self.table, new):
                table = self.table.c
                connection.execute(self._row(row_id).where(table.answered_at.is_(None)).values(requested_at=now))
                long_ago = and_(table.failure.is_not(None), table.answered_at < now - FAILURE_KEPT)
                connection.execute(self._row(row_id).where(long_ago).values(**new))
            return self._read(connection, row_id)

    def find(self, row_id: str) -> Asked | None:
        with self._reading.connect() as connection:
            row = connection.execute(self._select(row_id)).mappings().one_or_none()
        return read(Asked, row) if row else None

    # What a housekeeper does

    def is_waited_for(self) -> bool:
        """Whether there is any to claim; without the lock that a write takes."""
        with self._reading.connect() as connection:
            return connection.execute(self._due(clock(connection)).limit(1)).first() is not None

    def claim(self) -> Asked | None:
        """Take on the request that has waited longest; None if nobody waits for any."""
        if not self.is_waited_for():
            return None
        with self._writing.begin() as connection:
            while True:
                now = clock(connection)
                due = self._due(now).limit(1).with_for_update(skip_locked=True)
                row_id = connection.execute(due).scalar_one_or_none()
                if row_id is None:
                    return None
                asked = self._read(connection, row_id)
                if asked.claims < MOST_CLAIMS:
                    taken = {"claims": asked.claims + 1, "lease_expires_at": now + timedelta(seconds=LEASE_SECONDS)}
                    connection.execute(self._row(row_id).values(**taken))
                    return self._read(connection, row_id)
                why = f"{asked.claims} housekeepers never came back from it"
                self._end(connection, asked, now, failure=self._given_up(why))

    def renew(self, asked: Asked) -> bool:
        """Keep a claim from running out."""
        with self._writing.begin() as connection:
            expiry = clock(connection) + timedelta(seconds=LEASE_SECONDS)
            return connection.execute(self._held(asked).values(lease_expires_at=expiry)).rowcount == 1

    def answer(self, asked: Asked, answer: Json, *, library: str, **more: Any) -> bool:
        """What came out: the answer, which library gave it, and further columns."""
        with self._writing.begin() as connection:
            return self._end(connection, asked, clock(connection), answer=answer, library=library, **more)

    def fail(self, asked: Asked, why: str) -> bool:
        """Who was to answer did not survive it. It is tried once more, then this is the answer."""
        with self._writing.begin() as connection:
            if asked.failures + 1 >= MOST_FAILURES:
                failure = self._given_up(why)
                return self._end(connection, asked, clock(connection), failure=failure, failures=asked.failures + 1)
            again = self._held(asked).values(failures=asked.failures + 1, lease_expires_at=None)
            return connection.execute(again).rowcount == 1

    def release(self, asked: Asked) -> bool:
        """Give a claim back before it runs out."""
        with self._writing.begin() as connection:
            return connection.execute(self._held(asked).values(lease_expires_at=None)).rowcount == 1

    def forget_others(self, library: str) -> int:
        """Remove the answers of all other libraries; how many there were."""
        table = self.table.c
        with self._writing.begin() as connection:
            others = and_(table.answered_at.is_not(None), or_(table.library != library, table.library.is_(None)))
            return connection.execute(delete(self.table).where(others)).rowcount

    def expire(self) -> int:
        """Remove what is old, or more than there is room for; how many rows went."""
        table = self.table.c
        with self._writing.begin() as connection:
            now = clock(connection)
            old = or_(table.answered_at < now - self.answer_kept, self._unwanted(now))
            newest_first = table.requested_at.desc()
            one_too_many = select(table.requested_at).order_by(newest_first).offset(self.most_kept).limit(1)
            beyond = connection.execute(one_too_many).scalar_one_or_none()
            if beyond is not None:
                old = or_(old, and_(table.requested_at <= beyond, table.answered_at.is_not(None)))
            return connection.execute(delete(self.table).where(old)).rowcount

    def _due(self, now: datetime) -> Any:
        """Requests that somebody waits for and nobody is at work on, in the order in which they came."""
        table = self.table.c
        free = or_(table.lease_expires_at.is_(None), table.lease_expires_at <= now)
        wanted = table.requested_at > now - timedelta(seconds=WANTED_SECONDS)
        waiting = select(table.id).where(table.answered_at.is_(None), wanted, free)
        return waiting.order_by(table.requested_at, table.id)

    def _unwanted(self, now: datetime) -> ColumnElement[bool]:
        table = self.table.c
        given_up = table.requested_at < now - 2 * timedelta(seconds=WANTED_SECONDS)
        idle = or_(table.lease_expires_at.is_(None), table.lease_expires_at < now)
        return and_(table.answered_at.is_(None), given_up, idle)

    def _row(self, row_id: str) -> Update:
        return update(self.table).where(self.table.c.id == row_id)

    def _held(self, asked: Asked) -> Update:
        return self._row(asked.id).where(self.table.c.claims == asked.claims, self.table.c.answered_at.is_(None))

    def _end(self, connection: Connection, asked: Asked, now: datetime, **values: Any) -> bool:
        ended = {**self.dropped, **values, "answered_at": now, "lease_expires_at": None}
        return connection.execute(self._held(asked).values(**ended)).rowcount == 1

    def _select(self, row_id: str) -> Any:
        return select(*columns(Asked, self.table)).where(self.table.c.id == row_id)

    def _read(self, connection: Connection, row_id: str) -> Asked:
        return read(Asked, connection.execute(self._select(row_id)).mappings().one())

    def _given_up(self, why: str) -> Json:
        return Reason(self.failure_code, f"{self.failing}: {why}").as_json()


def id_of(request: Json, version: str) -> str:
    """The hash of a request to a library of this version."""
    text = json.dumps({"request": request, "version": version}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _new_row(row_id: str, request: Json, now: datetime) -> dict[str, Any]:
    empty = dict.fromkeys(("lease_expires_at", "answered_at", "library", "answer", "failure"))
    return {"id": row_id, "request": request, "requested_at": now, "claims": 0, "failures": 0, **empty}
