"""keep what a registration sent

Revision ID: c5b81e6f3d27
Revises: a6d2e91f4c08
Create Date: 2026-11-27 12:35:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "c5b81e6f3d27"
down_revision: str | Sequence[str] | None = "a6d2e91f4c08"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Keep what a registration sent."""
    with op.batch_alter_table("users") as batch_op:
        batch_op.add_column(sa.Column("registration_content_hash", sa.String(length=32), nullable=True))


def downgrade() -> None:
    """Undo: keep what a registration sent."""
    with op.batch_alter_table("users") as batch_op:
        batch_op.drop_column("registration_content_hash")
