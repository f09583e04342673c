"""A database as it is after a while, written by SQL alone: a million users in a few minutes."""

from typing import Any

from sqlalchemy import bindparam, text

from db.engines import create_migration_engine
from db.statements import table_of
from models import User, now
from tokens import hash_secret

DEPOSIT = 10**9
"""Minor units: no account runs out of money."""

# User i has account i and the token svp_bench_i, which requests.lua and transfer.sql spell too. The system
# account comes after those. Transfer i is the deposit to account i; then each account pays the next one, over and over.
USERS = """
INSERT INTO users (username, email, created_at) {numbers}
SELECT 'user' || i, 'user' || i || '@example.com', :moment FROM numbers;
INSERT INTO profiles (user_id, status) {numbers} SELECT i, 'active' FROM numbers;
INSERT INTO access_tokens (user_id, token_hash, created_at) {numbers} SELECT i, {token_hash}, :moment FROM numbers;
INSERT INTO accounts (user_id, currency, balance, version, updated_at) {numbers}
SELECT i, 'EUR', {deposit}, 1 + 2 * {payments}, :moment FROM numbers;
INSERT INTO accounts (user_id, currency, balance, version, updated_at)
VALUES (NULL, 'EUR', CAST(-{deposit} AS BIGINT) * {users}, {users}, :moment);
INSERT INTO transfers (debit_account_id, credit_account_id, currency, amount, initiator, created_at) {numbers}
SELECT {users} + 1, i, 'EUR', {deposit}, 0, :moment FROM numbers;
INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at) {numbers}
SELECT i, 1, i, {deposit}, {deposit}, :moment FROM numbers;
INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at) {numbers}
SELECT {users} + 1, i, i, -{deposit}, -{deposit} * i, :moment FROM numbers
"""
PAYMENT = """
INSERT INTO transfers (debit_account_id, credit_account_id, currency, amount, initiator, created_at) {numbers}
SELECT i, i % {users} + 1, 'EUR', 1, i, :moment FROM numbers;
INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at) {numbers}
SELECT i, 2 * {payment}, {payment} * {users} + i, -1, {deposit} - 1, :moment FROM numbers;
INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at) {numbers}
SELECT i % {users} + 1, 2 * {payment} + 1, {payment} * {users} + i, 1, {deposit}, :moment FROM numbers
"""
NUMBERS = """
WITH RECURSIVE numbers (i) AS (
    SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM numbers WHERE i < {users}
)
"""


def bearer_token(user_id: int) -> str:
    """The secret of a user's token."""
    return f"svp_bench_{user_id}"


def fill_database(url: str, users: int, payments: int) -> None:
    """Fill an empty database with users who each hold DEPOSIT, and have each made and got so many payments."""
    engine = create_migration_engine(url)
    token_hash = "encode(sha256(convert_to('svp_bench_' || i, 'UTF8')), 'hex')"
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            token_hash = "token_hash(i)"
            driver: Any = connection.connection.driver_connection
            driver.create_function("token_hash", 1, lambda user: hash_secret(bearer_token(user)), deterministic=True)
        else:
            # The rows refer to each other rightly, and the audit proves it; to check each of them would take long.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        statements = USERS
        for payment in range(payments + 1):
            values = {"users": users, "payments": payments, "payment": payment, "deposit": DEPOSIT}
            numbers = NUMBERS.format(**values)
            for statement in statements.format(numbers=numbers, token_hash=token_hash, **values).split(";"):
                moment = bindparam("moment", now(), type_=table_of(User).c.created_at.type)
                connection.execute(text(statement).bindparams(moment) if ":moment" in statement else text(statement))
            statements = PAYMENT
