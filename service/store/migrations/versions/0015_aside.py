"""How many slots of a worker are of GPUs that it has put aside; which jobs of a lane are not noted as blocked."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("slots_aside", sa.Integer()))
    columns = ["tenant", "demand", "turn_at", "id"]
    unnoted = sa.text("status = 'queued' AND blocked_at IS NULL")
    op.create_index("ix_jobs_unnoted", "jobs", columns, postgresql_where=unnoted, sqlite_where=unnoted)


def downgrade() -> None:
    op.drop_index("ix_jobs_unnoted", "jobs")
    op.drop_column("workers", "slots_aside")
