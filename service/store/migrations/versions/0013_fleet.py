"""What workers offer beside their devices, how they fare, and whether they are to take on nothing more."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("labels", sa.JSON()))
    op.add_column("workers", sa.Column("cores", sa.Integer()))
    op.add_column("workers", sa.Column("load", sa.JSON()))
    op.add_column("workers", sa.Column("draining", sa.String(20)))


def downgrade() -> None:
    for name in ("draining", "load", "cores", "labels"):
        op.drop_column("workers", name)
