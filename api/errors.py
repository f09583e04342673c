"""Refusals as problems: the table of their HTTP statuses, and the OpenAPI description of a call's errors."""

from typing import Any

from fastapi import Request
from starlette.responses import Response

import metrics
import refusals
from api import problems
from api.callers import operations_of
from api.problems import Problem
from schema import Schema, get_revision

STATUSES: dict[type[refusals.Refusal], int] = {
    refusals.Unauthenticated: 401,
    refusals.OperatorDisabled: 403,
    refusals.OperatorOnly: 403,
    refusals.UserNotActive: 403,
    refusals.ReceiverOnly: 403,
    refusals.ScopeMissing: 403,
    refusals.KeyExceeded: 403,
    refusals.OperatorTransfer: 403,
    refusals.UserOnly: 403,
    refusals.AccountNotFound: 404,
    refusals.EventNotFound: 404,
    refusals.HoldNotFound: 404,
    refusals.KeyNotFound: 404,
    refusals.TokenNotFound: 404,
    refusals.TransferNotFound: 404,
    refusals.UserNotFound: 404,
    refusals.WebhookNotFound: 404,
    refusals.AccountExists: 409,
    refusals.AccountLimit: 409,
    refusals.AccountNotActive: 409,
    refusals.AlreadyReversed: 409,
    refusals.BalanceLimit: 409,
    refusals.BalanceNotZero: 409,
    refusals.UserErased: 409,
    refusals.UserNotClosed: 409,
    refusals.BatchRefused: 409,
    refusals.CreditInUse: 409,
    refusals.EventsOff: 409,
    refusals.EventUnknown: 409,
    refusals.HoldResolved: 409,
    refusals.InsufficientFunds: 409,
    refusals.KeyNameTaken: 409,
    refusals.ReferenceTaken: 409,
    refusals.ReversalNotReversible: 409,
    refusals.SecretJustMade: 409,
    refusals.SystemAccount: 409,
    refusals.TransactionRefused: 409,
    refusals.UsernameTaken: 409,
    refusals.VersionMismatch: 409,
    refusals.WebhookEnded: 409,
    refusals.WebhookLimit: 409,
    refusals.EventsPruned: 410,
    refusals.CurrencyMismatch: 422,
    refusals.CurrencyUnknown: 422,
    refusals.HoldExceeded: 422,
    refusals.IdempotencyKeyReused: 422,
    refusals.SameAccount: 422,
    refusals.TooManyRequests: 429,
    refusals.BatchUnderWay: 503,
    refusals.Conflict: 503,
    refusals.DatabaseUnavailable: 503,
    refusals.Locked: 503,
    refusals.OutcomeUnknown: 503,
    refusals.Overloaded: 503,
    refusals.SchemaBehind: 503,
    refusals.SchemaDiffers: 503,
    refusals.ShuttingDown: 503,
}
problems.TYPES.update(problems.type_of(kind.__name__) for kind in STATUSES)
for each in problems.TYPES:
    # From the start, since Prometheus cannot tell the first of a kind from a new series.
    metrics.of_problem(each)
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "60"}, 503: {"Retry-After": "1"}}


def problem_of(refusal: refusals.Refusal, *item: str | int) -> Problem:
    """The refusal as the caller reads it; `item` is its place in the body of a batch."""
    name = type(refusal).__name__
    errors: list[problems.FieldError] | list[problems.ItemError] | None = None
    unlisted = 0
    if isinstance(refusal, refusals.BatchRefused):
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


# Made once, since a batch can have thousands of them.
PROBLEMS = {kind: problem_of(kind()) for kind in STATUSES}


async def handle_refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal."""
    assert isinstance(error, refusals.Refusal)
    problem = await report(request, error)
    if isinstance(error, refusals.TooManyRequests):
        return problems.respond(problem, {"Retry-After": str(error.retry_after)})
    return problems.respond(problem, HEADERS.get(problem.status))


async def report(request: Request, refusal: refusals.Refusal) -> Problem:
    """Return the problem that a refusal is, noted for metrics and traces; with its cause if the service is at fault."""
    differs = isinstance(refusal, refusals.SchemaBehind) and await _is_migrated(request)
    problem = problem_of(refusals.SchemaDiffers() if differs else refusal)
    request.scope[problems.NOTED] = problem
    if problem.status == 503:
        request.scope[problems.CAUSE] = problems.cause_of(refusal)
    return problem


async def _is_migrated(request: Request) -> bool:
    """Return True if the database is at the revision of this code, or a newer one."""
    try:
        revision = await operations_of(request).read(get_revision)
    except refusals.Interruption:
        return False
    schema: Schema = request.app.state.schema
    return schema.compare(revision).status != "behind"


def documented(
    *kinds: type[refusals.Refusal] | refusals.Refusal, parameters: bool = True, body: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of a call's errors: these refusals, and those of every call."""
    examples = [problem_of(each if isinstance(each, refusals.Refusal) else each()) for each in (*kinds, *ALWAYS)]
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


ALWAYS = (
    refusals.DatabaseUnavailable,
    refusals.Locked,
    refusals.Overloaded,
    refusals.SchemaBehind,
    refusals.SchemaDiffers,
    refusals.ShuttingDown,
    refusals.Conflict,
)
USER_ONLY = (refusals.Unauthenticated, refusals.UserOnly, refusals.UserNotActive, refusals.TooManyRequests)
OPERATOR_ONLY = (
    refusals.Unauthenticated,
    refusals.OperatorOnly,
    refusals.OperatorDisabled,
    refusals.ScopeMissing,
    refusals.UserNotActive,
    refusals.TooManyRequests,
)
USER_OR_OPERATOR = (refusals.Unauthenticated, refusals.ScopeMissing, refusals.UserNotActive, refusals.TooManyRequests)
TRANSFER = (
    refusals.AccountNotFound,
    refusals.AccountNotActive,
    refusals.InsufficientFunds,
    refusals.BalanceLimit,
    refusals.IdempotencyKeyReused,
    refusals.OutcomeUnknown,
)
