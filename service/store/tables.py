"""The tables. What a migration makes and what is written here are equal; a test says so."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

from service.store.states import DATASET_STATUSES, DELIVERY_STATUSES, STATUSES

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC to the microsecond. SQLite forgets time zones: there it is text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(27))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; an aware time would do")
        utc = value.astimezone(UTC)
        return f"{utc:%Y-%m-%dT%H:%M:%S.%fZ}" if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # the base class's signature
        if value is None:
            return None
        return datetime.fromisoformat(value) if isinstance(value, str) else value.astimezone(UTC)


# Ids are compared byte by byte everywhere, so that they sort by time whatever the database's locale.
Id = String(40).with_variant(String(40, collation="C"), "postgresql")
DemandId = String(24).with_variant(String(24, collation="C"), "postgresql")
Json = JSON(none_as_null=True)
metadata = MetaData(naming_convention=NAMING)


def _job(**more: Any) -> Column[Any]:
    """The column that ties a row to its job and removes it along with it."""
    return Column("job", Id, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, **more)


# Who works here, and how much of it each may: no limit where none is said.
tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("most_queued", Integer),
    Column("most_running", Integer),
    Column("most_stored_bytes", BigInteger),
    Column("most_gpu_hours", Double),
    Column("most_requests", Integer),
    Column("share", Double),
    Column("created_at", UtcDateTime, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("name", Text, nullable=False),
    Column("prefix", String(8), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("scopes", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("used_at", UtcDateTime),
    Index(None, "prefix"),
)

# What attempts that have ended took, by the month of their end; jobs that are deleted leave it behind.
usage = Table(
    "usage",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("gpu_seconds", Double, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("name", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("phase", Text),
    Column("status_reason", Json),
    Column("requested", String(20)),
    Column("spec", Json, nullable=False),
    Column("resolved_spec", Json, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("parent", Id),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("gpus", Integer),
    Column("demand", DemandId),
    Column("slots", Integer),
    Column("max_runtime_seconds", Double),
    Column("created_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime, nullable=False),
    Column("turn_at", UtcDateTime, nullable=False),
    Column("not_before", UtcDateTime),
    Column("blocked_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("claimed_at", UtcDateTime),
    Column("expected_end_at", UtcDateTime),
    Column("lease_expires_at", UtcDateTime),
    Column("worker", Text),
    Column("devices", Json),
    Column("versions", Json),
    Column("progress", Json),
    Column("progress_at", UtcDateTime),
    Column("best", Json),
    Column("last_event", Integer, nullable=False),
    Column("last_log_line", Integer, nullable=False),
    Column("events_pruned_at", UtcDateTime),
    Column("series_pruned_at", UtcDateTime),
    Column("idempotency_key", Text),
    Column("body_sha256", String(64)),
    Column("request_id", Text),
    CheckConstraint(f"status IN ({', '.join(repr(status) for status in STATUSES)})", name="status"),
    CheckConstraint("requested IN ('cancel', 'pause')", name="requested"),
    UniqueConstraint("tenant", "idempotency_key"),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "status", "id"),
    Index(None, "tenant", "kind", "id"),
    Index(None, "tenant", "name", "id"),
)
Index("ix_jobs_claim_order", jobs.c.status, jobs.c.turn_at, jobs.c.id)
Index("ix_jobs_status_lease_expires_at", jobs.c.status, jobs.c.lease_expires_at)
# Of jobs at work there is no entry here either. Where an index's condition says all that a query says of the status,
# PostgreSQL does not look for it among the columns; SQLite takes no index whose condition is not said word for word.
_waiting: dict[str, Any] = {
    "postgresql_where": jobs.c.status.in_(["queued", "paused"]),
    "sqlite_where": jobs.c.status == "queued",
}
_turn = (jobs.c.turn_at, jobs.c.id)
Index("ix_jobs_demands", jobs.c.status, jobs.c.tenant, jobs.c.demand, *_turn, **_waiting)
Index("ix_jobs_turns", jobs.c.status, jobs.c.tenant, *_turn, **_waiting)
# That of workers of the version before, whose lanes are of as many GPUs.
Index("ix_jobs_lanes", jobs.c.status, jobs.c.tenant, jobs.c.gpus, *_turn, **_waiting)
_blocked = and_(jobs.c.status == "queued", jobs.c.blocked_at.is_not(None))
Index("ix_jobs_blocked", jobs.c.blocked_at, postgresql_where=_blocked, sqlite_where=_blocked)
_unnoted = and_(jobs.c.status == "queued", jobs.c.blocked_at.is_(None))
Index("ix_jobs_unnoted", jobs.c.tenant, jobs.c.demand, *_turn, postgresql_where=_unnoted, sqlite_where=_unnoted)
# Of jobs at work there is no entry, so that renewing a lease costs none.
for _pruned_at in (jobs.c.events_pruned_at, jobs.c.series_pruned_at):
    _whole = and_(jobs.c.ended_at.is_not(None), _pruned_at.is_(None))
    _name = f"ix_jobs_{_pruned_at.name.removesuffix('_pruned_at')}_unpruned"
    Index(_name, jobs.c.ended_at, postgresql_where=_whole, sqlite_where=_whole)

# The labels of `metadata` once more, a row each, so that a list can be filtered by them through an index.
labels = Table(
    "labels",
    metadata,
    _job(primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "key", "value", "job"),
)

events = Table(
    "events",
    metadata,
    _job(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("type", String(20), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Json, nullable=False),
    Index(None, "job", "type", "number"),
)

metric_points = Table(
    "metric_points",
    metadata,
    _job(primary_key=True),
    Column("name", Text, primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,
)

# The same once more, summed up by blocks of steps: the least and the greatest value of each, and where they are.
metric_blocks = Table(
    "metric_blocks",
    metadata,
    _job(primary_key=True),
    Column("name", Text, primary_key=True),
    Column("block", Integer, primary_key=True, autoincrement=False),
    Column("points", Integer, nullable=False),
    Column("least", Double, nullable=False),
    Column("least_step", Integer, nullable=False),
    Column("greatest", Double, nullable=False),
    Column("greatest_step", Integer, nullable=False),
)

trace_steps = Table(
    "trace_steps",
    metadata,
    _job(primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("data", Json, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    _job(primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("split", String(20), primary_key=True),
    Column("final", Boolean, primary_key=True),
    Column("best", Boolean, nullable=False),
    Column("data", Json, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    _job(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker", Text, nullable=False),
    Column("host", Text),
    Column("devices", Json),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("heartbeat_at", UtcDateTime, nullable=False),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("reason", Json),
    Column("resumed_from", Json),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Id, primary_key=True),
    _job(),
    Column("tenant", Text),  # the job's; none in rows of workers that knew of no such column
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("metrics", Json, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("key", Text, nullable=False, unique=True),
    Column("best", Boolean, nullable=False),
    Column("latest", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index(None, "job", "step", "created_at", "id"),
    Index(None, "tenant", "stored_bytes"),
)

log_lines = Table(
    "log_lines",
    metadata,
    _job(primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("line", Text, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("busy", Integer, nullable=False),
    Column("devices", Json, nullable=False),
    Column("labels", Json),
    Column("cores", Integer),
    Column("load", Json),
    Column("slots_aside", Integer),
    Column("draining", String(20)),
    Column("versions", Json, nullable=False),
    Column("catalog", Json, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("left_at", UtcDateTime),
    Index(None, "seen_at"),
)

# What jobs ask of a worker, each once, however many ask for it: since when it is known, and what an id stands for.
demands = Table(
    "demands",
    metadata,
    Column("id", DemandId, primary_key=True),
    Column("demand", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# Each worker's verdict on each demand that it met, asked once. A worker that has gone leaves its rows for a while.
abilities = Table(
    "abilities",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("demand", DemandId, primary_key=True),
    Column("able", Boolean, nullable=False),
    Index(None, "demand", "worker"),
)

# Who has which slot of which worker. `on_gpu` is whether it is a GPU's; a job without one takes a slot as well.
holdings = Table(
    "holdings",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    _job(),
    Column("attempt", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("on_gpu", Boolean, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Index(None, "tenant"),
)

# Workers that give their free slots to nobody but one job, which they have too few of as yet.
reservations = Table(
    "reservations",
    metadata,
    Column("worker", Text, primary_key=True),
    _job(unique=True),
    Column("reserved_at", UtcDateTime, nullable=False),
    Column("expected_at", UtcDateTime, nullable=False),
)

# Uploaded files that jobs can start from.
weights = Table(
    "weights",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("tensors", Integer, nullable=False),
    Column("params", BigInteger, nullable=False),
    Column("about", Json),
    Column("key", Text, nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Index(None, "tenant", "id"),
)

# Data sets that users bring: uploaded, or lying below the data root where `path` is set.
datasets = Table(
    "datasets",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("task", String(40), nullable=False),
    Column("format", String(40), nullable=False),
    Column("options", Json, nullable=False),
    Column("path", Text),
    Column("declared_sha256", String(64)),
    Column("status", String(20), nullable=False),
    Column("received_bytes", BigInteger, nullable=False),
    Column("total_bytes", BigInteger),
    Column("upload_number", Integer, nullable=False),
    Column("upload_expires_at", UtcDateTime),
    Column("claims", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("not_before", UtcDateTime),
    Column("lease_expires_at", UtcDateTime),
    Column("progress", Json),
    Column("status_reason", Json),
    Column("sha256", String(64)),
    Column("size_bytes", BigInteger),
    Column("files", BigInteger),
    Column("num_classes", Integer),
    Column("report", Json),
    Column("created_at", UtcDateTime, nullable=False),
    Column("checked_at", UtcDateTime),
    Column("deleted_at", UtcDateTime),
    CheckConstraint(f"status IN ({', '.join(repr(status) for status in DATASET_STATUSES)})", name="status"),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "status", "id"),
    Index(None, "tenant", "name", "id"),
    Index(None, "tenant", "task", "id"),
    Index(None, "status", "id"),
    Index(None, "deleted_at"),
)

# What of an archive is stored, by where it begins in it; an upload cut off goes on behind the last of them.
dataset_parts = Table(
    "dataset_parts",
    metadata,
    Column("dataset", Id, ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("upload", Integer, nullable=False),
    Column("key", Text, nullable=False, unique=True),
)


def _asked(name: str, *more: Column[Any]) -> Table:
    """Requests under the hash of all that the answer depends on, and the answers."""
    return Table(
        name,
        metadata,
        Column("id", String(64), primary_key=True),
        Column("request", Json, nullable=False),
        Column("requested_at", UtcDateTime, nullable=False),
        Column("claims", Integer, nullable=False),
        Column("failures", Integer, nullable=False),
        Column("lease_expires_at", UtcDateTime),
        Column("answered_at", UtcDateTime),
        Column("library", String(64)),
        Column("answer", Json),
        Column("failure", Json),
        *more,
        Index(None, "answered_at", "requested_at"),
    )


plans = _asked("plans")
predictions = _asked("predictions", Column("image", LargeBinary), Column("drawn", LargeBinary))

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("types", Json, nullable=False),
    Column("secret", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled_at", UtcDateTime),
    Column("disabled_reason", Text),
    Index(None, "tenant", "id"),
)

# A job that a delivery tells of may be gone.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("webhook", Id, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("job", Id),
    Column("type", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("claims", Integer, nullable=False),
    Column("not_before", UtcDateTime, nullable=False),
    Column("lease_expires_at", UtcDateTime),
    Column("response_status", Integer),
    Column("error", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("attempted_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    CheckConstraint(f"status IN ({', '.join(repr(status) for status in DELIVERY_STATUSES)})", name="status"),
    Index(None, "webhook", "id"),
    Index(None, "webhook", "status", "id"),
    Index(None, "status", "not_before"),
    Index(None, "status", "lease_expires_at"),
    Index(None, "status", "ended_at"),
)
