"""HTTP: routes, dependencies, and the one table that turns refusals into responses."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from secrets import compare_digest
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field, ValidationError
from sqlmodel import SQLModel
from starlette.exceptions import HTTPException

import crud
import docs_pages
import http_protocol
import metrics
import problems
from batching import Batcher
from currencies import list_currencies
from database import Database
from direct_route import DirectAPI
from ledger import OPERATOR, Order, Posted, Posting
from middleware import CatchUnexpected, LimitBody
from models import (
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
)
from operations import Bulk, Operations
from problems import Problem
from refusals import (
    AccountExists,
    AccountNotActive,
    AccountNotFound,
    AlreadyReversed,
    BalanceLimit,
    BalanceNotZero,
    BatchRefused,
    Conflict,
    CurrencyMismatch,
    CurrencyUnknown,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InsufficientFunds,
    Interruption,
    OperatorDisabled,
    OperatorOnly,
    OutcomeUnknown,
    Overloaded,
    ReceiverOnly,
    Refusal,
    ReversalNotReversible,
    SameAccount,
    SchemaBehind,
    ShuttingDown,
    TokenNotFound,
    TransferNotFound,
    Unauthenticated,
    UsernameTaken,
    UserNotActive,
    UserNotFound,
    UserOnly,
)
from schema import Schema, SchemaState, get_revision, upgrade_to_head
from settings import Settings
from sparse_log import SparseLog
from tokens import hash_secret, operator_token_hash

logger = logging.getLogger("savepoint")
refused = SparseLog()

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
    Conflict: 503,
    DatabaseUnavailable: 503,
    OutcomeUnknown: 503,
    Overloaded: 503,
    SchemaBehind: 503,
    ShuttingDown: 503,
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


# --- refusals as problems ---------------------------------------------------------------------------------------------


def problem_of(refusal: Refusal, *item: str | int) -> Problem:
    """The refusal as the caller reads it; `item` is its place in the body of a batch."""
    name = type(refusal).__name__
    errors: list[problems.FieldError] | list[problems.ItemError] | None = None
    if isinstance(refusal, BatchRefused):
        errors = [
            problems.ItemError(index=index, type=problem.type, detail=problem.detail)
            for index, each in refusal.refused
            for problem in [problem_of(each)]
        ]
    elif refusal.field is not None:
        in_header = refusal.field == "idempotency_key" and not item
        field = "header.Idempotency-Key" if in_header else ".".join(map(str, ("body", *item, refusal.field)))
        errors = [problems.FieldError(field=field, detail=refusal.detail)]
    return problems.make_problem(STATUSES[type(refusal)], name, refusal.detail, errors)


async def handle_refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal."""
    assert isinstance(error, Refusal)
    problem = problem_of(error)
    if problem.status == 503:
        path = quote(request.url.path)
        refused.warn(problem.type, f"{request.method} {path}: {problem.title}{problems.cause_of(error)}")
    return problems.respond(problem, HEADERS.get(problem.status))


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


ALWAYS = (DatabaseUnavailable, Overloaded, SchemaBehind, ShuttingDown, Conflict)
USER_ONLY = (Unauthenticated, UserOnly, UserNotActive)
OPERATOR_ONLY = (Unauthenticated, OperatorOnly, OperatorDisabled, UserNotActive)
USER_OR_OPERATOR = (Unauthenticated, UserNotActive)
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
    """Connect, bring the SQLite default to head, and at the end finish what was accepted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    settings = Settings()
    operations = Operations(Database(settings), settings)
    app.state.operator_token_hash = operator_token_hash(settings)
    app.state.operations = operations
    app.state.currencies = list_currencies(settings.custom_currencies)
    app.state.schema = Schema()
    await check_schema(app.state.schema, operations)
    # What is loaded by now stays: the garbage collector need not look through it again while callers wait. Nor need it
    # look for cycles every 700 objects, since few requests leave any: that took a tenth of the CPU time.
    gc.freeze()
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    yield
    gc.unfreeze()
    await operations.close()


async def check_schema(schema: Schema, operations: Operations) -> None:
    """Migrate SQLite to head; on a server database only say what is to be done."""
    try:
        state = schema.compare(await operations.read(get_revision))
        if state.status == "behind" and operations.database.is_sqlite:
            await upgrade_to_head()
            return
    except Interruption as error:
        logger.error("The database cannot be reached%s; /readyz tells when it can.", problems.cause_of(error))
        return
    if state.status == "behind":
        needs = f"The schema is at {state.revision} and this code needs {state.head}."
        logger.error("%s Run: alembic upgrade head", needs)
    if state.status == "ahead":
        logger.warning("The schema is at %s, newer than this code's %s.", state.revision, state.head)


# Here, since `uvicorn main:app` has a choice of protocols, but no file that could choose.
http_protocol.install()

app = DirectAPI(
    docs_url=None,  # see docs_pages.py
    redoc_url=None,
    title="Savepoint",
    version="0.1.0",
    summary="Users register, hold balances and move money; every change lands whole or not at all.",
    description=(
        "Every error is `application/problem+json` (RFC 9457): programs compare its `type`, people read its `detail`. "
        "Register a user, copy the `access_token` of the answer, and give it to *Authorize*. "
        "Amounts are integers in minor units: 1250 is 12.50 EUR."
    ),
    license_info={"name": "MIT", "identifier": "MIT"},
    openapi_tags=[
        {"name": "registration", "description": "How a user comes to be."},
        {"name": "me", "description": "What a user does with its own data and tokens."},
        {"name": "users", "description": "What the operator does with users."},
        {"name": "accounts", "description": "What a user holds, and how it came to be."},
        {"name": "transfers", "description": "How money moves."},
        {"name": "health", "description": "For load balancers and monitoring."},
    ],
    generate_unique_id_function=lambda route: route.name,
    lifespan=lifespan,
    exception_handlers={
        Refusal: handle_refusal,
        RequestValidationError: problems.handle_invalid_request,
        problems.InvalidFields: problems.handle_invalid_fields,
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
    return await operations_of(request).authenticate(token_hash)


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
    await operations_of(request).authenticate(token_hash)
    raise OperatorOnly


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
    return (await operations_of(request).authenticate(token_hash)).id


CurrentUser = Annotated[UserPublic, Depends(current_user)]
Operator = Depends(require_operator)
Caller = Annotated[int, Depends(current_caller)]
# Beside the user's token, which the dependency names.
OR_OPERATOR: dict[str, Any] = {"security": [{"OperatorToken": []}]}

After = Annotated[
    Cursor, Query(default_factory=int, description="The `next` of the page before; left out, the first page")
]
Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most")]
RowId = Annotated[
    int, Path(ge=1, lt=2**63, description="As `id` in the answers", json_schema_extra={"format": "int64"})
]
Key = Annotated[IdempotencyKey, Header(alias="Idempotency-Key")]
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


class RefusedItem(Answer):
    """An item of a batch that was not stored, and why."""

    index: int
    status: Literal["refused"] = "refused"
    problem: Problem


def batch_body(batch: type[SQLModel], example: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a body that read_batch reads."""
    content = {"application/json": {"schema": batch.model_json_schema(), "example": example}}
    return {"requestBody": {"required": True, "content": content}}


async def read_batch(request: Request, batch: type[BatchT]) -> BatchT:
    """The body of a batch, read by the route itself: only once the caller is known, and without holding up others."""
    if "json" not in request.headers.get("content-type", ""):
        raise HTTPException(415)
    body = await request.body()
    try:
        return await asyncio.to_thread(batch.model_validate_json, body)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_input=False)]
        ) from None


async def run_batch(
    call: Batcher[Bulk[Item], Sequence[Outcome | Exception]],
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
    # In a thread: thousands of items take long enough to hold up everybody else.
    checked = await asyncio.to_thread(check_items, items, check, name)
    invalid = [each for each in checked if isinstance(each, problems.InvalidFields)]
    if all_or_nothing and invalid:
        raise problems.InvalidFields([error for each in invalid for error in each.errors])
    valid = [each for each in checked if not isinstance(each, problems.InvalidFields)]
    done = iter(await call(Bulk(valid, all_or_nothing)))
    outcomes = [each if isinstance(each, problems.InvalidFields) else next(done) for each in checked]
    refused = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Refusal)]
    if all_or_nothing and refused:
        raise BatchRefused(refused)
    return [
        RefusedItem.model_construct(index=index, problem=problem_of_item(outcome, name, index))
        if isinstance(outcome, Exception)
        else show(index, outcome)
        for index, outcome in enumerate(outcomes)
    ]


def check_items(items: Sequence[Any], check: Callable[[Any], Item], name: str) -> list[Item | problems.InvalidFields]:
    """Each item as it is to be done, or what is wrong with its fields."""

    def check_item(index: int, item: Any) -> Item | problems.InvalidFields:
        try:
            return check(item)
        except ValidationError as error:
            return problems.InvalidFields(problems.field_errors(error, "body", name, index))

    return [check_item(index, item) for index, item in enumerate(items)]


def problem_of_item(error: Exception, *item: str | int) -> Problem:
    """Why an item of a batch was not stored."""
    if isinstance(error, problems.InvalidFields):
        return problems.invalid_request(error.errors)
    if isinstance(error, Refusal):
        return problem_of(error, *item)
    logger.error("Item %s of a batch failed unforeseen: %s", ".".join(map(str, item)), problems.describe(error))
    return problems.INTERNAL_ERROR


# --- registration -----------------------------------------------------------------------------------------------------


@app.post(
    "/register",
    status_code=201,
    tags=["registration"],
    summary="Register a user",
    responses={
        **REPLAYED,
        **documented(UsernameTaken, IdempotencyKeyReused, OutcomeUnknown, body=True),
    },
)
async def register(
    registration: Registration,
    request: Request,
    response: Response,
    idempotency_key: Annotated[
        RegistrationKey | None,
        Header(alias="Idempotency-Key", description="A random UUID (version 4 or 7) makes a retry safe"),
    ] = None,
) -> RegistrationAnswer:
    """User, profile, first token and account are stored together or not at all.

    Sent again with the same Idempotency-Key within 15 minutes, it answers the same user with a fresh token.
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
    """No account may hold money. Its tokens stop working, its name stays taken; only the operator can open it again."""
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
    """A user who is not active can do nothing until it is active again."""
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


BATCH_EXAMPLE = {
    "users": [{"username": name, "email": f"{name}@example.com"} for name in ("alice", "bob")],
    "on_error": "continue",
}


@app.post(
    "/users/batch",
    tags=["users"],
    summary="Register up to 10,000 users at once",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, BatchRefused([(1, UsernameTaken())]), OutcomeUnknown, body=True),
    # Without keys: whoever knows the key of a registration can have its token.
    openapi_extra=batch_body(UsersBatch, BATCH_EXAMPLE),
)
async def register_users(request: Request) -> UsersBatchAnswer:
    """`rollback` stores all or, where one is refused, none (409). `continue` stores what is not refused.

    Each item may carry its own `idempotency_key`, a random UUID, which makes sending the batch again safe.
    """
    batch = await read_batch(request, UsersBatch)

    def show(index: int, outcome: crud.Registered) -> CreatedUser:
        return CreatedUser.model_construct(index=index, user=outcome.user, access_token=outcome.access_token)

    results = await run_batch(
        operations_of(request).register_many,
        "users",
        batch.users,
        batch.on_error,
        check=KeyedRegistration.model_validate,
        show=show,
    )
    return UsersBatchAnswer.model_construct(results=results)


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
    user_id: Annotated[int | None, Query(ge=1, lt=2**63, description="Whose; for the operator only")] = None,
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
            *USER_OR_OPERATOR, *TRANSFER, TransferNotFound, ReceiverOnly, AlreadyReversed, ReversalNotReversible
        ),
    },
    openapi_extra=OR_OPERATOR,
)
async def reverse_transfer(
    id: RowId, caller: Caller, request: Request, response: Response, idempotency_key: Key = None
) -> SettledTransfer | DebitedTransfer:
    """By who received the money, or the operator: all of it goes back, once."""
    posted = await operations_of(request).reverse(crud.Reversal(id, caller, idempotency_key))
    mark_replay(response, posted.replayed)
    return show_transfer(posted, caller)


PAYMENT_RESPONSES = {**REPLAYED, **documented(*OPERATOR_ONLY, *TRANSFER, SameAccount("account_id"), body=True)}


@app.post(
    "/deposits",
    status_code=201,
    tags=["transfers"],
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
    tags=["transfers"],
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


TRANSFERS_EXAMPLE = {
    "transfers": [
        {"debit_account_id": 2, "credit_account_id": 3, "amount": 1250, "idempotency_key": "order-4711"},
        {"debit_account_id": 3, "credit_account_id": 4, "amount": 1000, "memo": "Wages"},
    ],
    "on_error": "rollback",
}


@app.post(
    "/transfers/batch",
    tags=["transfers"],
    summary="Make up to 10,000 transfers at once",
    responses=documented(*USER_OR_OPERATOR, BatchRefused([(1, InsufficientFunds())]), OutcomeUnknown, body=True),
    openapi_extra={**OR_OPERATOR, **batch_body(TransfersBatch, TRANSFERS_EXAMPLE)},
)
async def make_transfers(caller: Caller, request: Request) -> TransfersBatchAnswer:
    """In this order: one may spend what another before it brought.

    `rollback` makes all or, where one is refused, none (409). `continue` makes those that are not refused. Each item
    may carry its own `idempotency_key`, which makes sending the batch again safe.
    """
    batch = await read_batch(request, TransfersBatch)

    def check(item: Any) -> Order:
        return Order(caller, **KeyedTransfer.model_validate(item).__dict__)

    def show(index: int, posted: Posted) -> CreatedTransfer:
        return CreatedTransfer.model_construct(index=index, transfer=show_transfer(posted, caller))

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
            "description": "The schema is behind, or the database out of reach",
        }
    },
)
async def readyz(request: Request, response: Response) -> SchemaState:
    """503 while the database is out of reach or its schema is behind this code."""
    schema: Schema = request.app.state.schema
    state = schema.compare(await operations_of(request).read(get_revision))
    if state.status == "behind":
        response.status_code = 503
    return state


@app.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics() -> Response:
    """In Prometheus' text format."""
    return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


# --- docs -------------------------------------------------------------------------------------------------------------

# Last, since each request is compared with the routes in order.
app.include_router(docs_pages.router)
app.mount("/docs/assets", docs_pages.assets)
