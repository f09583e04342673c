"""The usual way: `def` routes, a session per request, and the ORM. Reads DATABASE_URL."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection, event
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, create_engine

from api.pages import Page
from bench import usual
from models import Account, DebitedTransfer, EntryPublic, Registration, RegistrationAnswer, TransferRequest, UserPublic
from tokens import make_token

# A connection for each of the 40 threads that run `def` endpoints, so that none waits for one.
engine = create_engine(os.environ["DATABASE_URL"], pool_size=40, max_overflow=0)
reader = engine.execution_options(only_reads=True)

if engine.dialect.name == "sqlite":

    @event.listens_for(engine, "connect")
    def prepare_sqlite(dbapi_connection: Any, _: Any) -> None:
        """As durable as Savepoint, and patient enough that no writer is refused under load."""
        dbapi_connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Lock before the first read of a write, since SQLite has no FOR UPDATE: updates would be lost."""
        only_reads = connection.get_execution_options().get("only_reads")
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


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
    user = usual.new_user(registration)
    access_token = make_token()
    try:
        session.add(user)
        session.flush()
        session.add_all(usual.belongings(user, access_token))
        session.commit()
    except IntegrityError:
        raise HTTPException(409, "This username is taken") from None
    return usual.show_registration(user, access_token)


@app.post("/transfers", status_code=201)
def transfer(request: TransferRequest, session: OpenSession, bearer: Bearer) -> DebitedTransfer:
    """Move the money, and write what it left on both accounts."""
    # Not in a dependency of its own, which would wait for a second thread while it holds a connection.
    caller = usual.admit(session.exec(usual.token_query(bearer.credentials)).one_or_none())
    debit, credit = usual.pick_accounts(session.exec(usual.lock_query(request)), request, caller)
    usual.check_transfer(request, debit, credit, session.exec(usual.statuses_query(debit, credit)))
    transfer = usual.new_transfer(request, caller, debit, credit)
    session.add(transfer)
    session.flush()
    session.add_all(usual.post(transfer, debit, credit))
    session.commit()
    return usual.show_transfer(transfer, debit)


# What only reads gives its connection back before the answer waits for a thread to be written in: sessions that stay
# open until then use up the connections that all threads wait for.


@app.get("/me")
def me(bearer: Bearer) -> UserPublic:
    """The user whose token this is."""
    with Session(reader) as session:
        row = session.exec(usual.user_query(bearer.credentials)).one_or_none()
        usual.admit(row)
        return usual.show_user(row.User, row.status)


@app.get("/accounts/{id}/entries")
def statement(id: int, bearer: Bearer) -> Page[EntryPublic]:
    """The newest page of an account's statement."""
    with Session(reader) as session:
        caller = usual.admit(session.exec(usual.token_query(bearer.credentials)).one_or_none())
        usual.check_owner(session.get(Account, id), caller)
        return usual.show_statement(session.exec(usual.statement_query(id)).all())
