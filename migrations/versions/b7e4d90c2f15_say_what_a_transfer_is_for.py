"""say what a transfer is for

Revision ID: b7e4d90c2f15
Revises: c5b81e6f3d27
Create Date: 2026-11-28 01:40:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "b7e4d90c2f15"
down_revision: str | Sequence[str] | None = "c5b81e6f3d27"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Say what a transfer is for."""
    with op.batch_alter_table("transfers") as batch_op:
        batch_op.add_column(sa.Column("reference", sa.String(length=100), nullable=True))
        batch_op.add_column(sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column("asked_amount", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Undo: say what a transfer is for."""
    with op.batch_alter_table("transfers") as batch_op:
        batch_op.drop_column("asked_amount")
        batch_op.drop_column("metadata")
        batch_op.drop_column("reference")
