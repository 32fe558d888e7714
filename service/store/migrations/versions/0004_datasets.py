"""Data sets that users bring."""

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
STATUSES = "'empty', 'uploading', 'checking', 'ready', 'rejected'"


def upgrade() -> None:
    _datasets()
    _parts()


def downgrade() -> None:
    for table in ("dataset_parts", "datasets"):
        op.drop_table(table)


def _datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.String(40), nullable=False),
        sa.Column("format", sa.String(40), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("path", sa.Text()),
        sa.Column("declared_sha256", sa.String(64)),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger()),
        sa.Column("upload_number", sa.Integer(), nullable=False),
        sa.Column("upload_expires_at", UtcDateTime()),
        sa.Column("claims", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("not_before", UtcDateTime()),
        sa.Column("lease_expires_at", UtcDateTime()),
        sa.Column("progress", sa.JSON()),
        sa.Column("status_reason", sa.JSON()),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("files", sa.BigInteger()),
        sa.Column("num_classes", sa.Integer()),
        sa.Column("report", sa.JSON()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("checked_at", UtcDateTime()),
        sa.Column("deleted_at", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_datasets_status")),
    )
    for column in ("status", "name", "task"):
        op.create_index(f"ix_datasets_{column}_id", "datasets", [column, "id"])


def _parts() -> None:
    op.create_table(
        "dataset_parts",
        sa.Column("dataset", ID, nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("upload", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "start", name="pk_dataset_parts"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.id"], name="fk_dataset_parts_dataset", ondelete="CASCADE"),
        sa.UniqueConstraint("key", name="uq_dataset_parts_key"),
    )
