"""holds

Revision ID: a84e5d20b6f9
Revises: f3a96c1d7e52
Create Date: 2026-11-28 04:50:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "a84e5d20b6f9"
down_revision: str | Sequence[str] | None = "f3a96c1d7e52"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What every account held before.
COUNTS_AS_LOSS = {"accounts.held": "held <> 0"}


def upgrade() -> None:
    """Holds."""
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("debit_account_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("credit_account_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("currency", sa.String(length=12), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("asked_amount", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.String(length=8), nullable=False),
        sa.Column("memo", sa.String(length=200), nullable=True),
        sa.Column("reference", sa.String(length=100), nullable=True),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("initiator", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_holds_amount")),
        sa.CheckConstraint("debit_account_id <> credit_account_id", name=op.f("ck_holds_accounts")),
        sa.CheckConstraint("status IN ('open', 'captured', 'voided', 'expired')", name=op.f("ck_holds_status")),
        sa.ForeignKeyConstraint(
            ["credit_account_id", "currency"],
            ["accounts.id", "accounts.currency"],
            name=op.f("fk_holds_credit_account_id_currency_accounts"),
        ),
        sa.ForeignKeyConstraint(
            ["debit_account_id", "currency"],
            ["accounts.id", "accounts.currency"],
            name=op.f("fk_holds_debit_account_id_currency_accounts"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sa.UniqueConstraint("initiator", "idempotency_key", name=op.f("uq_holds_initiator_idempotency_key")),
    )
    with op.batch_alter_table("holds") as batch_op:
        batch_op.create_index(
            "ix_holds_open",
            ["debit_account_id", "expires_at"],
            unique=False,
            sqlite_where=sa.text("status = 'open'"),
            postgresql_where=sa.text("status = 'open'"),
        )
        batch_op.create_index("ix_holds_debit_account_id", ["debit_account_id", "id"], unique=False)
        batch_op.create_index("ix_holds_credit_account_id", ["credit_account_id", "id"], unique=False)
    with op.batch_alter_table("transfers") as batch_op:
        batch_op.add_column(sa.Column("hold_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_transfers_hold_id_holds"), "holds", ["hold_id"], ["id"])
        batch_op.create_index(
            "uq_transfers_hold_id",
            ["hold_id"],
            unique=True,
            sqlite_where=sa.text("hold_id IS NOT NULL"),
            postgresql_where=sa.text("hold_id IS NOT NULL"),
        )
    with op.batch_alter_table("accounts") as batch_op:
        # With a default, for rows of the code before this.
        batch_op.add_column(sa.Column("held", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
        batch_op.create_check_constraint(batch_op.f("ck_accounts_held"), "held >= 0")
        batch_op.drop_constraint(batch_op.f("ck_accounts_balance"), type_="check")
        batch_op.create_check_constraint(
            batch_op.f("ck_accounts_balance"), "user_id IS NULL OR balance - held >= -credit_limit"
        )


def downgrade() -> None:
    """Undo: holds."""
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.drop_constraint(batch_op.f("ck_accounts_balance"), type_="check")
        batch_op.create_check_constraint(
            batch_op.f("ck_accounts_balance"), "user_id IS NULL OR balance >= -credit_limit"
        )
        batch_op.drop_constraint(batch_op.f("ck_accounts_held"), type_="check")
        batch_op.drop_column("held")
    with op.batch_alter_table("transfers") as batch_op:
        batch_op.drop_index("uq_transfers_hold_id")
        batch_op.drop_constraint(batch_op.f("fk_transfers_hold_id_holds"), type_="foreignkey")
        batch_op.drop_column("hold_id")
    op.drop_table("holds")
