"""Connections to PostgreSQL: with time limits, always to the primary, directly or through a pooler."""

import asyncio
import logging
from typing import Any

import psycopg
from psycopg.errors import ConnectionTimeout, Diagnostic
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection
from sqlalchemy.pool import ConnectionPoolEntry

from refusals import Conflict
from settings import Settings

logger = logging.getLogger("savepoint")

CONNECT_TIMEOUT = 3
"""Seconds to wait for each server that does not answer."""

UNCONFIRMED = "savepoint_unconfirmed"
"""The key in a connection's `info` that is True if no standby has confirmed its last COMMIT."""

PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "jit": "off",
}
"""Settings by which PostgreSQL plans each statement once, always by index, and does not compile it.

Statements are constant, find their rows by key, and have arrays of any length for parameters. As it does not know the
length, the planner would read a whole table of 10,000 accounts rather than look up two of them. Where there is no index
to use, it reckons with costs at which it would compile a statement that reads one page, for half a second.
"""


class EncodingRefused(psycopg.OperationalError):
    """The database cannot hold every name that users may have."""


class Connector:
    """Opens a process's connections, directly or through a pooler, which gives each transaction another backend.

    So behind a pooler statements are not prepared, and each transaction sets its own time limits.
    """

    def __init__(self, url: URL, settings: Settings, lock_timeout: float) -> None:
        seconds = {
            "statement_timeout": settings.statement_timeout,
            "lock_timeout": lock_timeout,
            "idle_in_transaction_session_timeout": settings.request_timeout,
        }
        self.limits = {name: round(value * 1000) for name, value in seconds.items()}
        self.prepares_statements = settings.prepared_statements
        self.options = url.query.get("options", "")
        self.is_pooled = False

    def arguments(self) -> dict[str, Any]:
        """Return psycopg's arguments, with a limit on each wait, and keepalives that detect a broken network."""
        ours = " ".join(f"-c {name}={value}" for name, value in {**self.limits, **PLANS}.items())
        return {
            "async_creator_fn": self.connect,
            # Transactions begin in Database.begin; single statements need none.
            "autocommit": True,
            "application_name": "savepoint",
            "connect_timeout": CONNECT_TIMEOUT,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            # The operator's options come last, since the last value of a setting counts.
            "options": f"{ours} {self.options}".strip(),
        }

    async def connect(self, *args: Any, options: str, **kwargs: Any) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """Open a connection. Raises psycopg.OperationalError."""
        try:
            driver = await psycopg.AsyncConnection.connect(*args, options=options, **kwargs)
        except psycopg.OperationalError as error:
            # PgBouncer and others refuse this start-up parameter; but the operator's own options are not left out.
            if "options" not in str(error) or self.options:
                raise
            driver = await psycopg.AsyncConnection.connect(*args, **kwargs)
        # psycopg prepares nothing by itself, such as BEGIN, COMMIT or SAVEPOINT: behind a pooler that does not keep
        # statements apart, the name may be that of another session's statement.
        driver.prepare_threshold = 2**31 if self.prepares_statements else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if await is_pooled(driver):
                    driver.prepare_threshold = None
                    self._log_pooler()
        except TimeoutError:
            await driver.close()
            raise ConnectionTimeout("connected, but the server does not answer") from None
        except BaseException:
            await driver.close()
            raise
        return driver

    def _log_pooler(self) -> None:
        if not self.is_pooled:
            self.is_pooled = True
            logger.info(
                "A connection pooler is in front of PostgreSQL: statements are not prepared, and each transaction sets "
                "its own time limits. Run alembic and manage.py with the server's own address, not the pooler's."
            )

    def begin(self, connection: Connection) -> list[str]:
        """Return BEGIN; behind a pooler followed by the time limits, which go in the same round trip."""
        driver: Any = connection.connection.driver_connection
        limits = self.limits if driver.prepare_threshold is None else {}
        return ["BEGIN", *(f"SET LOCAL {name} = {value}" for name, value in limits.items())]

    def stop_preparing(self) -> None:
        """Prepare no statements from now on, since one was not found."""
        if self.prepares_statements:
            self.prepares_statements = False
            logger.warning(
                "A prepared statement was not what this service had prepared: a connection pooler seems to be in front "
                "of PostgreSQL. Statements are not prepared from now on. Set PREPARED_STATEMENTS=false."
            )


async def is_pooled(driver: psycopg.AsyncConnection[Any]) -> bool:
    """Return True behind a pooler: the backend that answers is not the one that was reported at the start.

    Raises psycopg.OperationalError if the pooler has no transactions (PgBouncer's pool_mode statement).
    """
    cursor = await driver.execute("SELECT pg_backend_pid()", prepare=False)
    [(pid,)] = await cursor.fetchall()
    if pid == driver.info.backend_pid:
        return False
    await driver.execute("BEGIN", prepare=False)
    await driver.rollback()
    return True


def watch_notices(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    """Remember PostgreSQL's warning that it stopped waiting for the synchronous standby (syncrep.c)."""

    def note(diagnostic: Diagnostic) -> None:
        # By function, since the text depends on the server's language.
        if diagnostic.source_function == "SyncRepWaitForLSN":
            record.info[UNCONFIRMED] = True

    dbapi_connection.add_notice_handler(note)


def require_utf8(_: Any, record: ConnectionPoolEntry) -> None:
    """Raise EncodingRefused unless PostgreSQL keeps text as UTF-8."""
    connection: Any = record.driver_connection
    encoding = connection.info.parameter_status("server_encoding")
    # None where the server is not PostgreSQL itself.
    if encoding not in (None, "UTF8"):
        raise EncodingRefused(
            f"the database's encoding is {encoding}, and Savepoint needs UTF8. Create another database: CREATE "
            "DATABASE … ENCODING 'UTF8' TEMPLATE template0. To move what is in this one: manage.py save, and load"
        )


def require_transaction(connection: Connection) -> None:
    """Raise Conflict unless the server is in a transaction: each statement would commit by itself."""
    require_state(connection, TransactionStatus.INTRANS)


def require_state(connection: Connection, state: TransactionStatus) -> None:
    """Raise Conflict if a PostgreSQL server is in another state; the connection is not used again."""
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        if driver.pgconn.transaction_status != state:
            connection.invalidate()
            raise Conflict
