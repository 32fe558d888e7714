"""An index of the queue by tenant and GPUs: a claim passes over what does not fit without reading it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = ["status", "tenant", "gpus", "turn_at", "id"]
    waiting, queued = sa.text("status IN ('queued', 'paused')"), sa.text("status = 'queued'")
    op.create_index("ix_jobs_lanes", "jobs", columns, postgresql_where=waiting, sqlite_where=queued)


def downgrade() -> None:
    op.drop_index("ix_jobs_lanes", "jobs")
