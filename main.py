"""HTTP: routes, dependencies, and the one table that turns refusals into responses."""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from secrets import compare_digest
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from alembic.util import CommandError
from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BeforeValidator, Field, ValidationError
from sqlmodel import SQLModel
from starlette.exceptions import HTTPException

import crud
import metrics
from api import docs_pages, http_protocol, problems
from api.address_limits import AddressLimit, limit_of
from api.bodies import MIB, parse_body, read_body
from api.examples import with_examples
from api.fast_path import DirectAPI
from api.middleware import CatchUnexpected, LimitBody
from api.problems import Problem
from api.sparse_log import SparseLog
from currencies import list_currencies
from db.engines import Database, EncodingRefused
from ledger import OPERATOR, Order, Posted, Posting
from models import (
    USER_BATCH_LIMIT,
    AccountPublic,
    AccountRequest,
    Answer,
    CashRequest,
    CurrencyPublic,
    Cursor,
    DebitedTransfer,
    EntryPublic,
    IdempotencyKey,
    Instant,
    IssuedToken,
    KeyedRegistration,
    KeyedTransfer,
    Page,
    Registration,
    RegistrationAnswer,
    RegistrationKey,
    Secret,
    SettledTransfer,
    Status,
    StatusUpdate,
    TokenPublic,
    TokenRequest,
    TransferPublic,
    TransferRequest,
    TransfersBatch,
    Username,
    UserPublic,
    UsersBatch,
    UserUpdate,
    by_id,
    page_of,
    read_digits,
    unquote_key,
)
from operations import LOCK_PATIENCE, Bulk, Operations
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
from schema import Schema, SchemaState, get_revision, has_columns, upgrade_to_head
from settings import SettingsError, settings_from_environment
from starting import StartRefused
from tokens import hash_secret, metrics_token_hash, operator_token_hash

logger = logging.getLogger("savepoint")

BatchT = TypeVar("BatchT", bound=SQLModel)
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Shown = TypeVar("Shown", bound=Answer)

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


# --- refusals as problems ---------------------------------------------------------------------------------------------


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
    """Whether the database says that it is migrated to what this code needs, or further."""
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


# --- start and stop ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect, bring the SQLite default to head, and at the end finish what was accepted. Raises StartRefused."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    try:
        settings = settings_from_environment()
        operations = Operations(Database(settings, lock_patience=LOCK_PATIENCE), settings)
        app.state.operator_token_hash = operator_token_hash(settings)
        app.state.metrics_token_hash = metrics_token_hash(settings)
        app.state.operations = operations
        app.state.refusals = SparseLog()
        app.state.only_operator_registers = settings.registration == "operator"
        app.state.registration_limit = limit_of(settings.registrations_per_address)
        app.state.registration_is_free = settings.registration == "anyone" and app.state.registration_limit is None
        app.state.failed_token_limit = limit_of(settings.failed_tokens_per_address)
        app.state.currencies = list_currencies(settings.custom_currencies)
        app.state.schema = Schema()
        await check_schema(app.state.schema, operations)
    except (SettingsError, CommandError, OSError) as error:
        raise StartRefused(str(error)) from None
    if app.state.operator_token_hash is None:
        logger.warning("OPERATOR_TOKEN is not set: the operator's calls are refused.")
    # What is loaded by now stays: the garbage collector need not look through it again while callers wait. Nor need it
    # look for cycles every 700 objects, since few requests leave any: that took a tenth of the CPU time.
    gc.freeze()
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    yield
    gc.unfreeze()
    await operations.close()


async def check_schema(schema: Schema, operations: Operations) -> None:
    """Migrate SQLite to head; on a server database only say what is to be done. Raises StartRefused, CommandError."""
    file = operations.database.file
    if file is not None and not file.path.exists():
        await upgrade_to_head()
    try:
        state = schema.compare(await operations.read(get_revision))
    except Interruption as error:
        cause = error.__cause__
        if isinstance(cause, EncodingRefused):
            raise StartRefused(str(cause)) from None
        if file is not None and isinstance(error, DatabaseUnavailable):
            # Nothing helps a file but that somebody puts it right.
            raise StartRefused(f"The database {file.path} cannot be used{problems.cause_of(error)}.") from None
        logger.error("The database cannot be reached%s; /readyz tells when it can.", problems.cause_of(error))
        return
    if state.status == "behind" and file is not None:
        await upgrade_to_head()
    elif state.status == "behind":
        needs = f"The schema is at {state.revision} and this code needs {state.head}."
        logger.error("%s Run: alembic upgrade head", needs)
    elif state.status == "ahead":
        logger.warning("The schema is at %s, newer than this code's %s.", state.revision, state.head)


# Here, since `uvicorn main:app` has a choice of protocols, but no file that could choose.
http_protocol.install()


class API(DirectAPI):
    """Described with examples."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description."""
        known = self.openapi_schema
        description = super().openapi()
        return description if description is known else with_examples(description)


TRACED = any("OTEL_" in name for name in os.environ)
"""Whether OpenTelemetry is set up. FastAPI looks for its providers on each request otherwise: 4 % of a GET /me."""

app = API(
    telemetry=None if TRACED else {"tracing": False, "metrics": False, "logs": False},
    bodies=[UsersBatch, KeyedRegistration, TransfersBatch, KeyedTransfer],
    openapi_url=None,  # see api/docs_pages.py
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,  # It redirects to the host that the caller names.
    title="Savepoint",
    version="0.1.0",
    summary="Users register, hold balances and move money; every change lands whole or not at all.",
    description=(
        "Every error is `application/problem+json` (RFC 9457): programs compare its `type`, people read its `detail`. "
        "Register a user, copy the `access_token` of the answer, and give it to *Authorize*. With the operator's token "
        "beside it, each example works unedited on a new service, from the top of the page to its end. "
        "Amounts are integers in minor units: 1250 is 12.50 EUR. "
        "Unknown fields and query parameters are refused, and those that are sent twice."
    ),
    license_info={"name": "MIT", "identifier": "MIT"},
    openapi_tags=[
        {"name": "registration", "description": "Sign-up: the first call of a user."},
        {"name": "users", "description": "The operator's view of users."},
        {"name": "accounts", "description": "Balances and statements."},
        {"name": "payments", "description": "The operator pays money in and out."},
        {"name": "transfers", "description": "Money moves between accounts."},
        {"name": "me", "description": "A user's own data and tokens."},
        {"name": "health", "description": "For load balancers and monitoring."},
    ],
    generate_unique_id_function=lambda route: route.name,
    lifespan=lifespan,
    exception_handlers={
        Refusal: handle_refusal,
        RequestValidationError: problems.handle_invalid_request,
        problems.InvalidFields: problems.handle_invalid_fields,
        problems.BadBody: problems.handle_bad_body,
        HTTPException: problems.handle_http_error,
    },
)
# The last one added is the outermost.
app.add_middleware(LimitBody)
app.add_middleware(CatchUnexpected)


# --- who calls --------------------------------------------------------------------------------------------------------

user_token = HTTPBearer(
    scheme_name="UserToken", description="The `access_token` of POST /register or POST /tokens", auto_error=False
)
operator_token = HTTPBearer(
    scheme_name="OperatorToken",
    description="The server's setting OPERATOR_TOKEN; in development it is printed at start-up",
    auto_error=False,
)


def operations_of(request: Request) -> Operations:
    """What this process can do; a plain function, since as a dependency it costs each call 12 µs more."""
    operations: Operations = request.app.state.operations
    return operations


def is_operator(request: Request, token_hash: str) -> bool:
    """Whether this is the operator's token, in constant time."""
    expected: str | None = request.app.state.operator_token_hash
    return expected is not None and compare_digest(expected, token_hash)


async def authenticate(request: Request, token_hash: str) -> UserPublic:
    """The active user whose token this is; an invalid one is counted for the address that sent it."""
    try:
        return await operations_of(request).authenticate(token_hash)
    except Unauthenticated:
        # Valid tokens are never limited: others may share the address of the one who sends invalid ones.
        limit: AddressLimit | None = request.app.state.failed_token_limit
        if limit is not None:
            limit.count(request)
        raise


async def current_user(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(user_token)],
) -> UserPublic:
    """The active user whose token was sent."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if is_operator(request, token_hash):
        raise UserOnly
    return await authenticate(request, token_hash)


async def require_operator(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(operator_token)],
) -> None:
    """Let only the operator pass."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if is_operator(request, token_hash):
        return
    if request.app.state.operator_token_hash is None:
        raise OperatorDisabled
    await authenticate(request, token_hash)
    raise OperatorOnly


async def require_monitoring(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(operator_token)],
) -> None:
    """Let only the operator and what monitors the service pass."""
    expected: str | None = request.app.state.metrics_token_hash
    if credentials is None or expected is None or not compare_digest(expected, hash_secret(credentials.credentials)):
        await require_operator(request, credentials)


async def current_caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(user_token)],
) -> int:
    """The id of the active user whose token was sent, or OPERATOR."""
    if credentials is None:
        raise Unauthenticated
    token_hash = hash_secret(credentials.credentials)
    if is_operator(request, token_hash):
        return OPERATOR
    return (await authenticate(request, token_hash)).id


async def allow_registration(request: Request) -> None:
    """Let those pass who may register, each address within its limit; the operator always."""
    state = request.app.state
    if state.registration_is_free:
        return
    credentials = await operator_token(request)
    if state.only_operator_registers:
        await require_operator(request, credentials)
    elif credentials is None or not is_operator(request, hash_secret(credentials.credentials)):
        state.registration_limit.count(request)


CurrentUser = Annotated[UserPublic, Depends(current_user)]
Operator = Depends(require_operator)
Caller = Annotated[int, Depends(current_caller)]
# Beside the user's token, which the dependency names.
OR_OPERATOR: dict[str, Any] = {"security": [{"OperatorToken": []}]}

Digits = BeforeValidator(read_digits)
After = Annotated[
    Cursor, Query(default_factory=int, description="The `next` of the page before; left out, the first page")
]
Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most"), Digits]
RowId = Annotated[
    int, Path(ge=1, lt=2**63, description="As `id` in the answers", json_schema_extra={"format": "int64"}), Digits
]
Unquoted = BeforeValidator(unquote_key)
Key = Annotated[IdempotencyKey, Header(alias="Idempotency-Key"), Unquoted]
REPLAYED: dict[int | str, dict[str, Any]] = {
    201: {
        "headers": {
            "Idempotency-Replayed": {"description": "Only on a replay", "schema": {"type": "string", "const": "true"}}
        }
    }
}


def mark_replay(response: Response, replayed: bool) -> None:
    """Tell the caller where its key answered what it answered first."""
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"


# --- batches ----------------------------------------------------------------------------------------------------------


# One: Python runs one thread at a time, and each more would take its share from all other calls.
BATCH_THREAD = ThreadPoolExecutor(1, "batches")


class RefusedItem(Answer):
    """An item of a batch that was not stored, and why."""

    index: int
    status: Literal["refused"] = "refused"
    problem: Problem


def batch_body(batch: type[SQLModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that read_batch reads."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{batch.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


async def read_batch(request: Request, batch: type[BatchT], caller: int) -> BatchT:
    """The body of a batch, read by the route itself: only once the caller is known, and without holding up others."""
    limit = (16 if caller == OPERATOR else 2) * MIB
    body = await read_body(request, dict(request.scope["headers"]), limit)
    if not body:
        raise problems.InvalidFields([problems.FieldError(field="body", detail="This field is required")])
    content = await parse_body(body, limit)
    try:
        return batch.model_validate(content)
    except ValidationError as error:
        raise problems.invalid_fields(error, "body") from None


async def run_batch(
    call: Callable[[Bulk[Item]], Awaitable[Sequence[Outcome | Exception]]],
    name: str,
    items: Sequence[Any],
    on_error: Literal["rollback", "continue"],
    *,
    check: Callable[[Any], Item],
    show: Callable[[int, Outcome], Shown],
) -> list[Shown | RefusedItem]:
    """Check each item by itself, do those that are valid, and show what became of each.

    Raises InvalidFields and BatchRefused where all of it is to be rolled back.
    """
    all_or_nothing = on_error == "rollback"
    # In a thread, here and below: thousands of items take long enough to hold up everybody else.
    in_thread = partial(asyncio.get_running_loop().run_in_executor, BATCH_THREAD)
    checked = await in_thread(check_items, items, check, name)
    invalid = [each for each in checked if isinstance(each, problems.InvalidFields)]
    if all_or_nothing and invalid:
        errors = [error for each in invalid for error in each.errors]
        unlisted = len(errors[problems.MAX_LISTED :]) + sum(each.unlisted for each in invalid)
        raise problems.InvalidFields(errors[: problems.MAX_LISTED], unlisted)
    valid = [each for each in checked if not isinstance(each, problems.InvalidFields)]
    done = iter(await call(Bulk(valid, all_or_nothing)))
    outcomes = [each if isinstance(each, problems.InvalidFields) else next(done) for each in checked]
    refused = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Refusal)]
    if all_or_nothing and refused:
        raise BatchRefused(refused)

    def show_all() -> list[Shown | RefusedItem]:
        return [
            RefusedItem.model_construct(index=index, problem=problem_of_item(outcome, name, index))
            if isinstance(outcome, Exception)
            else show(index, outcome)
            for index, outcome in enumerate(outcomes)
        ]

    return await in_thread(show_all)


def check_items(items: Sequence[Any], check: Callable[[Any], Item], name: str) -> list[Item | problems.InvalidFields]:
    """Each item as it is to be done, or what is wrong with its fields: all of it, as long as few are invalid."""
    left = problems.MAX_LISTED

    def check_item(index: int, item: Any) -> Item | problems.InvalidFields:
        nonlocal left
        try:
            return check(item)
        except ValidationError as error:
            invalid = problems.invalid_fields(error, "body", name, index, listed=max(left, 1))
            left -= len(invalid.errors)
            return invalid

    return [check_item(index, item) for index, item in enumerate(items)]


def problem_of_item(error: Exception, *item: str | int) -> Problem:
    """Why an item of a batch was not stored."""
    if isinstance(error, problems.InvalidFields):
        return problems.invalid_request(error.errors, error.unlisted)
    if isinstance(error, Refusal):
        return problem_of(error, *item) if error.field else PROBLEMS[type(error)]
    logger.error("Item %s of a batch failed unexpectedly: %s", ".".join(map(str, item)), problems.describe(error))
    return problems.INTERNAL_ERROR


# --- registration -----------------------------------------------------------------------------------------------------


@app.post(
    "/register",
    status_code=201,
    tags=["registration"],
    summary="Register a user",
    dependencies=[Depends(allow_registration)],
    responses={
        **REPLAYED,
        **documented(UsernameTaken, IdempotencyKeyReused, OutcomeUnknown, *OPERATOR_ONLY, body=True),
    },
    openapi_extra={"security": [{}, {"OperatorToken": []}]},
)
async def register(
    registration: Registration,
    request: Request,
    response: Response,
    idempotency_key: Annotated[
        RegistrationKey | None,
        Header(alias="Idempotency-Key", description="A random UUID (version 4 or 7) makes a retry safe"),
        Unquoted,
    ] = None,
) -> RegistrationAnswer:
    """User, profile, first token and account are stored together or not at all.

    Sent again with the same Idempotency-Key within 15 minutes, it answers the same user with a fresh token, unless the
    user has been suspended or closed.

    By the server's settings, only the operator may register users, or each client address only so many.
    """
    registered = await operations_of(request).register_user(
        KeyedRegistration.model_construct(**registration.__dict__, idempotency_key=idempotency_key)
    )
    mark_replay(response, registered.replayed)
    return RegistrationAnswer.model_construct(user=registered.user, access_token=registered.access_token)


# --- me ---------------------------------------------------------------------------------------------------------------


@app.get("/me", tags=["me"], summary="Show my user", responses=documented(*USER_ONLY, parameters=False))
async def get_me(user: CurrentUser) -> UserPublic:
    """The user whose token this is."""
    return user


@app.patch("/me", tags=["me"], summary="Change my user", responses=documented(*USER_ONLY, OutcomeUnknown, body=True))
async def update_me(update: UserUpdate, user: CurrentUser, request: Request) -> UserPublic:
    """What is left out stays as it is; a phone_number of null is removed."""
    return await operations_of(request).update_user(crud.UserChange(user.id, update.model_dump(exclude_unset=True)))


@app.delete(
    "/me",
    status_code=204,
    tags=["me"],
    summary="Close my user",
    responses=documented(*USER_ONLY, BalanceNotZero, OutcomeUnknown, parameters=False),
)
async def close_me(user: CurrentUser, request: Request) -> None:
    """No account may hold money. All tokens are revoked, the name stays taken; only the operator can open it again."""
    await operations_of(request).update_user(crud.UserChange(user.id, {"status": "closed"}))


@app.get("/tokens", tags=["me"], summary="List my tokens", responses=documented(*USER_ONLY))
async def list_tokens(user: CurrentUser, request: Request, after: After, limit: Limit = 50) -> Page[TokenPublic]:
    """Oldest first, revoked and expired ones included, without their secrets."""
    rows = await operations_of(request).read(crud.list_tokens, user_id=user.id, after=after, limit=limit + 1)
    return page_of(rows, limit, by_id)


@app.post(
    "/tokens",
    status_code=201,
    tags=["me"],
    summary="Issue a token",
    responses=documented(*USER_ONLY, OutcomeUnknown, body=True),
)
async def issue_token(token: TokenRequest, user: CurrentUser, request: Request) -> IssuedToken:
    """The secret is in this answer and nowhere else."""
    return await operations_of(request).issue_token(crud.TokenIssue(user.id, token.name, token.expires_in_days))


@app.delete(
    "/tokens/{id}",
    status_code=204,
    tags=["me"],
    summary="Revoke a token",
    responses=documented(*USER_ONLY, TokenNotFound, OutcomeUnknown),
)
async def revoke_token(id: RowId, user: CurrentUser, request: Request) -> None:
    """It stops working at once. To revoke it again changes nothing."""
    await operations_of(request).revoke_token(crud.Revocation(user.id, id))


# --- users ------------------------------------------------------------------------------------------------------------


@app.get(
    "/users",
    tags=["users"],
    summary="List users",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY),
)
async def list_users(
    request: Request,
    after: After,
    limit: Limit = 50,
    status: Annotated[Status | None, Query(description="Only users in this status")] = None,
    username_prefix: Annotated[Username | None, Query(description="Only names that begin so")] = None,
) -> Page[UserPublic]:
    """In order of registration."""
    rows = await operations_of(request).read(
        crud.list_users, status=status, username_prefix=username_prefix, after=after, limit=limit + 1
    )
    return page_of(rows, limit, by_id)


@app.get(
    "/users/{id}",
    tags=["users"],
    summary="Show a user",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, UserNotFound),
)
async def get_user(id: RowId, request: Request) -> UserPublic:
    """Any user, whatever its status."""
    return await operations_of(request).read(crud.get_user, id)


@app.patch(
    "/users/{id}",
    tags=["users"],
    summary="Suspend, close or open a user",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, UserNotFound, OutcomeUnknown, body=True),
)
async def update_user(id: RowId, update: StatusUpdate, request: Request) -> UserPublic:
    """A user who is not active can do nothing until it is active again.

    To suspend a user revokes no token: they work again once it is active. To close a user revokes them all, for good.
    """
    return await operations_of(request).update_user(crud.UserChange(id, {"status": update.status}, by_operator=True))


class CreatedUser(Answer):
    """An item of a batch that was stored."""

    index: int
    status: Literal["created"] = "created"
    user: UserPublic
    access_token: Secret


class UsersBatchAnswer(SQLModel):
    """What became of each item, in order."""

    results: list[Annotated[CreatedUser | RefusedItem, Field(discriminator="status")]]


@app.post(
    "/users/batch",
    tags=["users"],
    summary="Register up to 10,000 users at once",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, BatchRefused([(1, UsernameTaken())]), OutcomeUnknown, body=True),
    # Without keys: whoever knows the key of a registration can have its token.
    openapi_extra=batch_body(UsersBatch),
)
async def register_users(request: Request) -> UsersBatchAnswer:
    """`rollback` stores all or, where one is refused, none (409). `continue` stores what is not refused.

    Each item may carry its own `idempotency_key`, a random UUID, which makes sending the batch again safe.
    """

    def show(index: int, outcome: crud.Registered) -> CreatedUser:
        return CreatedUser.model_construct(index=index, user=outcome.user, access_token=outcome.access_token)

    async with operations_of(request).turns.take(OPERATOR):
        batch = await read_batch(request, UsersBatch, OPERATOR)
        results = await run_batch(
            operations_of(request).register_many,
            "users",
            batch.users,
            batch.on_error,
            check=KeyedRegistration.model_validate,
            show=show,
        )
    return UsersBatchAnswer.model_construct(results=results)


@app.get(
    "/users/{id}/tokens",
    tags=["users"],
    summary="List a user's tokens",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, UserNotFound),
)
async def list_users_tokens(id: RowId, request: Request, after: After, limit: Limit = 50) -> Page[TokenPublic]:
    """As the user sees them: oldest first, revoked and expired ones included, without their secrets."""
    rows = await operations_of(request).read(crud.list_users_tokens, user_id=id, after=after, limit=limit + 1)
    return page_of(rows, limit, by_id)


@app.post(
    "/users/{id}/tokens",
    status_code=201,
    tags=["users"],
    summary="Issue a token to a user",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, UserNotFound, OutcomeUnknown, body=True),
)
async def issue_users_token(id: RowId, token: TokenRequest, request: Request) -> IssuedToken:
    """For one who signs in with you, or has lost a token. The user must be active.

    The secret is in this answer and nowhere else.
    """
    return await operations_of(request).issue_token(crud.TokenIssue(id, token.name, token.expires_in_days))


@app.delete(
    "/users/{id}/tokens",
    status_code=204,
    tags=["users"],
    summary="Revoke all tokens of a user",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, UserNotFound, OutcomeUnknown),
)
async def revoke_users_tokens(id: RowId, request: Request) -> None:
    """They stop working at once, and for good. The user stays as it is: issue it a new one."""
    await operations_of(request).revoke_users_tokens(id)


@app.delete(
    "/users/{id}/tokens/{token_id}",
    status_code=204,
    tags=["users"],
    summary="Revoke a token of a user",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, UserNotFound, TokenNotFound, OutcomeUnknown),
)
async def revoke_users_token(id: RowId, token_id: RowId, request: Request) -> None:
    """It stops working at once. To revoke it again changes nothing."""
    await operations_of(request).revoke_token(crud.Revocation(id, token_id))


# --- accounts ---------------------------------------------------------------------------------------------------------


@app.get("/currencies", tags=["accounts"], summary="List currencies", responses=documented())
async def get_currencies(request: Request, after: After, limit: Limit = 50) -> Page[CurrencyPublic]:
    """ISO 4217's and the operator's own, in order of code."""
    currencies: list[CurrencyPublic] = request.app.state.currencies
    rows = currencies[after : after + limit + 1]
    return page_of(rows, limit, lambda last: currencies.index(last) + 1)


@app.get(
    "/accounts",
    tags=["accounts"],
    summary="List accounts",
    responses=documented(*USER_OR_OPERATOR),
    openapi_extra=OR_OPERATOR,
)
async def list_accounts(
    caller: Caller,
    request: Request,
    after: After,
    limit: Limit = 50,
    user_id: Annotated[
        int | None, Query(ge=1, lt=2**63, description="Only accounts of this user; for the operator"), Digits
    ] = None,
) -> Page[AccountPublic]:
    """A user's own; the operator's list has all, those of the system included."""
    owner = user_id if caller == OPERATOR else caller
    rows = await operations_of(request).read(crud.list_accounts, user_id=owner, after=after, limit=limit + 1)
    return page_of(rows, limit, by_id)


@app.post(
    "/accounts",
    status_code=201,
    tags=["accounts"],
    summary="Open an account",
    responses=documented(*USER_ONLY, AccountExists, CurrencyUnknown, OutcomeUnknown, body=True),
)
async def open_account(account: AccountRequest, user: CurrentUser, request: Request) -> AccountPublic:
    """A user has at most one account in each currency; registration opened the first."""
    if all(currency.code != account.currency for currency in request.app.state.currencies):
        raise CurrencyUnknown
    return await operations_of(request).open_account(crud.AccountOpening(user.id, account.currency))


@app.get(
    "/accounts/{id}",
    tags=["accounts"],
    summary="Show an account, now or at an instant",
    responses=documented(*USER_OR_OPERATOR, AccountNotFound),
    openapi_extra=OR_OPERATOR,
)
async def get_account(
    id: RowId,
    caller: Caller,
    request: Request,
    at: Annotated[
        Instant | None, Query(description="An instant (RFC 3339); what was entered until then, itself included, counts")
    ] = None,
) -> AccountPublic:
    """Balance and version: as they are, or as they were at `at`."""
    operations = operations_of(request)
    if at is None:
        return await operations.read(crud.get_account, id, caller)
    return await operations.read(crud.get_account_at, id, caller, at)


@app.get(
    "/accounts/{id}/entries",
    tags=["accounts"],
    summary="Show an account's statement",
    responses=documented(*USER_OR_OPERATOR, AccountNotFound),
    openapi_extra=OR_OPERATOR,
)
async def list_entries(
    id: RowId,
    caller: Caller,
    request: Request,
    after: Annotated[
        Cursor | None, Query(description="The `next` of the page before; left out, the newest entries")
    ] = None,
    limit: Limit = 50,
) -> Page[EntryPublic]:
    """Newest first, each with the balance that it left."""
    before = 2**63 - 1 if after is None else after
    rows = await operations_of(request).read(crud.list_entries, id, caller, before=before, limit=limit + 1)
    return page_of(rows, limit, lambda entry: entry.seq)


# --- transfers --------------------------------------------------------------------------------------------------------


@app.post(
    "/transfers",
    status_code=201,
    tags=["transfers"],
    summary="Transfer money",
    responses={
        **REPLAYED,
        **documented(*USER_OR_OPERATOR, *TRANSFER, SameAccount, CurrencyMismatch, body=True),
    },
    openapi_extra=OR_OPERATOR,
)
async def transfer(
    transfer: TransferRequest, caller: Caller, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer | DebitedTransfer:
    """From an account of one's own (for the operator: from any) to any account of the same currency.

    Sent again with the same Idempotency-Key, it answers what it answered first, and moves nothing.
    """
    posted = await operations_of(request).transfer(Order(caller, **transfer.__dict__, idempotency_key=idempotency_key))
    mark_replay(response, posted.replayed)
    return show_transfer(posted, caller)


def show_transfer(posted: Posted, caller: int) -> SettledTransfer | DebitedTransfer:
    """The transfer, without the credit account's balance unless the operator asks."""
    return show_settled(posted) if caller == OPERATOR else DebitedTransfer.model_construct(**fields_of(posted.posting))


def show_settled(posted: Posted) -> SettledTransfer:
    """The transfer as the operator sees it."""
    posting = posted.posting
    return SettledTransfer.model_construct(**fields_of(posting), credit_balance_after=posting.credit_balance_after)


def fields_of(posting: Posting) -> dict[str, Any]:
    """What both see."""
    order = posting.order
    return {
        "id": posting.id,
        "debit_account_id": order.debit_account_id,
        "credit_account_id": order.credit_account_id,
        "currency": posting.currency,
        "amount": order.amount,
        "memo": order.memo,
        "reverses_id": order.reverses_id,
        "created_at": posting.created_at,
        "debit_balance_after": posting.debit_balance_after,
    }


@app.get(
    "/transfers/{id}",
    tags=["transfers"],
    summary="Show a transfer",
    responses=documented(*USER_OR_OPERATOR, TransferNotFound),
    openapi_extra=OR_OPERATOR,
)
async def get_transfer(id: RowId, caller: Caller, request: Request) -> TransferPublic:
    """For both parties and the operator."""
    return await operations_of(request).read(crud.get_transfer, id, caller)


@app.post(
    "/transfers/{id}/reversal",
    status_code=201,
    tags=["transfers"],
    summary="Reverse a transfer",
    responses={
        **REPLAYED,
        **documented(
            *USER_OR_OPERATOR,
            *TRANSFER,
            TransferNotFound,
            ReceiverOnly,
            OperatorTransfer,
            AlreadyReversed,
            ReversalNotReversible,
        ),
    },
    openapi_extra=OR_OPERATOR,
)
async def reverse_transfer(
    id: RowId, caller: Caller, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer | DebitedTransfer:
    """By the recipient or the operator: the full amount goes back, once.

    What the operator moved, deposits and withdrawals too, only the operator can reverse.
    """
    posted = await operations_of(request).reverse(crud.Reversal(id, caller, idempotency_key))
    mark_replay(response, posted.replayed)
    return show_transfer(posted, caller)


PAYMENT_RESPONSES = {**REPLAYED, **documented(*OPERATOR_ONLY, *TRANSFER, SameAccount("account_id"), body=True)}


@app.post(
    "/deposits",
    status_code=201,
    tags=["payments"],
    summary="Pay money in",
    dependencies=[Operator],
    responses=PAYMENT_RESPONSES,
)
async def deposit(
    cash: CashRequest, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer:
    """A transfer from the system account of the currency, whose balance falls by as much."""
    return await pay(cash, idempotency_key, request, response, is_payout=False)


@app.post(
    "/withdrawals",
    status_code=201,
    tags=["payments"],
    summary="Pay money out",
    dependencies=[Operator],
    responses=PAYMENT_RESPONSES,
)
async def withdraw(
    cash: CashRequest, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer:
    """A transfer to the system account of the currency; also from the account of a user who is not active."""
    return await pay(cash, idempotency_key, request, response, is_payout=True)


async def pay(
    cash: CashRequest, idempotency_key: str | None, request: Request, response: Response, *, is_payout: bool
) -> SettledTransfer:
    """Make the payment."""
    payment = crud.Payment(cash.account_id, cash.amount, cash.memo, idempotency_key, is_payout)
    posted = await operations_of(request).pay(payment)
    mark_replay(response, posted.replayed)
    return show_settled(posted)


class CreatedTransfer(Answer):
    """An item of a batch that was stored."""

    index: int
    status: Literal["created"] = "created"
    transfer: SettledTransfer | DebitedTransfer


class TransfersBatchAnswer(SQLModel):
    """What became of each item, in order."""

    results: list[Annotated[CreatedTransfer | RefusedItem, Field(discriminator="status")]]


@app.post(
    "/transfers/batch",
    tags=["transfers"],
    summary="Make many transfers at once",
    responses=documented(
        *USER_OR_OPERATOR, BatchRefused([(1, InsufficientFunds())]), BatchUnderWay, OutcomeUnknown, body=True
    ),
    openapi_extra={**OR_OPERATOR, **batch_body(TransfersBatch)},
)
async def make_transfers(caller: Caller, request: Request) -> TransfersBatchAnswer:
    """In this order: one may spend what another before it brought. Up to 1,000, for the operator up to 10,000.

    `rollback` makes all or, where one is refused, none (409). `continue` makes those that are not refused. Each item
    may carry its own `idempotency_key`, which makes sending the batch again safe. A user sends one batch at a time:
    another one meanwhile is 503.
    """

    def check(item: Any) -> Order:
        return Order(caller, **KeyedTransfer.model_validate(item).__dict__)

    def show(index: int, posted: Posted) -> CreatedTransfer:
        return CreatedTransfer.model_construct(index=index, transfer=show_transfer(posted, caller))

    async with operations_of(request).turns.take(caller):
        batch = await read_batch(request, TransfersBatch, caller)
        if caller != OPERATOR and len(batch.transfers) > USER_BATCH_LIMIT:
            detail = f"Send at most {USER_BATCH_LIMIT:,} transfers at once"
            raise problems.InvalidFields([problems.FieldError(field="body.transfers", detail=detail)])
        results = await run_batch(
            operations_of(request).transfer_many, "transfers", batch.transfers, batch.on_error, check=check, show=show
        )
    return TransfersBatchAnswer.model_construct(results=results)


# --- health -----------------------------------------------------------------------------------------------------------


class Alive(Answer):
    """The process answers."""

    status: Literal["alive"] = "alive"


@app.get("/healthz", tags=["health"], summary="Is the process alive?")
async def healthz() -> Alive:
    """Answers without asking the database."""
    return Alive()


@app.get(
    "/readyz",
    tags=["health"],
    summary="Can it serve?",
    responses={
        503: {
            **problems.document([problem_of(DatabaseUnavailable())])[503],
            "model": SchemaState,
            "description": "The schema is behind, or differs from its revision, or the database is out of reach",
        }
    },
)
async def readyz(request: Request, response: Response) -> SchemaState:
    """503 while the database is out of reach, or its schema behind this code or without a table or column of it."""
    schema: Schema = request.app.state.schema
    state = schema.compare(await operations_of(request).read(get_revision))
    if state.status != "behind" and not await operations_of(request).read(has_columns):
        state = replace(state, status="differs")
    if state.status in ("behind", "differs"):
        response.status_code = 503
    return state


@app.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    dependencies=[Depends(require_monitoring)],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(*OPERATOR_ONLY, parameters=False),
    },
)
def get_metrics() -> Response:  # In a thread: it takes some milliseconds.
    """In Prometheus' text format, to the operator's token and the one of the setting METRICS_TOKEN."""
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


# --- docs -------------------------------------------------------------------------------------------------------------

# Last, since each request is compared with the routes in order.
app.include_router(docs_pages.router)
app.mount("/docs/assets", docs_pages.assets)
