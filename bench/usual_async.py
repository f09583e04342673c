"""The usual way with asyncio: `async def` routes, an AsyncSession per request, and the ORM. Reads DATABASE_URL."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from bench import usual
from models import DebitedTransfer, Registration, RegistrationAnswer, TransferRequest, UserPublic
from tokens import make_token

engine = create_async_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{usual.ASYNC_DRIVER}"),
    pool_size=40,
    max_overflow=0,
)


async def get_session() -> AsyncIterator[AsyncSession]:
    """This request's session."""
    # Not expired: the answer would cost another SELECT.
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session


OpenSession = Annotated[AsyncSession, Depends(get_session)]
Bearer = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]

app = FastAPI()


@app.post("/register", status_code=201)
async def register(registration: Registration, session: OpenSession) -> RegistrationAnswer:
    """Store user, profile, first token and account."""
    user = usual.new_user(registration)
    access_token = make_token()
    try:
        session.add(user)
        await session.flush()
        session.add_all(usual.belongings(user, access_token))
        await session.commit()
    except IntegrityError:
        raise HTTPException(409, "This username is taken") from None
    return usual.show_registration(user, access_token)


@app.post("/transfers", status_code=201)
async def transfer(request: TransferRequest, session: OpenSession, bearer: Bearer) -> DebitedTransfer:
    """Move the money, and write what it left on both accounts."""
    caller = usual.admit((await session.exec(usual.token_query(bearer.credentials))).one_or_none())
    debit, credit = usual.pick_accounts(await session.exec(usual.lock_query(request)), request, caller)
    usual.check_transfer(request, debit, credit, await session.exec(usual.statuses_query(debit, credit)))
    transfer = usual.new_transfer(request, caller, debit, credit)
    session.add(transfer)
    await session.flush()
    session.add_all(usual.post(transfer, debit, credit))
    await session.commit()
    return usual.show_transfer(transfer, debit)


@app.get("/me")
async def me(session: OpenSession, bearer: Bearer) -> UserPublic:
    """The user whose token this is."""
    row = (await session.exec(usual.user_query(bearer.credentials))).one_or_none()
    usual.admit(row)
    return usual.show_user(row.User, row.status)
