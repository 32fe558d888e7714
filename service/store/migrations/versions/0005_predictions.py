"""Images that are to be predicted on, and what was predicted."""

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("requested_at", UtcDateTime(), nullable=False),
        sa.Column("claims", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", UtcDateTime()),
        sa.Column("answered_at", UtcDateTime()),
        sa.Column("library", sa.String(64)),
        sa.Column("answer", sa.JSON()),
        sa.Column("failure", sa.JSON()),
        sa.Column("image", sa.LargeBinary()),
        sa.Column("drawn", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
    )
    op.create_index("ix_predictions_answered_at_requested_at", "predictions", ["answered_at", "requested_at"])


def downgrade() -> None:
    op.drop_table("predictions")
