"""accounts, transfers and entries

Revision ID: e8a4c05b7d31
Revises: d27f60b8e913
Create Date: 2026-11-23 01:30:00+00:00
"""

import logging
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import context, op

from settings import Settings

revision: str = "e8a4c05b7d31"
down_revision: str | Sequence[str] | None = "d27f60b8e913"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

logger = logging.getLogger("alembic.runtime.migration")

# An account without money, and the entries of a transfer that is counted itself, are no loss.
COUNTS_AS_LOSS = {"accounts": "balance <> 0 AND user_id IS NOT NULL", "entries": "FALSE"}

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CHUNK = 10_000
"""For how many users an account is opened at a time."""


def upgrade() -> None:
    """Accounts, transfers and entries; every user gets an account in DEFAULT_CURRENCY."""
    op.create_table(
        "accounts",
        sa.Column("id", Id, nullable=False),
        sa.Column("user_id", Id, nullable=True),
        sa.Column("currency", sa.String(length=12), nullable=False),
        sa.Column("balance", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("user_id IS NULL OR balance >= 0", name=op.f("ck_accounts_balance")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_accounts_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("id", "currency", name=op.f("uq_accounts_id_currency")),
        sa.UniqueConstraint("user_id", "currency", name=op.f("uq_accounts_user_id_currency")),
    )
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.create_index(
            "uq_accounts_system_currency",
            ["currency"],
            unique=True,
            sqlite_where=sa.text("user_id IS NULL"),
            postgresql_where=sa.text("user_id IS NULL"),
        )
    op.create_table(
        "transfers",
        sa.Column("id", Id, nullable=False),
        sa.Column("debit_account_id", Id, nullable=False),
        sa.Column("credit_account_id", Id, nullable=False),
        sa.Column("currency", sa.String(length=12), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("memo", sa.String(length=200), nullable=True),
        sa.Column("reverses_id", Id, nullable=True),
        sa.Column("initiator", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_transfers_amount")),
        sa.CheckConstraint("debit_account_id <> credit_account_id", name=op.f("ck_transfers_accounts")),
        sa.ForeignKeyConstraint(
            ["debit_account_id", "currency"],
            ["accounts.id", "accounts.currency"],
            name=op.f("fk_transfers_debit_account_id_currency_accounts"),
        ),
        sa.ForeignKeyConstraint(
            ["credit_account_id", "currency"],
            ["accounts.id", "accounts.currency"],
            name=op.f("fk_transfers_credit_account_id_currency_accounts"),
        ),
        sa.ForeignKeyConstraint(["reverses_id"], ["transfers.id"], name=op.f("fk_transfers_reverses_id_transfers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
        sa.UniqueConstraint("initiator", "idempotency_key", name=op.f("uq_transfers_initiator_idempotency_key")),
        sa.UniqueConstraint("reverses_id", name=op.f("uq_transfers_reverses_id")),
    )
    op.create_table(
        "entries",
        sa.Column("account_id", Id, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("transfer_id", Id, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("balance_after", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_entries_amount")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_entries_account_id_accounts")),
        sa.ForeignKeyConstraint(["transfer_id"], ["transfers.id"], name=op.f("fk_entries_transfer_id_transfers")),
        sa.PrimaryKeyConstraint("account_id", "seq", name=op.f("pk_entries")),
        sa.UniqueConstraint("transfer_id", "account_id", name=op.f("uq_entries_transfer_id_account_id")),
    )
    with op.batch_alter_table("entries") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_entries_account_id_created_at_seq"), ["account_id", "created_at", "seq"], unique=False
        )
    open_accounts(Settings().default_currency)


def open_accounts(currency: str) -> None:
    """Open an account for every user who is there already, and tell how far it is."""
    open_some = sa.text(
        "INSERT INTO accounts (user_id, currency, balance, version)"
        " SELECT id, :currency, 0, 0 FROM users WHERE id > :first AND id <= :last ORDER BY id"
    )
    if context.is_offline_mode():
        op.execute(open_some.bindparams(currency=currency, first=0, last=2**63 - 1))
        return
    connection = op.get_bind()
    total = connection.scalar(sa.text("SELECT count(*) FROM users")) or 0
    end_of_chunk = sa.text("SELECT max(id) FROM (SELECT id FROM users WHERE id > :first ORDER BY id LIMIT :chunk) AS c")
    first = done = 0
    while (last := connection.scalar(end_of_chunk, {"first": first, "chunk": CHUNK})) is not None:
        done += connection.execute(open_some, {"currency": currency, "first": first, "last": last}).rowcount
        logger.info("Opened %s accounts for %s of %s users", currency, f"{done:,}", f"{total:,}")
        first = last


def downgrade() -> None:
    """Undo: accounts, transfers and entries."""
    with op.batch_alter_table("entries") as batch_op:
        batch_op.drop_index(batch_op.f("ix_entries_account_id_created_at_seq"))
    op.drop_table("entries")
    op.drop_table("transfers")
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.drop_index("uq_accounts_system_currency")
    op.drop_table("accounts")
