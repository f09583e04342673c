"""The app: start and stop, middleware, routers. `uvicorn main:app` serves it."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from alembic.util import CommandError
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import logs
import tracing
from api import (
    accounts,
    docs_pages,
    events,
    health,
    holds,
    me,
    operator,
    payments,
    problems,
    registration,
    transactions,
    transfers,
    users,
    webhooks,
)
from api.address_limits import limit_of
from api.errors import handle_refusal
from api.openapi import OWN_MIDDLEWARE, DescribedAPI
from api.request_log import LOG
from console.router import router as console
from currencies import list_currencies
from db.database import Database
from db.postgresql import EncodingRefused
from models import KeyedRegistration, KeyedTransfer, TransfersBatch, UsersBatch
from operations import LOCK_PATIENCE, Operations
from refusals import DatabaseUnavailable, Interruption, Refusal
from schema import Schema, get_revision, upgrade_to_head
from server.protocol import BoundedProtocol
from settings import SettingsError, settings_from_environment
from starting import StartRefused
from tokens import metrics_token_hash, operator_token_hash
from webhooks.running import telling

logger = logging.getLogger("savepoint")

VERSION = "0.2.0"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect, migrate the SQLite default to head, and at the end finish what was accepted. Raises StartRefused."""
    try:
        settings = settings_from_environment()
        logs.configure(settings.log_format)
        LOG.start(settings.log_requests)
        stop_tracing = tracing.start(VERSION)
        operations = Operations(Database(settings, lock_patience=LOCK_PATIENCE), settings)
        app.state.operator_token_hash = operator_token_hash(settings)
        app.state.console = settings.console
        app.state.metrics_token_hash = metrics_token_hash(settings)
        app.state.operations = operations
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
    # The garbage collector need not search again what is loaded by now and stays. Nor need it look for cycles every 700
    # objects, since few requests leave any: that took a tenth of the CPU time.
    gc.freeze()
    gc.set_threshold(50_000, *gc.get_threshold()[1:])
    async with telling(operations.database, settings, delivers=settings.deliverer) as sequencer:
        app.state.sequencer = sequencer
        yield
    gc.unfreeze()
    await operations.close()
    await asyncio.to_thread(stop_tracing)


async def check_schema(schema: Schema, operations: Operations) -> None:
    """Migrate SQLite to head; for PostgreSQL, only log what to do. Raises StartRefused, CommandError."""
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
            # Unlike a server, a file does not come back by itself.
            raise StartRefused(f"The database {file.path} cannot be used{problems.cause_of(error)}.") from None
        logger.error("The database cannot be reached%s; /readyz shows when it can.", problems.cause_of(error))
        return
    if state.status == "behind" and file is not None:
        await upgrade_to_head()
    elif state.status == "behind":
        needs = f"The schema is at {state.revision} and this code needs {state.head}."
        logger.error("%s Run: alembic upgrade head", needs)
    elif state.status == "ahead":
        logger.warning("The schema is at %s, newer than this code's %s.", state.revision, state.head)


# Here, since `uvicorn main:app` reads no other file of ours in which a protocol could be chosen.
BoundedProtocol.install()


app = DescribedAPI(
    # Its spans have paths and queries, and it looks for its providers on each request. See tracing.py.
    telemetry={"tracing": False, "metrics": False, "logs": False},
    bodies=[UsersBatch, KeyedRegistration, TransfersBatch, KeyedTransfer],
    openapi_url=None,  # see api/docs_pages.py
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,  # It redirects to the host that the caller names.
    title="Savepoint",
    version=VERSION,
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
        {"name": "operator", "description": "The operator's keys, and the record of what was done."},
        {"name": "accounts", "description": "Balances and statements."},
        {"name": "payments", "description": "The operator pays money in and out."},
        {"name": "transfers", "description": "Money moves between accounts."},
        {"name": "holds", "description": "Money is promised, and moved or given free later."},
        {"name": "me", "description": "A user's own data and tokens."},
        {"name": "events", "description": "What happened, in the order of commits. Needs `EVENTS=true`."},
        {"name": "webhooks", "description": "Events are sent to other programs, signed."},
        {"name": "health", "description": "For load balancers and monitoring."},
    ],
    generate_unique_id_function=lambda route: route.name,
    lifespan=lifespan,
    exception_handlers={
        Refusal: handle_refusal,
        RequestValidationError: problems.handle_invalid_request,
        problems.InvalidFields: problems.handle_invalid_request,
        problems.BadBody: problems.handle_invalid_request,
        HTTPException: problems.handle_http_error,
    },
)
# The last one added is the outermost.
for middleware in OWN_MIDDLEWARE:
    app.add_middleware(middleware)
# FastAPI looks for a route in this order: those that are called most stand first.
for module in (
    accounts,
    transfers,
    holds,
    transactions,
    me,
    registration,
    payments,
    users,
    operator,
    events,
    webhooks,
    health,
    docs_pages,
):
    app.include_router(module.router)
app.include_router(console)
