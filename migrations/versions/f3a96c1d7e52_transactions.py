"""transactions

Revision ID: f3a96c1d7e52
Revises: e1f7a2c94d08
Create Date: 2026-11-28 04:40:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "f3a96c1d7e52"
down_revision: str | Sequence[str] | None = "e1f7a2c94d08"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Transactions."""
    op.create_table(
        "transactions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reference", sa.String(length=100), nullable=True),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("initiator", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transactions")),
        sa.UniqueConstraint("initiator", "idempotency_key", name=op.f("uq_transactions_initiator_idempotency_key")),
    )
    with op.batch_alter_table("transfers") as batch_op:
        batch_op.add_column(sa.Column("transaction_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
        batch_op.create_foreign_key(
            batch_op.f("fk_transfers_transaction_id_transactions"), "transactions", ["transaction_id"], ["id"]
        )
        batch_op.create_index(
            "ix_transfers_transaction_id",
            ["transaction_id"],
            unique=False,
            sqlite_where=sa.text("transaction_id IS NOT NULL"),
            postgresql_where=sa.text("transaction_id IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_transfers_reference",
            ["reference", "id"],
            unique=False,
            sqlite_where=sa.text("reference IS NOT NULL"),
            postgresql_where=sa.text("reference IS NOT NULL"),
        )


def downgrade() -> None:
    """Undo: transactions."""
    with op.batch_alter_table("transfers") as batch_op:
        batch_op.drop_index("ix_transfers_reference")
        batch_op.drop_index("ix_transfers_transaction_id")
        batch_op.drop_constraint(batch_op.f("fk_transfers_transaction_id_transactions"), type_="foreignkey")
        batch_op.drop_column("transaction_id")
    op.drop_table("transactions")
