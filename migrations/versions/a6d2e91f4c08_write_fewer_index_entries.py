"""write fewer index entries

Revision ID: a6d2e91f4c08
Revises: e8a4c05b7d31
Create Date: 2026-11-27 01:00:00+00:00
"""

from collections.abc import Sequence

from alembic import op

revision: str = "a6d2e91f4c08"
down_revision: str | Sequence[str] | None = "e8a4c05b7d31"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Write fewer index entries."""
    with op.batch_alter_table("entries") as batch_op:
        batch_op.drop_index(batch_op.f("ix_entries_account_id_created_at_seq"))
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE accounts SET (fillfactor = 90)")


def downgrade() -> None:
    """Undo: write fewer index entries."""
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE accounts RESET (fillfactor)")
    with op.batch_alter_table("entries") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_entries_account_id_created_at_seq"), ["account_id", "created_at", "seq"], unique=False
        )
