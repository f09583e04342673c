"""The same bodies and answers with no database behind them: as fast as FastAPI can be."""

from fastapi import FastAPI

from models import DebitedTransfer, Registration, RegistrationAnswer, TransferRequest, UserPublic, now
from tokens import make_token

app = FastAPI()


@app.post("/register", status_code=201)
async def register(registration: Registration) -> RegistrationAnswer:
    """Store nothing."""
    user = UserPublic.model_construct(id=1, status="active", created_at=now(), **registration.__dict__)
    return RegistrationAnswer.model_construct(user=user, access_token=make_token())


@app.post("/transfers", status_code=201)
async def transfer(transfer: TransferRequest) -> DebitedTransfer:
    """Move nothing."""
    return DebitedTransfer.model_construct(
        id=1, currency="EUR", reverses_id=None, created_at=now(), debit_balance_after=0, **transfer.__dict__
    )
