"""Helpers of the tests of comparison."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psycopg
from alembic.config import Config

from alembic_savepoint.doctor.catalog import Schema, schema_of
from alembic_savepoint.doctor.diagnosis import Diagnosis
from db.engines import create_migration_engine
from schema import ALEMBIC_INI
from tests.support.project import check


def execute(url: str, sql: str) -> None:
    """Run statements by hand."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(sql)
    else:
        with psycopg.connect(url, autocommit=True) as postgresql:
            postgresql.execute(sql.encode())


def schema_at(url: str) -> Schema:
    """The schema of a database, as a comparison reads it."""
    with create_migration_engine(url).connect() as connection:
        return schema_of(connection)


def found(url: str, config: Config | None = None) -> list[tuple[str, str]]:
    """What the check finds: kinds, each with its differences if it has some, or else with all of its texts."""
    return [
        (each.kind, text)
        for each in check(url, config)
        for text in (differences_of(each) or ["; ".join([each.summary, *each.evidence])])
    ]


def differences_of(diagnosis: Diagnosis) -> Sequence[str]:
    """The differences in its evidence."""
    if diagnosis.kind == "drift":
        return diagnosis.evidence[1:]
    return diagnosis.evidence if diagnosis.kind in ("not-in-revisions", "ungenerated", "unnamed-constraint") else ()


def config_of(folder: Path) -> Config:
    config = Config(ALEMBIC_INI)
    config.set_main_option("script_location", str(folder / "migrations"))
    return config
