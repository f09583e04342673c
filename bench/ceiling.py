"""The same bodies and answers with no database behind them: as fast as FastAPI can be."""

from fastapi import FastAPI

from api.pages import Page
from bench.usual import LIMIT, page_of
from models import DebitedTransfer, EntryPublic, Registration, RegistrationAnswer, TransferRequest, UserPublic, now
from tokens import make_token

app = FastAPI()

USER = UserPublic(id=1, username="user1", email="user1@example.com", status="active", created_at=now())
ENTRIES = [
    EntryPublic(
        seq=seq,
        amount=1,
        balance_after=1,
        transfer_id=1,
        reverses_id=None,
        counterparty_account_id=1,
        memo=None,
        created_at=now(),
    )
    for seq in range(LIMIT + 1, 0, -1)
]


@app.post("/register", status_code=201)
async def register(registration: Registration) -> RegistrationAnswer:
    """Store nothing."""
    user = UserPublic.model_construct(id=1, status="active", created_at=now(), **registration.__dict__)
    return RegistrationAnswer.model_construct(user=user, access_token=make_token())


@app.post("/transfers", status_code=201)
async def transfer(transfer: TransferRequest) -> DebitedTransfer:
    """Move nothing."""
    unused = dict.fromkeys(("asked_amount", "reverses_id", "transaction_id", "hold_id"))
    return DebitedTransfer.model_construct(
        id=1, currency="EUR", created_at=now(), debit_balance_after=0, **unused, **transfer.__dict__
    )


@app.get("/me")
async def me() -> UserPublic:
    """Look up nobody."""
    return USER


@app.get("/accounts/{id}/entries")
async def statement(id: int) -> Page[EntryPublic]:
    """Read nothing."""
    return page_of(ENTRIES)
