"""Large tables stay quick: a tenant's checkpoints summed by an index, data sets found by status, old jobs pruned."""

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WHOSE = "UPDATE checkpoints SET tenant = (SELECT jobs.tenant FROM jobs WHERE jobs.id = checkpoints.job)"
INDEXES = (("checkpoints", "tenant", "stored_bytes"), ("datasets", "status", "id"), ("datasets", "deleted_at"))
PRUNED = ("events", "series")


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("tenant", sa.Text()))
    op.execute(WHOSE)
    for table, *columns in INDEXES:
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)
    for what in PRUNED:
        op.add_column("jobs", sa.Column(f"{what}_pruned_at", UtcDateTime()))
    for what in PRUNED:
        whole = sa.text(f"ended_at IS NOT NULL AND {what}_pruned_at IS NULL")
        op.create_index(f"ix_jobs_{what}_unpruned", "jobs", ["ended_at"], postgresql_where=whole, sqlite_where=whole)


def downgrade() -> None:
    for what in PRUNED:
        op.drop_index(f"ix_jobs_{what}_unpruned", "jobs")
        op.drop_column("jobs", f"{what}_pruned_at")
    for table, *columns in INDEXES:
        op.drop_index(f"ix_{table}_{'_'.join(columns)}", table)
    op.drop_column("checkpoints", "tenant")
