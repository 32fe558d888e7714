"""The first tables."""

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")


def upgrade() -> None:
    _jobs()
    _what_a_job_says()
    _attempts_and_checkpoints()
    _workers()


def downgrade() -> None:
    for table in ("workers", "log_lines", "checkpoints", "attempts", "evaluations", "trace_steps"):
        op.drop_table(table)
    for table in ("metric_points", "events", "labels", "jobs"):
        op.drop_table(table)


def _job() -> sa.Column[str]:
    return sa.Column("job", ID, nullable=False)


def _of_a_job(table: str, *key: str) -> list[sa.Constraint]:
    """The keys of a table whose rows go with their job."""
    return [
        sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=f"fk_{table}_job", ondelete="CASCADE"),
    ]


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("phase", sa.Text()),
        sa.Column("status_reason", sa.JSON()),
        sa.Column("requested", sa.String(20)),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("resolved_spec", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("parent", ID),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("queued_at", UtcDateTime(), nullable=False),
        sa.Column("not_before", UtcDateTime()),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("claimed_at", UtcDateTime()),
        sa.Column("lease_expires_at", UtcDateTime()),
        sa.Column("worker", sa.Text()),
        sa.Column("devices", sa.JSON()),
        sa.Column("versions", sa.JSON()),
        sa.Column("progress", sa.JSON()),
        sa.Column("progress_at", UtcDateTime()),
        sa.Column("best", sa.JSON()),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("last_log_line", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("body_sha256", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_status"),
        ),
        sa.CheckConstraint("requested IN ('cancel', 'pause')", name=op.f("ck_jobs_requested")),
    )
    op.create_index("ix_jobs_status_id", "jobs", ["status", "id"])
    op.create_index("ix_jobs_kind_id", "jobs", ["kind", "id"])
    op.create_index("ix_jobs_name_id", "jobs", ["name", "id"])
    op.create_index("ix_jobs_claim_order", "jobs", ["status", sa.text("priority DESC"), "queued_at", "id"])
    op.create_index("ix_jobs_status_lease_expires_at", "jobs", ["status", "lease_expires_at"])
    op.create_table(
        "labels",
        _job(),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        *_of_a_job("labels", "job", "key"),
    )
    op.create_index("ix_labels_key_value_job", "labels", ["key", "value", "job"])


def _what_a_job_says() -> None:
    op.create_table(
        "events",
        _job(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        *_of_a_job("events", "job", "number"),
    )
    op.create_index("ix_events_job_type_number", "events", ["job", "type", "number"])
    op.create_table(
        "metric_points",
        _job(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        *_of_a_job("metric_points", "job", "name", "step"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "trace_steps",
        _job(),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        *_of_a_job("trace_steps", "job", "step"),
    )
    op.create_table(
        "evaluations",
        _job(),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(20), nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        *_of_a_job("evaluations", "job", "step", "split", "final"),
    )
    op.create_table(
        "log_lines",
        _job(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        *_of_a_job("log_lines", "job", "number"),
    )


def _attempts_and_checkpoints() -> None:
    op.create_table(
        "attempts",
        _job(),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("host", sa.Text()),
        sa.Column("devices", sa.JSON()),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("heartbeat_at", UtcDateTime(), nullable=False),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("signal", sa.Integer()),
        sa.Column("reason", sa.JSON()),
        sa.Column("resumed_from", sa.JSON()),
        *_of_a_job("attempts", "job", "number"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", ID, nullable=False),
        _job(),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.Column("latest", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        *_of_a_job("checkpoints", "id"),
        sa.UniqueConstraint("key", name="uq_checkpoints_key"),
    )
    op.create_index("ix_checkpoints_job_step_created_at_id", "checkpoints", ["job", "step", "created_at", "id"])


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("busy", sa.Integer(), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("catalog", sa.JSON(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("left_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_index("ix_workers_seen_at", "workers", ["seen_at"])
