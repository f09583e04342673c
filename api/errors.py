"""Refusals as problems: the one table from a refusal to its HTTP status, and how a call's errors are documented."""

from typing import Any
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from api import problems
from api.callers import operations_of
from api.problems import Problem
from refusals import (
    AccountExists,
    AccountNotActive,
    AccountNotFound,
    AlreadyReversed,
    BalanceLimit,
    BalanceNotZero,
    BatchRefused,
    BatchUnderWay,
    Conflict,
    CurrencyMismatch,
    CurrencyUnknown,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InsufficientFunds,
    Interruption,
    Locked,
    OperatorDisabled,
    OperatorOnly,
    OperatorTransfer,
    OutcomeUnknown,
    Overloaded,
    ReceiverOnly,
    Refusal,
    ReversalNotReversible,
    SameAccount,
    SchemaBehind,
    SchemaDiffers,
    ShuttingDown,
    TokenNotFound,
    TooManyRequests,
    TransferNotFound,
    Unauthenticated,
    UsernameTaken,
    UserNotActive,
    UserNotFound,
    UserOnly,
)
from schema import Schema, get_revision

STATUSES: dict[type[Refusal], int] = {
    Unauthenticated: 401,
    OperatorDisabled: 403,
    OperatorOnly: 403,
    UserNotActive: 403,
    ReceiverOnly: 403,
    OperatorTransfer: 403,
    UserOnly: 403,
    AccountNotFound: 404,
    TokenNotFound: 404,
    TransferNotFound: 404,
    UserNotFound: 404,
    AccountExists: 409,
    AccountNotActive: 409,
    AlreadyReversed: 409,
    BalanceLimit: 409,
    BalanceNotZero: 409,
    BatchRefused: 409,
    InsufficientFunds: 409,
    ReversalNotReversible: 409,
    UsernameTaken: 409,
    CurrencyMismatch: 422,
    CurrencyUnknown: 422,
    IdempotencyKeyReused: 422,
    SameAccount: 422,
    TooManyRequests: 429,
    BatchUnderWay: 503,
    Conflict: 503,
    DatabaseUnavailable: 503,
    Locked: 503,
    OutcomeUnknown: 503,
    Overloaded: 503,
    SchemaBehind: 503,
    SchemaDiffers: 503,
    ShuttingDown: 503,
}
problems.TYPES.update(problems.type_of(kind.__name__) for kind in STATUSES)
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}, 503: {"Retry-After": "1"}}


def problem_of(refusal: Refusal, *item: str | int) -> Problem:
    """The refusal as the caller reads it; `item` is its place in the body of a batch."""
    name = type(refusal).__name__
    errors: list[problems.FieldError] | list[problems.ItemError] | None = None
    unlisted = 0
    if isinstance(refusal, BatchRefused):
        errors = [
            problems.ItemError(index=index, type=problem.type, detail=problem.detail)
            for index, each in refusal.refused[: problems.MAX_LISTED]
            for problem in [problem_of(each)]
        ]
        unlisted = len(refusal.refused) - len(errors)
    elif refusal.field is not None:
        in_header = refusal.field == "idempotency_key" and not item
        field = "header.Idempotency-Key" if in_header else ".".join(map(str, ("body", *item, refusal.field)))
        errors = [problems.FieldError(field=field, detail=refusal.detail)]
    return problems.make_problem(STATUSES[type(refusal)], name, refusal.detail + problems.more(unlisted), errors)


# Made once, since a batch can have thousands of them; those that name a field are made anew.
PROBLEMS = {kind: problem_of(kind()) for kind in STATUSES}


async def handle_refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal."""
    assert isinstance(error, Refusal)
    differs = isinstance(error, SchemaBehind) and await is_migrated(request)
    problem = problem_of(SchemaDiffers() if differs else error)
    if problem.status == 503:
        path = quote(request.url.path)
        request.app.state.refusals.warn(
            problem.type, f"{request.method} {path}: {problem.title}{problems.cause_of(error)}"
        )
    if isinstance(error, TooManyRequests):
        return problems.respond(problem, {"Retry-After": str(error.retry_after)})
    return problems.respond(problem, HEADERS.get(problem.status))


async def is_migrated(request: Request) -> bool:
    """Return True if the database says that it is migrated to the revision of this code, or further."""
    try:
        revision = await operations_of(request).read(get_revision)
    except Interruption:
        return False
    schema: Schema = request.app.state.schema
    return schema.compare(revision).status != "behind"


def documented(
    *refusals: type[Refusal] | Refusal, parameters: bool = True, body: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of a call's errors: its refusals, and those that any call may meet."""
    examples = [problem_of(each if isinstance(each, Refusal) else each()) for each in (*refusals, *ALWAYS)]
    examples.append(problems.INTERNAL_ERROR)
    if parameters or body:
        examples.append(problems.INVALID_REQUEST)
    if body:
        examples += [problems.INVALID_JSON, problems.FRAMEWORK_PROBLEMS[400]]
        examples += [problems.CONTENT_TOO_LARGE, problems.UNSUPPORTED_MEDIA_TYPE]
    responses = problems.document(examples)
    for status in HEADERS.keys() & responses.keys():
        responses[status]["headers"] = {
            name: {"schema": {"type": "string"}, "example": value} for name, value in HEADERS[status].items()
        }
    return responses


ALWAYS = (DatabaseUnavailable, Locked, Overloaded, SchemaBehind, SchemaDiffers, ShuttingDown, Conflict)
USER_ONLY = (Unauthenticated, UserOnly, UserNotActive, TooManyRequests)
OPERATOR_ONLY = (Unauthenticated, OperatorOnly, OperatorDisabled, UserNotActive, TooManyRequests)
USER_OR_OPERATOR = (Unauthenticated, UserNotActive, TooManyRequests)
TRANSFER = (
    AccountNotFound,
    AccountNotActive,
    InsufficientFunds,
    BalanceLimit,
    IdempotencyKeyReused,
    OutcomeUnknown,
)
