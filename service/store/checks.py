"""Checks of data sets: claimed by a housekeeper, renewed while it is at work, and what came out.

A claim is a lease. Its number fences every write, and one that ran out is anybody's again.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Update, delete, exists, or_, select, update

from acmix.errors import Reason
from service.store.database import clock, writing
from service.store.rows import Dataset, Json, read
from service.store.states import FIRST_BACKOFF_SECONDS
from service.store.tables import dataset_parts, datasets

LEFT_SECONDS = 60.0  # a deletion that has not come to its end by then was cut short


class Checks:
    """What a housekeeper writes about data sets: False where its claim is over, and then nothing was written."""

    def __init__(
        self, engine: Engine, *, lease_seconds: float = 60.0, max_failures: int = 2, max_losses: int = 5
    ) -> None:
        self._reading = engine
        self._writing = writing(engine)
        self._lease = timedelta(seconds=lease_seconds)
        self._max_failures = max_failures
        self._max_losses = max_losses

    def claim(self) -> Dataset | None:
        """Take on the data set that has waited longest; None if none waits."""
        with self._reading.connect() as connection:
            if connection.execute(_due(clock(connection)).limit(1)).first() is None:
                return None  # without the lock that a write takes
        with self._writing.begin() as connection:
            while True:
                now = clock(connection)
                next_one = _due(now).limit(1).with_for_update(skip_locked=True)
                row = connection.execute(next_one).mappings().one_or_none()
                if row is None:
                    return None
                found = read(Dataset, row)
                losses = found.losses + (found.lease_expires_at is not None)
                if losses <= self._max_losses:
                    return self._take(connection, found, now, losses)
                _end(connection, found, now, "rejected", status_reason=_lost(losses), losses=losses)

    def renew(self, check: Dataset, progress: Json | None = None) -> bool:
        """Keep a claim from running out, and tell how far it has come: {phase, done, of}."""
        with self._writing.begin() as connection:
            expiry = clock(connection) + self._lease
            return connection.execute(_held(check).values(lease_expires_at=expiry, progress=progress)).rowcount == 1

    def ready(self, check: Dataset, report: Json) -> bool:
        """It can be trained on, as the report says."""
        columns = {name: report[name] for name in ("sha256", "size_bytes", "files", "num_classes")}
        with self._writing.begin() as connection:
            return _end(connection, check, clock(connection), "ready", report=report, **columns)

    def reject(self, check: Dataset, report: Json) -> bool:
        """It cannot be trained on, as the report says. Its parts are to go."""
        with self._writing.begin() as connection:
            return _end(connection, check, clock(connection), "rejected", report=report)

    def fail(self, check: Dataset, reason: Reason) -> bool:
        """It could not be checked, for no fault of its own. It is tried again, later each time, then given up."""
        failures = check.failures + 1
        with self._writing.begin() as connection:
            now = clock(connection)
            if failures > self._max_failures:
                return _end(connection, check, now, "rejected", status_reason=_given_up(reason), failures=failures)
            later = now + timedelta(seconds=FIRST_BACKOFF_SECONDS * 2**failures)
            again = {"failures": failures, "not_before": later, "status_reason": reason.as_json()}
            freed = _held(check).values(lease_expires_at=None, progress=None, **again)
            return connection.execute(freed).rowcount == 1

    def release(self, check: Dataset) -> bool:
        """Give a claim back before it runs out."""
        with self._writing.begin() as connection:
            return connection.execute(_held(check).values(lease_expires_at=None, progress=None)).rowcount == 1

    # What is left to remove

    def deleted(self) -> Sequence[str]:
        """Data sets whose deletion was cut short: their files and rows are to go."""
        with self._reading.connect() as connection:
            long_ago = datasets.c.deleted_at < clock(connection) - timedelta(seconds=LEFT_SECONDS)
            return connection.execute(select(datasets.c.id).where(long_ago).limit(100)).scalars().all()

    def rejected_with_parts(self) -> Sequence[str]:
        """Rejected data sets whose parts are to go."""
        with_parts = exists().where(dataset_parts.c.dataset == datasets.c.id)
        with self._reading.connect() as connection:
            left = select(datasets.c.id).where(datasets.c.status == "rejected", with_parts).limit(100)
            return connection.execute(left).scalars().all()

    def forget_parts(self, dataset_id: str) -> None:
        """The parts of a rejected data set are gone."""
        with self._writing.begin() as connection:
            connection.execute(delete(dataset_parts).where(dataset_parts.c.dataset == dataset_id))

    def _take(self, connection: Connection, found: Dataset, now: datetime, losses: int) -> Dataset:
        taken = {"claims": found.claims + 1, "losses": losses, "lease_expires_at": now + self._lease, "progress": None}
        claimed = update(datasets).where(datasets.c.id == found.id).values(**taken).returning(*datasets.c)
        return read(Dataset, connection.execute(claimed).mappings().one())


def _due(now: datetime) -> Any:
    """Data sets to be checked that nobody is at work on and nothing holds back, in the order in which they came."""
    free = or_(datasets.c.lease_expires_at.is_(None), datasets.c.lease_expires_at <= now)
    waited = or_(datasets.c.not_before.is_(None), datasets.c.not_before <= now)
    return select(datasets).where(datasets.c.status == "checking", free, waited).order_by(datasets.c.id)


def _held(check: Dataset) -> Update:
    return update(datasets).where(
        datasets.c.id == check.id, datasets.c.claims == check.claims, datasets.c.status == "checking"
    )


def _end(connection: Connection, check: Dataset, now: datetime, status: str, **values: Any) -> bool:
    ended = {"lease_expires_at": None, "not_before": None, "progress": None, "status_reason": None, **values}
    return connection.execute(_held(check).values(status=status, checked_at=now, **ended)).rowcount == 1


def _lost(losses: int) -> Json:
    why = f"it could not be checked: {losses} housekeepers never came back from it"
    return Reason("worker_lost", why, hint="create it again; a smaller archive may do").as_json()


def _given_up(reason: Reason) -> Json:
    """The last failure, no longer tried again."""
    return Reason(reason.code, reason.message, reason.blame, hint=reason.hint or "create it again").as_json()
