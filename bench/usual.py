"""The usual way: what its two kinds share, which differ only in where they wait. Savepoint's tables and answers."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from fastapi import HTTPException
from sqlmodel import col, select

from api.pages import Page, encode_cursor
from ledger import BALANCE_MAX
from models import (
    AccessToken,
    Account,
    DebitedTransfer,
    Entry,
    EntryPublic,
    Profile,
    Registration,
    RegistrationAnswer,
    Transfer,
    TransferRequest,
    User,
    UserPublic,
    now,
)
from tokens import hash_secret

ASYNC_DRIVER = "asyncpg" if find_spec("asyncpg") else "psycopg"
"""What most take, where it is installed."""

LIMIT = 50
"""Entries on a page of a statement."""


HASHES = {"registration_key_hash", "registration_content_hash"}


def new_user(registration: Registration) -> User:
    """The user who registers."""
    return User(**registration.model_dump(), created_at=now())


def belongings(user: User, access_token: str) -> list[Profile | AccessToken | Account]:
    """What a user has from the beginning."""
    assert user.id is not None
    return [
        Profile(user_id=user.id, status="active"),
        AccessToken(user_id=user.id, token_hash=hash_secret(access_token), created_at=user.created_at),
        Account(user_id=user.id, currency="EUR"),
    ]


def show_registration(user: User, access_token: str) -> RegistrationAnswer:
    """The answer to a registration."""
    return RegistrationAnswer.model_construct(user=show_user(user, "active"), access_token=access_token)


def show_user(user: User, status: str) -> UserPublic:
    """The user; as in Savepoint, what was validated at the door is not validated again."""
    return UserPublic.model_construct(status=status, **user.model_dump(exclude=HASHES))


def token_query(access_token: str) -> Any:
    """SELECT for admit."""
    return (
        select(AccessToken, Profile.status)
        .join(Profile, col(Profile.user_id) == AccessToken.user_id)
        .where(AccessToken.token_hash == hash_secret(access_token))
    )


def user_query(access_token: str) -> Any:
    """SELECT for admit, with the user."""
    return token_query(access_token).add_columns(User).join(User, col(User.id) == AccessToken.user_id)


def admit(row: Any) -> int:
    """The id of the active user whose token this is."""
    token, status = row[:2] if row else (None, None)
    if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now()):
        raise HTTPException(401, "The token is unknown, was revoked, or has expired")
    if status != "active":
        raise HTTPException(403, "The user is not active")
    user_id: int = token.user_id
    return user_id


def lock_query(request: TransferRequest) -> Any:
    """SELECT for pick_accounts."""
    return (
        select(Account)
        .where(col(Account.id).in_([request.debit_account_id, request.credit_account_id]))
        # In id order, so that opposite transfers cannot deadlock.
        .order_by(col(Account.id))
        .with_for_update()
    )


def pick_accounts(rows: Iterable[Account], request: TransferRequest, caller: int) -> tuple[Account, Account]:
    """The debit and the credit account."""
    accounts = {account.id: account for account in rows}
    debit, credit = accounts.get(request.debit_account_id), accounts.get(request.credit_account_id)
    if debit is None or credit is None or debit.user_id != caller or credit.user_id is None:
        raise HTTPException(404, "There is no such account")
    return debit, credit


def statuses_query(debit: Account, credit: Account) -> Any:
    """SELECT for check_transfer."""
    return select(Profile.status).where(col(Profile.user_id).in_([debit.user_id, credit.user_id]))


def check_transfer(request: TransferRequest, debit: Account, credit: Account, statuses: Iterable[str]) -> None:
    """Refuse what Savepoint refuses."""
    if debit is credit:
        raise HTTPException(422, "The accounts are the same")
    if debit.currency != credit.currency:
        raise HTTPException(422, "The currencies of the accounts differ")
    if any(status != "active" for status in statuses):
        raise HTTPException(409, "One of the users is not active")
    if debit.balance < request.amount:
        raise HTTPException(409, "The debit account holds less")
    if credit.balance + request.amount > BALANCE_MAX:
        raise HTTPException(409, "The credit account cannot hold more")


def new_transfer(request: TransferRequest, caller: int, debit: Account, credit: Account) -> Transfer:
    """The transfer, never before an account's newest entry, so that the entries of an account are in order."""
    moment = max([now(), *(each.updated_at for each in (debit, credit) if each.updated_at)])
    return Transfer(**request.model_dump(), currency=debit.currency, initiator=caller, created_at=moment)


def post(transfer: Transfer, debit: Account, credit: Account) -> list[Entry]:
    """Move the money; the entries that tell of it."""
    assert transfer.id is not None
    entries = []
    for account, amount in ((debit, -transfer.amount), (credit, transfer.amount)):
        assert account.id is not None
        account.balance += amount
        account.version += 1
        account.updated_at = transfer.created_at
        entry = Entry(
            account_id=account.id,
            seq=account.version,
            transfer_id=transfer.id,
            amount=amount,
            balance_after=account.balance,
            created_at=transfer.created_at,
        )
        entries.append(entry)
    return entries


def show_transfer(transfer: Transfer, debit: Account) -> DebitedTransfer:
    """The answer to a transfer."""
    shown = transfer.model_dump(exclude={"initiator", "idempotency_key"})
    return DebitedTransfer.model_construct(**shown, debit_balance_after=debit.balance)


def check_owner(account: Account | None, caller: int) -> None:
    """Refuse to show another user's account."""
    if account is None or account.user_id != caller:
        raise HTTPException(404, "There is no such account")


def statement_query(account_id: int) -> Any:
    """SELECT for show_statement: newest first, and one more to know whether there is another page."""
    return (
        select(Entry, Transfer)
        .join(Transfer)
        .where(Entry.account_id == account_id)
        .order_by(col(Entry.seq).desc())
        .limit(LIMIT + 1)
    )


def show_statement(rows: Sequence[tuple[Entry, Transfer]]) -> Page[EntryPublic]:
    """The newest page of a statement."""
    entries = [
        EntryPublic.model_construct(
            **entry.model_dump(exclude={"account_id"}),
            reverses_id=transfer.reverses_id,
            counterparty_account_id=transfer.credit_account_id if entry.amount < 0 else transfer.debit_account_id,
            memo=transfer.memo,
        )
        for entry, transfer in rows
    ]
    return page_of(entries)


def page_of(entries: list[EntryPublic]) -> Page[EntryPublic]:
    """A page of the entries, of which there is one more if there is a next page."""
    following = encode_cursor(entries[LIMIT - 1].seq) if len(entries) > LIMIT else None
    return Page.model_construct(items=entries[:LIMIT], next=following)
