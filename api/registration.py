"""Sign-up: the first call of a user."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from pydantic import WithJsonSchema
from starlette.responses import Response

import crud
from api.callers import actor_of, allow_registration, operations_of
from api.errors import OPERATOR_ONLY, documented
from api.fast_route import fast
from api.idempotency import REPLAYED, Unquoted, mark_replay
from api.strict_route import StrictRoute
from fields import RegistrationKey
from models import KeyedRegistration, Registration, RegistrationAnswer
from refusals import IdempotencyKeyReused, OutcomeUnknown, UsernameTaken

RANDOM_UUID = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[47][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
# With the format uuid, openapi-python-client makes a UUID of it, which httpx refuses in a header.
HeaderKey = Annotated[RegistrationKey, WithJsonSchema({"type": "string", "pattern": RANDOM_UUID})]

router = APIRouter(route_class=StrictRoute, tags=["registration"])


@router.post(
    "/register",
    status_code=201,
    summary="Register a user",
    dependencies=[Depends(allow_registration)],
    responses=REPLAYED | documented(UsernameTaken, IdempotencyKeyReused, OutcomeUnknown, *OPERATOR_ONLY, body=True),
    openapi_extra={"security": [{}, {"OperatorToken": ["users"]}]},
)
@fast
async def register(
    registration: Registration,
    request: Request,
    response: Response,
    idempotency_key: Annotated[
        HeaderKey | None,
        Header(alias="Idempotency-Key", description="A random UUID (version 4 or 7) makes a retry safe"),
        Unquoted,
    ] = None,
) -> RegistrationAnswer:
    """User, profile, first token and account are stored together or not at all.

    Sent again with the same Idempotency-Key within 15 minutes, it returns the same user with a new token, unless the
    user has been suspended or closed.

    The server's settings may limit registration to the operator, or to a number of users for each client address.
    """
    registered = await operations_of(request).write(
        crud.register_users,
        crud.with_actor(
            KeyedRegistration.model_construct(**registration.__dict__, idempotency_key=idempotency_key),
            actor_of(request),
        ),
    )
    mark_replay(response, registered.replayed)
    return RegistrationAnswer.model_construct(user=registered.user, access_token=registered.access_token)
