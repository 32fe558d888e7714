"""How many slots of a worker are of GPUs that it has put aside; which jobs of a lane are noted as blocked."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("slots_aside", sa.Integer()))
    columns = ["tenant", "demand", "turn_at", "id"]
    blocked = sa.text("status = 'queued' AND blocked_at IS NOT NULL")
    op.create_index("ix_jobs_noted", "jobs", columns, postgresql_where=blocked, sqlite_where=blocked)


def downgrade() -> None:
    op.drop_index("ix_jobs_noted", "jobs")
    op.drop_column("workers", "slots_aside")
