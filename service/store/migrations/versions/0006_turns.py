"""Whose turn it is: priority that grows with waiting, as one column to sort by."""

from datetime import timedelta

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SECONDS_A_POINT = 600


def upgrade() -> None:
    op.drop_index("ix_jobs_claim_order", "jobs")
    op.add_column("jobs", sa.Column("turn_at", UtcDateTime()))
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.String()),
        sa.column("priority", sa.Integer()),
        sa.column("queued_at", UtcDateTime()),
        sa.column("turn_at", UtcDateTime()),
    )
    connection = op.get_bind()
    for job in connection.execute(sa.select(jobs.c.id, jobs.c.priority, jobs.c.queued_at)).all():
        turn_at = job.queued_at - timedelta(seconds=SECONDS_A_POINT * job.priority)
        connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(turn_at=turn_at))
    with op.batch_alter_table("jobs") as table:
        table.alter_column("turn_at", nullable=False)
    op.create_index("ix_jobs_claim_order", "jobs", ["status", "turn_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_claim_order", "jobs")
    op.drop_column("jobs", "turn_at")
    op.create_index("ix_jobs_claim_order", "jobs", ["status", sa.text("priority DESC"), "queued_at", "id"])
