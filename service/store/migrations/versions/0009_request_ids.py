"""Which request a job was posted by: its id in the logs."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.Text()))


def downgrade() -> None:
    op.drop_column("jobs", "request_id")
