"""The usual way: a session per request, and the ORM. Reads DATABASE_URL."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, create_engine

from models import AccessToken, Profile, Registration, RegistrationAnswer, User, UserPublic, now
from tokens import hash_secret, make_token

# A connection for each of the 40 threads that run `def` endpoints, so that none waits for one.
engine = create_engine(os.environ["DATABASE_URL"], pool_size=40, max_overflow=0)

if engine.dialect.name == "sqlite":

    @event.listens_for(engine, "connect")
    def prepare_sqlite(dbapi_connection: Any, _: Any) -> None:
        """As durable as Savepoint, and patient enough that no writer is refused under load."""
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            dbapi_connection.execute(f"PRAGMA {pragma}")


def get_session() -> Iterator[Session]:
    """This request's session."""
    # Not expired: the answer would cost another SELECT.
    with Session(engine, expire_on_commit=False) as session:
        yield session


app = FastAPI()


@app.post("/register", status_code=201)
def register(registration: Registration, session: Annotated[Session, Depends(get_session)]) -> RegistrationAnswer:
    """Store user, profile and first token."""
    user = User(**registration.model_dump(), created_at=now())
    access_token = make_token()
    try:
        session.add(user)
        session.flush()
        assert user.id is not None
        session.add(Profile(user_id=user.id, status="active"))
        session.add(AccessToken(user_id=user.id, token_hash=hash_secret(access_token), created_at=user.created_at))
        session.commit()
    except IntegrityError:
        raise HTTPException(409, "This username is taken") from None
    return show_answer(access_token, **user.model_dump(exclude={"registration_key_hash"}))


@app.post("/echo-register", status_code=201)
async def echo_register(registration: Registration) -> RegistrationAnswer:
    """The same answer, with nothing stored: as fast as FastAPI can be."""
    return show_answer(make_token(), id=1, created_at=now(), **registration.__dict__)


def show_answer(access_token: str, **user: Any) -> RegistrationAnswer:
    """What a registration answers; as in Savepoint, what was validated at the door is not validated again."""
    return RegistrationAnswer.model_construct(
        user=UserPublic.model_construct(status="active", **user), access_token=access_token
    )
