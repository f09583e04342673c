"""The usual way: a session per request, and the ORM. Reads DATABASE_URL."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection, event
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, create_engine, select

from ledger import BALANCE_MAX
from models import (
    AccessToken,
    Account,
    DebitedTransfer,
    Entry,
    Profile,
    Registration,
    RegistrationAnswer,
    Transfer,
    TransferRequest,
    User,
    UserPublic,
    now,
)
from tokens import hash_secret, make_token

# A connection for each of the 40 threads that run `def` endpoints, so that none waits for one.
engine = create_engine(os.environ["DATABASE_URL"], pool_size=40, max_overflow=0)

if engine.dialect.name == "sqlite":

    @event.listens_for(engine, "connect")
    def prepare_sqlite(dbapi_connection: Any, _: Any) -> None:
        """As durable as Savepoint, and patient enough that no writer is refused under load."""
        dbapi_connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        """Lock before the first read, since SQLite has no SELECT … FOR UPDATE: otherwise updates would be lost."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def get_session() -> Iterator[Session]:
    """This request's session."""
    # Not expired: the answer would cost another SELECT.
    with Session(engine, expire_on_commit=False) as session:
        yield session


OpenSession = Annotated[Session, Depends(get_session)]
Bearer = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]

app = FastAPI()


@app.post("/register", status_code=201)
def register(registration: Registration, session: OpenSession) -> RegistrationAnswer:
    """Store user, profile, first token and account."""
    user = User(**registration.model_dump(), created_at=now())
    access_token = make_token()
    try:
        session.add(user)
        session.flush()
        assert user.id is not None
        session.add(Profile(user_id=user.id, status="active"))
        session.add(AccessToken(user_id=user.id, token_hash=hash_secret(access_token), created_at=user.created_at))
        session.add(Account(user_id=user.id, currency="EUR"))
        session.commit()
    except IntegrityError:
        raise HTTPException(409, "This username is taken") from None
    # As in Savepoint, what was validated at the door is not validated again.
    shown = UserPublic.model_construct(status="active", **user.model_dump(exclude={"registration_key_hash"}))
    return RegistrationAnswer.model_construct(user=shown, access_token=access_token)


@app.post("/transfers", status_code=201)
def transfer(request: TransferRequest, session: OpenSession, bearer: Bearer) -> DebitedTransfer:
    """Move the money, and write what it left on both accounts."""
    # Not in a dependency of its own, which would wait for a second thread while it holds a connection.
    caller = authenticate(session, bearer.credentials)
    debit, credit = lock_accounts(session, request)
    check_transfer(session, request, caller, debit, credit)
    # Never before an account's newest entry, so that the entries of an account are in order.
    moment = max([now(), *(each.updated_at for each in (debit, credit) if each.updated_at)])
    transfer = Transfer(**request.model_dump(), currency=debit.currency, initiator=caller, created_at=moment)
    session.add(transfer)
    session.flush()
    for account, amount in ((debit, -request.amount), (credit, request.amount)):
        account.balance += amount
        account.version += 1
        account.updated_at = moment
        assert account.id is not None
        assert transfer.id is not None
        entry = Entry(
            account_id=account.id,
            seq=account.version,
            transfer_id=transfer.id,
            amount=amount,
            balance_after=account.balance,
            created_at=moment,
        )
        session.add(entry)
    session.commit()
    shown = transfer.model_dump(exclude={"initiator", "idempotency_key"})
    return DebitedTransfer.model_construct(**shown, debit_balance_after=debit.balance)


def authenticate(session: Session, access_token: str) -> int:
    """The id of the active user whose token this is."""
    row = session.exec(
        select(AccessToken, Profile.status)
        .join(Profile, col(Profile.user_id) == AccessToken.user_id)
        .where(AccessToken.token_hash == hash_secret(access_token))
    ).one_or_none()
    token, status = row or (None, None)
    if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= now()):
        raise HTTPException(401, "The token is unknown, was revoked, or has expired")
    if status != "active":
        raise HTTPException(403, "The user is not active")
    return token.user_id


def lock_accounts(session: Session, request: TransferRequest) -> tuple[Account, Account]:
    """The debit and the credit account, locked."""
    rows = session.exec(
        select(Account)
        .where(col(Account.id).in_([request.debit_account_id, request.credit_account_id]))
        # In id order, so that opposite transfers cannot deadlock.
        .order_by(col(Account.id))
        .with_for_update()
    )
    accounts = {account.id: account for account in rows}
    if not {request.debit_account_id, request.credit_account_id} <= accounts.keys():
        raise HTTPException(404, "There is no such account")
    return accounts[request.debit_account_id], accounts[request.credit_account_id]


def check_transfer(session: Session, request: TransferRequest, caller: int, debit: Account, credit: Account) -> None:
    """Refuse what Savepoint refuses."""
    if debit.user_id != caller or credit.user_id is None:
        raise HTTPException(404, "There is no such account")
    if debit is credit:
        raise HTTPException(422, "The accounts are the same")
    if debit.currency != credit.currency:
        raise HTTPException(422, "The currencies of the accounts differ")
    statuses = session.exec(select(Profile.status).where(col(Profile.user_id).in_([debit.user_id, credit.user_id])))
    if any(status != "active" for status in statuses):
        raise HTTPException(409, "One of the users is not active")
    if debit.balance < request.amount:
        raise HTTPException(409, "The debit account holds less")
    if credit.balance + request.amount > BALANCE_MAX:
        raise HTTPException(409, "The credit account cannot hold more")
