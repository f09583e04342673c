"""credit limits

Revision ID: d1c83f5a7b46
Revises: b7e4d90c2f15
Create Date: 2026-11-28 02:00:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision: str = "d1c83f5a7b46"
down_revision: str | Sequence[str] | None = "b7e4d90c2f15"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# The limit that every account had before.
COUNTS_AS_LOSS = {"accounts.credit_limit": "credit_limit <> 0"}


def upgrade() -> None:
    """Credit limits."""
    with op.batch_alter_table("accounts") as batch_op:
        # With a default, for rows of the code before this.
        batch_op.add_column(sa.Column("credit_limit", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
        batch_op.create_check_constraint(batch_op.f("ck_accounts_credit_limit"), "credit_limit >= 0")
        batch_op.drop_constraint(batch_op.f("ck_accounts_balance"), type_="check")
        batch_op.create_check_constraint(
            batch_op.f("ck_accounts_balance"), "user_id IS NULL OR balance >= -credit_limit"
        )


def downgrade() -> None:
    """Undo: credit limits. Raises CommandError while an account owes money."""
    if not op.get_context().as_sql:
        debts = sa.text("SELECT count(*) FROM accounts WHERE user_id IS NOT NULL AND balance < 0")
        if owing := op.get_bind().scalar(debts):
            raise CommandError(
                f"Accounts that owe money: {owing:,}. The schema before this allows no such balance. Nothing was changed. "
                "Have it paid back, or deposit it, and try again."
            )
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.drop_constraint(batch_op.f("ck_accounts_balance"), type_="check")
        batch_op.create_check_constraint(batch_op.f("ck_accounts_balance"), "user_id IS NULL OR balance >= 0")
        batch_op.drop_constraint(batch_op.f("ck_accounts_credit_limit"), type_="check")
        batch_op.drop_column("credit_limit")
