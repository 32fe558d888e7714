"""What jobs demand, which workers are able, who holds which slot, and which worker is reserved for whom."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
DEMAND = sa.String(24).with_variant(sa.String(24, collation="C"), "postgresql")
OF_A_JOB: tuple[tuple[str, Any], ...] = (
    ("demand", DEMAND),
    ("slots", sa.Integer()),
    ("max_runtime_seconds", sa.Double()),
    ("blocked_at", UtcDateTime()),
    ("expected_end_at", UtcDateTime()),
)


def upgrade() -> None:
    for name, kind in OF_A_JOB:
        op.add_column("jobs", sa.Column(name, kind))
    op.add_column("tenants", sa.Column("share", sa.Double()))
    _tables()
    waiting: dict[str, Any] = {
        "postgresql_where": sa.text("status IN ('queued', 'paused')"),
        "sqlite_where": sa.text("status = 'queued'"),
    }
    op.create_index("ix_jobs_demands", "jobs", ["status", "tenant", "demand", "turn_at", "id"], **waiting)
    op.create_index("ix_jobs_turns", "jobs", ["status", "tenant", "turn_at", "id"], **waiting)
    blocked = sa.text("status = 'queued' AND blocked_at IS NOT NULL")
    op.create_index("ix_jobs_blocked", "jobs", ["blocked_at"], postgresql_where=blocked, sqlite_where=blocked)


def downgrade() -> None:
    for name in ("blocked", "turns", "demands"):
        op.drop_index(f"ix_jobs_{name}", "jobs")
    for table in ("reservations", "holdings", "abilities", "demands"):
        op.drop_table(table)
    op.drop_column("tenants", "share")
    for name, _ in reversed(OF_A_JOB):
        op.drop_column("jobs", name)


def _tables() -> None:
    op.create_table(
        "demands",
        sa.Column("id", DEMAND, nullable=False),
        sa.Column("demand", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_demands"),
    )
    op.create_table(
        "abilities",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("demand", DEMAND, nullable=False),
        sa.Column("able", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("worker", "demand", name="pk_abilities"),
    )
    op.create_index("ix_abilities_demand_worker", "abilities", ["demand", "worker"])
    op.create_table(
        "holdings",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("job", ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("on_gpu", sa.Boolean(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("worker", "slot", name="pk_holdings"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_holdings_job_jobs", ondelete="CASCADE"),
    )
    op.create_index("ix_holdings_tenant", "holdings", ["tenant"])
    op.create_table(
        "reservations",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("job", ID, nullable=False),
        sa.Column("reserved_at", UtcDateTime(), nullable=False),
        sa.Column("expected_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("worker", name="pk_reservations"),
        sa.UniqueConstraint("job", name="uq_reservations_job"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_reservations_job_jobs", ondelete="CASCADE"),
    )
