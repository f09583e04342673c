"""An empty database of the same kind, in which a schema is made to compare the live one with."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from alembic_savepoint.backup.left_over import remove_left_over, temporary_path
from alembic_savepoint.connections import LITERAL, create_engine
from alembic_savepoint.rehearsal.copies import PREFIX, scratch_database

ELSEWHERE = "Or create an empty database elsewhere, and name it as savepoint_scratch_url in Alembic's ini file."
"""The way out for a role that may not do what a scratch database needs."""


class NoScratch(LookupError):
    """The reason why there is no place to create a schema to compare with."""


class Scratch(Protocol):
    """A database for one command, made when it is first used."""

    missing: list[str]
    """The extensions of the live database that could not be created, and the reasons."""

    def empty(self) -> AbstractContextManager[sa.Connection]:
        """Return a connection to the database, which is empty then. Raises NoScratch."""


@contextmanager
def scratch(live: sa.Connection, schemas: Sequence[str] = (), scratch_url: str | None = None) -> Iterator[Scratch]:
    """Provide a scratch database like the live one, with these schemas, and remove it, or empty it, in the end.

    On SQLite it is a temporary file. On PostgreSQL it is a new database on the server, or the one at `scratch_url`.
    What a killed process left is removed by the next. No connection of the live database is used to make a schema.
    """
    with ExitStack() as stack:
        if live.dialect.name == "sqlite":
            yield SQLiteScratch()
        else:
            yield PostgreSQLScratch(live, schemas, scratch_url, stack)


class SQLiteScratch:
    """A file in the system's folder for temporary files."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    @contextmanager
    def empty(self) -> Iterator[sa.Connection]:
        """Yield a connection to a new file."""
        remove_left_over(Path(tempfile.gettempdir()), f"{PREFIX}*")
        with (
            temporary_path(partial(tempfile.mkdtemp, prefix=PREFIX)) as folder,
            create_engine(f"sqlite:///{folder / 'scratch.db'}").connect() as place,
        ):
            yield place


class PostgreSQLScratch:
    """A database with the live one's encoding, locale, extensions, and (empty) schemas."""

    def __init__(self, live: sa.Connection, schemas: Sequence[str], scratch_url: str | None, stack: ExitStack) -> None:
        self.url = live.engine.url.render_as_string(hide_password=False)
        self.scratch_url = scratch_url
        self.stack = stack
        self.missing: list[str] = []
        self.is_literal: bool = live.get_execution_options().get(LITERAL, False)
        self.engine: sa.Engine | None = None
        self.identity = live.execute(IDENTITY).one()
        self.search_path = live.scalar(SEARCH_PATH)
        self.schemas = dict.fromkeys([*schemas, *live.scalars(SCHEMAS)])
        self.extensions = live.execute(EXTENSIONS).all()

    @contextmanager
    def empty(self) -> Iterator[sa.Connection]:
        """Yield a connection to the database, which is made or emptied first."""
        try:
            if self.engine is None:
                self.engine = self._open()
            else:
                _empty(self.engine, self.kept)
            place = self.engine.connect()
        except (CommandError, DBAPIError, psycopg.Error) as error:
            raise NoScratch(_reason(error)) from None
        with place:
            yield place

    def _open(self) -> sa.Engine:
        make = self._given() if self.scratch_url else scratch_database(self.url, ELSEWHERE)
        engine = self._engine(self.stack.enter_context(make))
        with _autocommit(engine) as connection:
            self.is_elsewhere = connection.execute(IDENTITY).one()[0] != self.identity[0]
            self._prepare(connection)
            self.kept = _names(connection)
        sa.event.listen(engine, "before_cursor_execute", self._adapt, retval=True)
        return engine

    @contextmanager
    def _given(self) -> Iterator[str]:
        """Yield `scratch_url`, whose database is emptied in the end. Raises NoScratch if it is not to be used."""
        if sa.make_url(self.scratch_url or "").get_backend_name() != "postgresql":
            raise NoScratch("savepoint_scratch_url names no PostgreSQL database. Nothing was changed.")
        engine = self._engine(str(self.scratch_url))
        with _autocommit(engine) as keeper:
            if keeper.execute(IDENTITY).one() == self.identity:
                raise NoScratch(
                    "savepoint_scratch_url names the live database. Nothing was changed. Name an empty one."
                )
            if tables := keeper.scalars(TABLES).all():
                raise NoScratch(
                    f"savepoint_scratch_url names a database that holds {', '.join(tables)}. Nothing was changed. Name "
                    "an empty one; if a run that was killed left them, drop them."
                )
            if not keeper.scalar(sa.text("SELECT pg_try_advisory_lock(hashtext('alembic scratch_url'))")):
                raise NoScratch(
                    "Another process uses the database that savepoint_scratch_url names. Run it again when that has "
                    "ended."
                )
            kept = _names(keeper)
            try:
                yield str(self.scratch_url)
            finally:
                _empty(engine, kept)

    def _prepare(self, connection: sa.Connection) -> None:
        """Create the schemas and extensions of the live database, as far as the role may."""
        quote = connection.dialect.identifier_preparer.quote
        for schema in self.schemas:
            connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        for extension, schema in self.extensions:
            sql = f"CREATE EXTENSION IF NOT EXISTS {quote(extension)} SCHEMA {quote(schema)}"
            try:
                connection.exec_driver_sql(sql)
            except DBAPIError as error:
                self.missing.append(f"{extension} ({_reason(error)})")

    def _engine(self, url: str) -> sa.Engine:
        engine = create_engine(url, literal=self.is_literal)
        sa.event.listen(engine, "connect", self._set_up)
        return engine

    def _set_up(self, connection: Any, _: Any) -> None:
        # Nobody else uses the database, so a revision that waits for a lock waits for itself.
        connection.execute(
            "SELECT set_config('search_path', %s, false), set_config('lock_timeout', '10s', false)", (self.search_path,)
        )
        connection.commit()

    def _adapt(self, *call: Any) -> tuple[str, Any]:
        """Return the statement, which may create what is there already, such as an extension of the live database."""
        _, _, statement, parameters, *_ = call
        if not self.is_elsewhere and (found := server_wide(statement)):
            raise NoScratch(
                f"a revision changes the whole server ({found}), which is not done for a comparison. To compare, "
                "create an empty database on another server, and name it as savepoint_scratch_url."
            )
        return CREATES.sub(r"CREATE \1 IF NOT EXISTS ", statement), parameters


def server_wide(statement: str) -> str | None:
    """Return the words that change more than one database, such as CREATE ROLE; None if there are none.

    A string counts only in a DO block, which may execute it. What a function of the database does is not seen.
    """
    if not re.match(r"\s*DO\b", statement, re.IGNORECASE):
        statement = re.sub(r"'(?:[^']|'')*'", "''", statement)
    found = SERVER_WIDE.search(statement)
    return " ".join(found[0].upper().split()) if found else None


SERVER_WIDE = re.compile(
    r"\b(?:CREATE|ALTER|DROP|COMMENT\s+ON)\s+(?:ROLE|USER(?!\s+MAPPING)|GROUP|DATABASE|TABLESPACE|SUBSCRIPTION)\b"
    r"|\bALTER\s+SYSTEM\b|\b(?:REASSIGN|DROP)\s+OWNED\b|\bON\s+DATABASE\b|\b(?:GRANT|REVOKE)\s+(?!OPTION\b|[^;]*\bON\b)\w+",
    re.IGNORECASE,
)
CREATES = re.compile(r"\bCREATE\s+(SCHEMA|EXTENSION)\s+(?!IF\s+NOT\b)", re.IGNORECASE)


def _autocommit(engine: sa.Engine) -> sa.Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def _names(connection: sa.Connection) -> dict[str, list[str]]:
    """Return what stays when the database is emptied."""
    extensions = sa.text("SELECT extname FROM pg_extension")
    return {"schemas": list(connection.scalars(SCHEMAS)), "extensions": list(connection.scalars(extensions))}


def _empty(engine: sa.Engine, kept: dict[str, list[str]]) -> None:
    """Drop everything but these schemas and extensions."""
    with _autocommit(engine) as connection:
        for sql in connection.scalars(DROPS, kept).all():
            connection.exec_driver_sql(sql.replace("%", "%%"))


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]


IDENTITY = sa.text("SELECT pg_postmaster_start_time(), oid FROM pg_database WHERE datname = current_database()")
"""The server and the database, however they are connected to."""
# The scratch database may be another role's.
SEARCH_PATH = sa.text("SELECT replace(current_setting('search_path'), '\"$user\"', quote_ident(current_user))")
SCHEMAS = sa.text(r"SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'")
EXTENSIONS = sa.text("""
    SELECT extname, nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    ORDER BY pg_extension.oid
""")
OBJECTS = r"""
    WITH objects AS (
        SELECT 'pg_class'::regclass AS catalog, oid, relnamespace AS namespace, strpos('Sfmvpr', relkind::text) AS late
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
        UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, 0 FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid, typnamespace, 0 FROM pg_type WHERE typtype IN ('e', 'd', 'r')
            OR typrelid IN (SELECT oid FROM pg_class WHERE relkind = 'c')
        UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace, 0 FROM pg_collation
        UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace, 0 FROM pg_operator
        UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, 0 FROM pg_ts_config
    ), own AS (
        SELECT * FROM objects WHERE namespace IN (
            SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        ) AND (catalog, oid) NOT IN (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
    )
"""
# Both are put together from what is written here.
TABLES = sa.text(f"{OBJECTS} SELECT oid::regclass::text FROM own WHERE late > 0 ORDER BY 1 LIMIT 5")  # noqa: S608  # nosec B608
# In the order in which nothing stands in the way of what comes later: tables before their sequences.
DROPS = sa.text(rf"""
    {OBJECTS}
    SELECT sql FROM (
        SELECT 9 AS priority, format('DROP EVENT TRIGGER %I', evtname) AS sql FROM pg_event_trigger
        UNION ALL SELECT 9, format('DROP PUBLICATION %I', pubname) FROM pg_publication
        UNION ALL SELECT 8, format('DROP EXTENSION IF EXISTS %I CASCADE', extname) FROM pg_extension
            WHERE extname <> ALL (:extensions)
        UNION ALL SELECT 7, format('DROP SCHEMA IF EXISTS %I CASCADE', nspname) FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND nspname <> ALL (:schemas)
        UNION ALL SELECT late, format('DROP %s IF EXISTS %s CASCADE', type, identity)
            FROM own, pg_identify_object(catalog, oid, 0)
    ) AS statements ORDER BY priority DESC
""")  # noqa: S608 (as above)  # nosec B608
