"""A copy of a database for a rehearsal, used by nobody else and removed in the end."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError, OperationalError

from alembic_savepoint.backup import saves
from alembic_savepoint.backup.left_over import remove_left_over, temporary_path
from alembic_savepoint.connections import create_engine
from alembic_savepoint.project import Project

LABEL = "A copy or scratch database of alembic-savepoint; it can be dropped"
"""The comment on databases that may be dropped."""

PREFIX = "savepoint-copy-"
"""The prefix of a copy's folder, in the system's folder for temporary files."""

LOADED_ELSEWHERE = "Or load a save into a database elsewhere, and rehearse there."
"""The way out for a role that may not create a database."""


@contextmanager
def copy_of(project: Project, progress: saves.Progress) -> Iterator[str]:
    """Make a copy, and yield its URL. The caller ensures that only one call runs at a time. Raises CommandError."""
    remove_left_over(Path(tempfile.gettempdir()), f"{PREFIX}*")
    with temporary_path(partial(tempfile.mkdtemp, prefix=PREFIX)) as folder:
        copying = project.at(project.url, saves_dir=folder)
        try:
            is_empty = saves.contents(project) is None
            if not is_empty:
                save = saves.save(copying, "copy", progress)
            if project.is_sqlite:
                yield f"sqlite:///{folder / 'empty.sqlite' if is_empty else save.copy_in(folder)}"
                return
            with scratch_database(project.url) as scratch:
                if not is_empty:
                    saves.load(copying.at(scratch), save.name, progress)
                yield scratch
        except saves.SaveError as error:
            raise CommandError(f"No copy could be made: {error}") from None


@contextmanager
def scratch_database(url: str, otherwise: str = LOADED_ELSEWHERE) -> Iterator[str]:
    """Create an empty database on the same server, yield its URL, and drop it.

    Raises CommandError, which ends in `otherwise`, if the role may not create one.
    """
    source = sa.make_url(url)
    # Names have 63 bytes at most.
    prefix = f"{(source.database or '')[:30]}_rehearsal_"
    engine = create_engine(url).execution_options(isolation_level="AUTOCOMMIT")
    quote = engine.dialect.identifier_preparer.quote
    with engine.connect() as connection:
        for left_over in connection.scalars(LEFT_OVER, {"prefix": prefix, "label": LABEL}).all():
            with suppress(OperationalError):  # It is in use.
                connection.exec_driver_sql(f"DROP DATABASE {quote(left_over)}")
        like_the_source = connection.scalar(LIKE_THE_SOURCE)
        name = f"{prefix}{connection.scalar(sa.text('SELECT pg_backend_pid()'))}_{secrets.token_hex(4)}"
        try:
            connection.exec_driver_sql(f"CREATE DATABASE {quote(name)} {like_the_source}")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "42501":
                raise
            raise CommandError(
                f"This needs a database of its own on this server, and {source.username} may not make one "
                f"({str(error.orig).splitlines()[0]}). Nothing was changed. Allow it, as a superuser: "
                f"ALTER ROLE {quote(source.username or '')} CREATEDB. {otherwise}"
            ) from None
        try:
            connection.exec_driver_sql(f"COMMENT ON DATABASE {quote(name)} IS '{LABEL}'")
            yield source.set(database=name).render_as_string(hide_password=False)
        finally:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


# Left by killed processes: the backend that created it, whose number is in its name, has ended.
LEFT_OVER = sa.text("""
    SELECT datname FROM pg_database
    WHERE starts_with(datname, :prefix) AND shobj_description(oid, 'pg_database') = :label
    AND split_part(substr(datname, length(:prefix) + 1), '_', 1) NOT IN (SELECT pid::text FROM pg_stat_activity)
""")
# As JSON, since the columns of the locale's provider depend on the version.
LIKE_THE_SOURCE = sa.text("""
    SELECT format('TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L',
                  pg_encoding_to_char(encoding), datcollate, datctype)
        || CASE columns->>'datlocprovider' WHEN 'c' THEN ' LOCALE_PROVIDER libc'
               WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', locale)
               WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', locale) ELSE '' END
        || coalesce(' ICU_RULES ' || quote_literal(columns->>'daticurules'), '')
    FROM pg_database, to_jsonb(pg_database) AS columns,
        coalesce(columns->>'datlocale', columns->>'daticulocale') AS locale
    WHERE datname = current_database()
""")
