"""What is asked of the contenders, and what must be stored of it."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from sqlmodel import SQLModel

from api.pages import Page
from models import (
    AccessToken,
    Account,
    DebitedTransfer,
    Entry,
    EntryPublic,
    HoldPublic,
    Profile,
    RegistrationAnswer,
    TransactionPublic,
    Transfer,
    User,
    UserPublic,
)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """One kind of request, sent over and over, as requests.lua and {kind}.sql write it, from all users in turn.

    With `hot`, all money goes to account 1. User 2 can send `body` to `path` (GET where there is none), and gets
    `answer` back.
    """

    name: str
    title: str
    kind: str
    path: str
    answer: type[BaseModel]
    body: dict[str, Any] | None = None
    hot: bool = False


ORDER = {"debit_account_id": 2, "credit_account_id": 1, "amount": 1}

ME = Workload("me", "GET /me", "me", "/me", UserPublic)
STATEMENT = Workload(
    "statement", "Statement: a page of 50 entries", "statement", "/accounts/2/entries", Page[EntryPublic]
)
SPREAD = Workload("spread", "Transfer between any two accounts", "transfer", "/transfers", DebitedTransfer, ORDER)
HOT = Workload("hot", "Transfer to one hot account", "transfer", "/transfers", DebitedTransfer, ORDER, hot=True)
REGISTRATION = Workload(
    "registration",
    "Registration: user, profile, first access token and account",
    "register",
    "/register",
    RegistrationAnswer,
    {"username": "first", "email": "first@example.com"},
)
HOLDS = Workload("holds", "Hold between any two accounts, then its capture", "hold", "/holds", HoldPublic, ORDER)
LINKED = Workload(
    "linked",
    "Transaction of two transfers between any accounts",
    "linked",
    "/transactions",
    TransactionPublic,
    {"transfers": [ORDER, ORDER]},
)
COMPARED = (ME, STATEMENT, SPREAD, HOT, REGISTRATION)
"""Those that others can be asked too."""

WORKLOADS = (*COMPARED, HOLDS, LINKED)

ROWS: dict[str, dict[type[SQLModel], int]] = {
    "register": {User: 1, Profile: 1, AccessToken: 1, Account: 1},
    "transfer": {Transfer: 1, Entry: 2},
}
"""How many rows of each table an answer stands for, by kind."""
