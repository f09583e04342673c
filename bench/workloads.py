"""What is asked of the contenders, on which data, and what must be stored of it."""

from dataclasses import dataclass
from typing import Any

from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

import crud
from database import Database
from models import (
    AccessToken,
    Account,
    Answer,
    DebitedTransfer,
    Entry,
    Profile,
    RegistrationAnswer,
    Transfer,
    User,
    now,
)
from settings import Settings
from statements import insert_rows
from tokens import hash_secret


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request, sent over and over, as requests.lua and {kind}.sql write it.

    `accounts` is on how many users' accounts, each holding DEPOSIT; with `hot`, all money goes to account 1. `first` is
    a body that user 2 can send, `answer` what comes back, `rows` how many rows of each table an answer stands for.
    """

    name: str
    title: str
    kind: str
    path: str
    first: dict[str, Any]
    answer: type[Answer]
    rows: dict[type[SQLModel], int]
    accounts: int = 0
    hot: bool = False

    @property
    def template(self) -> str:
        """The name of the database that each run begins with a copy of."""
        return f"accounts_{self.accounts}"


def transfers(name: str, title: str, *, hot: bool) -> Workload:
    """Transfers between 10,000 accounts, each by the owner of the debit account."""
    first = {"debit_account_id": 2, "credit_account_id": 1, "amount": 1}
    rows: dict[type[SQLModel], int] = {Transfer: 1, Entry: 2}
    return Workload(name, title, "transfer", "/transfers", first, DebitedTransfer, rows, accounts=10_000, hot=hot)


WORKLOADS = (
    Workload(
        "registration",
        "Registration: user, profile, first access token and account",
        "register",
        "/register",
        {"username": "first", "email": "first@example.com"},
        RegistrationAnswer,
        {User: 1, Profile: 1, AccessToken: 1, Account: 1},
    ),
    transfers("spread", "Transfer between two of 10,000 accounts", hot=False),
    transfers("hot", "Transfer from one of 10,000 accounts, always to the same one", hot=True),
)

DEPOSIT = 10**9
"""Minor units: no account runs out of money."""


def bearer_token(user_id: int) -> str:
    """The secret of a user's token; requests.lua and transfer.sql spell it too."""
    return f"svp_bench_{user_id}"


async def fill_database(url: str, accounts: int) -> None:
    """Fill an empty database with as many users, whose ids are those of their accounts too, and pay money in."""
    database = Database(Settings(database_url=url))
    ids = range(1, accounts + 1)
    await database.write(insert_users, ids)
    await database.write(crud.make_payments, [crud.Payment(id, DEPOSIT, None, None, is_payout=False) for id in ids])
    await database.close()


async def insert_users(session: AsyncSession, ids: range) -> None:
    """Insert users who will have these ids, each with an active profile, a token and an account."""
    users = [{"username": f"user{id}", "email": f"user{id}@example.com"} for id in ids]
    tokens = [{"user_id": id, "token_hash": hash_secret(bearer_token(id))} for id in ids]
    async with session.begin():
        await insert_rows(session, User, users, created_at=now())
        await insert_rows(session, Profile, [{"user_id": id} for id in ids], status="active")
        await insert_rows(session, AccessToken, tokens, created_at=now())
        await insert_rows(session, Account, [{"user_id": id} for id in ids], currency="EUR")
