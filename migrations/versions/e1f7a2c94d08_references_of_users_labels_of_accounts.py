"""references of users, labels of accounts

Revision ID: e1f7a2c94d08
Revises: d1c83f5a7b46
Create Date: 2026-11-28 04:30:00+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision: str = "e1f7a2c94d08"
down_revision: str | Sequence[str] | None = "d1c83f5a7b46"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# What every account was called before.
COUNTS_AS_LOSS = {"accounts.label": "label <> 'main'"}


def upgrade() -> None:
    """References of users, labels of accounts."""
    with op.batch_alter_table("users") as batch_op:
        batch_op.add_column(sa.Column("reference", sa.String(length=100), nullable=True))
        batch_op.add_column(sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True))
        batch_op.create_index("ix_users_email", ["email"], unique=False)
        batch_op.create_index(
            "uq_users_reference",
            ["reference"],
            unique=True,
            sqlite_where=sa.text("reference IS NOT NULL"),
            postgresql_where=sa.text("reference IS NOT NULL"),
        )
    with op.batch_alter_table("accounts") as batch_op:
        # With a default, for rows of the code before this.
        batch_op.add_column(sa.Column("label", sa.String(length=50), server_default="main", nullable=False))
        batch_op.create_unique_constraint(
            batch_op.f("uq_accounts_user_id_currency_label"), ["user_id", "currency", "label"]
        )
        batch_op.drop_constraint(batch_op.f("uq_accounts_user_id_currency"), type_="unique")


def downgrade() -> None:
    """Undo: references of users, labels of accounts. Raises CommandError while a user has two accounts in a currency."""
    if not op.get_context().as_sql:
        others = sa.text("SELECT count(*) FROM (SELECT 1 FROM accounts WHERE user_id IS NOT NULL "
                         "GROUP BY user_id, currency HAVING count(*) > 1) AS several")
        if several := op.get_bind().scalar(others):
            raise CommandError(
                f"Users with several accounts in a currency: {several:,}. The schema before this allows one. Nothing was "
                "changed. It cannot be undone while these accounts exist."
            )
    with op.batch_alter_table("accounts") as batch_op:
        batch_op.create_unique_constraint(batch_op.f("uq_accounts_user_id_currency"), ["user_id", "currency"])
        batch_op.drop_constraint(batch_op.f("uq_accounts_user_id_currency_label"), type_="unique")
        batch_op.drop_column("label")
    with op.batch_alter_table("users") as batch_op:
        batch_op.drop_index("uq_users_reference")
        batch_op.drop_index("ix_users_email")
        batch_op.drop_column("metadata")
        batch_op.drop_column("reference")
