"""Curves summed up by blocks of 128 steps."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
SUM_UP = """
    INSERT INTO metric_blocks (job, name, block, points, least, least_step, greatest, greatest_step)
    SELECT job, name, block, count(*), min(value), max(CASE WHEN from_least = 1 THEN step END),
           max(value), max(CASE WHEN from_greatest = 1 THEN step END)
    FROM (
        SELECT job, name, step, value, step / 128 AS block,
               row_number() OVER (PARTITION BY job, name, step / 128 ORDER BY value, step) AS from_least,
               row_number() OVER (PARTITION BY job, name, step / 128 ORDER BY value DESC, step) AS from_greatest
        FROM metric_points
    ) AS ranked
    GROUP BY job, name, block
"""


def upgrade() -> None:
    op.create_table(
        "metric_blocks",
        sa.Column("job", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("block", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("least", sa.Double(), nullable=False),
        sa.Column("least_step", sa.Integer(), nullable=False),
        sa.Column("greatest", sa.Double(), nullable=False),
        sa.Column("greatest_step", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_metric_blocks_job", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "name", "block", name="pk_metric_blocks"),
    )
    op.execute(SUM_UP)


def downgrade() -> None:
    op.drop_table("metric_blocks")
