"""Whose each thing is: tenants with their limits and keys, and what they have used."""

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
FILTERED = {"jobs": ("status", "kind", "name"), "datasets": ("status", "name", "task")}


def upgrade() -> None:
    _tenants()
    _keys()
    op.create_table(
        "usage",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "month", name="pk_usage"),
    )
    for table in ("jobs", "weights", "datasets"):
        _give_to_the_default(table)
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint("uq_jobs_idempotency_key", type_="unique")
        jobs.create_unique_constraint("uq_jobs_tenant_idempotency_key", ["tenant", "idempotency_key"])
    for table, columns in FILTERED.items():
        for column in columns:
            op.drop_index(f"ix_{table}_{column}_id", table)
            op.create_index(f"ix_{table}_tenant_{column}_id", table, ["tenant", column, "id"])
    op.add_column("checkpoints", sa.Column("stored_bytes", sa.BigInteger()))
    op.execute("UPDATE checkpoints SET stored_bytes = size_bytes")
    with op.batch_alter_table("checkpoints") as checkpoints:
        checkpoints.alter_column("stored_bytes", existing_type=sa.BigInteger(), nullable=False)


def downgrade() -> None:
    op.drop_column("checkpoints", "stored_bytes")
    for table, columns in FILTERED.items():
        for column in columns:
            op.drop_index(f"ix_{table}_tenant_{column}_id", table)
            op.create_index(f"ix_{table}_{column}_id", table, [column, "id"])
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint("uq_jobs_tenant_idempotency_key", type_="unique")
        jobs.create_unique_constraint("uq_jobs_idempotency_key", ["idempotency_key"])
    for table in ("jobs", "weights", "datasets"):
        op.drop_index(f"ix_{table}_tenant_id", table)
        op.drop_column(table, "tenant")
    for table in ("usage", "keys", "tenants"):
        op.drop_table(table)


def _tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("most_queued", sa.Integer()),
        sa.Column("most_running", sa.Integer()),
        sa.Column("most_stored_bytes", sa.BigInteger()),
        sa.Column("most_gpu_hours", sa.Double()),
        sa.Column("most_requests", sa.Integer()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.String(8), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("used_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_keys_tenant_tenants"),
    )
    op.create_index("ix_keys_prefix", "keys", ["prefix"])


def _give_to_the_default(table: str) -> None:
    """What was there before there were tenants is that of whoever calls without a key."""
    op.add_column(table, sa.Column("tenant", sa.Text(), nullable=False, server_default="default"))
    with op.batch_alter_table(table) as altered:
        altered.alter_column("tenant", existing_type=sa.Text(), nullable=False, server_default=None)
    op.create_index(f"ix_{table}_tenant_id", table, ["tenant", "id"])
