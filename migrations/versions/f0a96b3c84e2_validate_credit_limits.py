"""validate credit limits

Revision ID: f0a96b3c84e2
Revises: d1c83f5a7b46
Create Date: 2026-11-28 02:50:00+00:00
"""

from collections.abc import Sequence

from alembic import op

revision: str = "f0a96b3c84e2"
down_revision: str | Sequence[str] | None = "d1c83f5a7b46"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

CONSTRAINTS = {
    "ck_accounts_balance": "user_id IS NULL OR balance >= -credit_limit",
    "ck_accounts_credit_limit": "credit_limit >= 0",
}


def upgrade() -> None:
    """Validate credit limits."""
    if op.get_context().dialect.name == "postgresql":
        for name in CONSTRAINTS:
            op.execute(f"ALTER TABLE accounts VALIDATE CONSTRAINT {name}")


def downgrade() -> None:
    """Undo: validate credit limits."""
    if op.get_context().dialect.name == "postgresql":
        for name, condition in CONSTRAINTS.items():
            op.drop_constraint(op.f(name), "accounts", type_="check")
            op.create_check_constraint(op.f(name), "accounts", condition, postgresql_not_valid=True)
