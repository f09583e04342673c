"""HTTP: routes, dependencies, and the one table that turns refusals into responses."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import compare_digest
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field, ValidationError
from sqlmodel import SQLModel
from starlette.exceptions import HTTPException

import crud
import docs_pages
import metrics
import problems
from database import Database
from middleware import CatchUnexpected, CountRequests, LimitBody
from models import (
    Answer,
    Cursor,
    IssuedToken,
    KeyedRegistration,
    Page,
    Registration,
    RegistrationAnswer,
    RegistrationKey,
    Secret,
    Status,
    StatusUpdate,
    TokenPublic,
    TokenRequest,
    Username,
    UserPublic,
    UsersBatch,
    UserUpdate,
    page_of,
)
from operations import BulkRegistration, Operations
from problems import Problem
from refusals import (
    BatchRefused,
    Conflict,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    Interruption,
    OperatorDisabled,
    OperatorOnly,
    OutcomeUnknown,
    Overloaded,
    Refusal,
    SchemaBehind,
    ShuttingDown,
    TokenNotFound,
    Unauthenticated,
    UsernameTaken,
    UserNotActive,
    UserNotFound,
    UserOnly,
)
from schema import Schema, SchemaState, get_revision, upgrade_to_head
from settings import Settings
from tokens import hash_secret, operator_token_hash

logger = logging.getLogger("savepoint")

STATUSES: dict[type[Refusal], int] = {
    Unauthenticated: 401,
    OperatorDisabled: 403,
    OperatorOnly: 403,
    UserNotActive: 403,
    UserOnly: 403,
    TokenNotFound: 404,
    UserNotFound: 404,
    BatchRefused: 409,
    UsernameTaken: 409,
    IdempotencyKeyReused: 422,
    Conflict: 503,
    DatabaseUnavailable: 503,
    OutcomeUnknown: 503,
    Overloaded: 503,
    SchemaBehind: 503,
    ShuttingDown: 503,
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


# --- refusals as problems ---------------------------------------------------------------------------------------------


def problem_of(refusal: Refusal) -> Problem:
    """The refusal as the caller reads it."""
    name = type(refusal).__name__
    errors = None
    if isinstance(refusal, BatchRefused):
        errors = [
            problems.ItemError(index=index, type=problem.type, detail=problem.detail)
            for index, each in refusal.refused
            for problem in [problem_of(each)]
        ]
    return problems.make_problem(STATUSES[type(refusal)], name, refusal.detail, errors)


async def handle_refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal."""
    assert isinstance(error, Refusal)
    problem = problem_of(error)
    if problem.status == 503:
        logger.warning("%s %s: %s%s", request.method, request.url.path, problem.title, problems.cause_of(error))
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


# --- start and stop ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect, bring the SQLite default to head, and at the end finish what was accepted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    settings = Settings()
    operations = Operations(Database(settings), settings)
    app.state.operator_token_hash = operator_token_hash(settings)
    app.state.operations = operations
    app.state.schema = Schema()
    await check_schema(app.state.schema, operations)
    # What is loaded by now stays: the garbage collector need not look through it again while callers wait.
    gc.freeze()
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


app = FastAPI(
    docs_url=None,  # see docs_pages.py
    redoc_url=None,
    title="Savepoint",
    version="0.1.0",
    summary="Users register and hold access tokens; every change lands whole or not at all.",
    description=(
        "Every error is `application/problem+json` (RFC 9457): programs compare its `type`, people read its `detail`. "
        "Register a user, copy the `access_token` of the answer, and give it to *Authorize*."
    ),
    license_info={"name": "MIT", "identifier": "MIT"},
    openapi_tags=[
        {"name": "registration", "description": "How a user comes to be."},
        {"name": "me", "description": "What a user does with its own data and tokens."},
        {"name": "users", "description": "What the operator does with users."},
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
app.add_middleware(CountRequests)


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


CurrentUser = Annotated[UserPublic, Depends(current_user)]
Operator = Depends(require_operator)

After = Annotated[
    Cursor, Query(default_factory=int, description="The `next` of the page before; left out, the first page")
]
Limit = Annotated[int, Query(ge=1, le=200, description="How many items at most")]
RowId = Annotated[
    int, Path(ge=1, lt=2**63, description="As `id` in the answers", json_schema_extra={"format": "int64"})
]


# --- registration -----------------------------------------------------------------------------------------------------


@app.post(
    "/register",
    status_code=201,
    tags=["registration"],
    summary="Register a user",
    responses={
        201: {
            "headers": {
                "Idempotency-Replayed": {
                    "description": "Only on a replay",
                    "schema": {"type": "string", "const": "true"},
                }
            }
        },
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
    """User, profile and first token are stored together or not at all.

    Sent again with the same Idempotency-Key within 15 minutes, it answers the same user with a fresh token.
    """
    registered = await operations_of(request).register_user(
        KeyedRegistration.model_construct(**registration.__dict__, idempotency_key=idempotency_key)
    )
    if registered.replayed:
        response.headers["Idempotency-Replayed"] = "true"
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
    responses=documented(*USER_ONLY, OutcomeUnknown, parameters=False),
)
async def close_me(user: CurrentUser, request: Request) -> None:
    """The user's tokens stop working, and its name stays taken. Only the operator can open it again."""
    await operations_of(request).update_user(crud.UserChange(user.id, {"status": "closed"}))


@app.get("/tokens", tags=["me"], summary="List my tokens", responses=documented(*USER_ONLY))
async def list_tokens(user: CurrentUser, request: Request, after: After, limit: Limit = 50) -> Page[TokenPublic]:
    """Oldest first, revoked and expired ones included, without their secrets."""
    rows = await operations_of(request).read(crud.list_tokens, user_id=user.id, after=after, limit=limit + 1)
    return page_of(rows, limit)


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
    return page_of(rows, limit)


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


class RefusedItem(Answer):
    """An item of a batch that was not stored, and why."""

    index: int
    status: Literal["refused"] = "refused"
    problem: Problem


class UsersBatchAnswer(SQLModel):
    """What became of each item, in order."""

    results: list[Annotated[CreatedUser | RefusedItem, Field(discriminator="status")]]


async def read_users_batch(request: Request) -> UsersBatch:
    """The body of a batch, read by the route itself: only the operator's, and without holding up everybody else."""
    if "json" not in request.headers.get("content-type", ""):
        raise HTTPException(415)
    body = await request.body()
    try:
        return await asyncio.to_thread(UsersBatch.model_validate_json, body)
    except ValidationError as error:
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_input=False)]
        ) from None


BATCH_EXAMPLE = {
    "users": [{"username": name, "email": f"{name}@example.com"} for name in ("alice", "bob")],
    "on_error": "continue",
}
UsersBatchDep = Annotated[UsersBatch, Depends(read_users_batch)]


@app.post(
    "/users/batch",
    tags=["users"],
    summary="Register up to 10,000 users at once",
    dependencies=[Operator],
    responses=documented(*OPERATOR_ONLY, BatchRefused([(1, UsernameTaken())]), OutcomeUnknown, body=True),
    openapi_extra={
        "requestBody": {
            "required": True,
            # Without keys: whoever knows the key of a registration can have its token.
            "content": {"application/json": {"schema": UsersBatch.model_json_schema(), "example": BATCH_EXAMPLE}},
        }
    },
)
async def register_users(batch: UsersBatchDep, request: Request) -> UsersBatchAnswer:
    """`rollback` stores all or, where one is refused, none (409). `continue` stores what is not refused.

    Each item may carry its own `idempotency_key`, a random UUID, which makes sending the batch again safe.
    """
    # In a thread: thousands of items take long enough to hold up everybody else.
    items = await asyncio.to_thread(check_items, batch.users)
    all_or_nothing = batch.on_error == "rollback"
    if all_or_nothing and (errors := [error for item in items if isinstance(item, list) for error in item]):
        raise problems.InvalidFields(errors)
    valid = {index: item for index, item in enumerate(items) if isinstance(item, KeyedRegistration)}
    outcomes = await operations_of(request).register_many(BulkRegistration(list(valid.values()), all_or_nothing))
    by_index = dict(zip(valid, outcomes, strict=True))
    refused = [(index, outcome) for index, outcome in by_index.items() if isinstance(outcome, Refusal)]
    if all_or_nothing and refused:
        raise BatchRefused(refused)
    return UsersBatchAnswer.model_construct(
        results=[show_outcome(index, item, by_index.get(index)) for index, item in enumerate(items)]
    )


CheckedItem = KeyedRegistration | list[problems.FieldError]


def check_items(users: list[Any]) -> list[CheckedItem]:
    """Each item as a registration, or what is wrong with its fields."""
    return [check_item(index, user) for index, user in enumerate(users)]


def check_item(index: int, user: Any) -> CheckedItem:
    """One item as a registration, or what is wrong with its fields."""
    try:
        return KeyedRegistration.model_validate(user)
    except ValidationError as error:
        return problems.field_errors(error, "body", "users", index)


def show_outcome(
    index: int, item: CheckedItem, outcome: crud.Registered | Exception | None
) -> CreatedUser | RefusedItem:
    """What became of an item, as the answer tells it."""
    if isinstance(outcome, crud.Registered):
        return CreatedUser.model_construct(index=index, user=outcome.user, access_token=outcome.access_token)
    if isinstance(item, list):
        problem = problems.invalid_request(item)
    elif isinstance(outcome, Refusal):
        problem = problem_of(outcome)
    else:
        assert outcome is not None
        logger.error("Item %s of a batch failed unforeseen: %s", index, problems.describe(outcome))
        problem = problems.INTERNAL_ERROR
    return RefusedItem.model_construct(index=index, problem=problem)


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
