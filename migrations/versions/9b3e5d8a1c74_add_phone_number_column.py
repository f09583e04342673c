"""add phone_number column

Revision ID: 9b3e5d8a1c74
Revises: 4f1c7a9d2b60
Create Date: 2026-11-23 01:10:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "9b3e5d8a1c74"
down_revision: str | Sequence[str] | None = "4f1c7a9d2b60"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Add phone_number column."""
    with op.batch_alter_table("users") as batch_op:
        batch_op.add_column(sa.Column("phone_number", sa.String(length=20), nullable=True))


def downgrade() -> None:
    """Undo: add phone_number column."""
    with op.batch_alter_table("users") as batch_op:
        batch_op.drop_column("phone_number")
