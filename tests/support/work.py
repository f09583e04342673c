"""How much of the database a query reads, run as the service runs it."""

import sqlite3
from typing import Any

from sqlalchemy import make_url

from db.database import Database
from settings import Settings
from tests.support.service import noting_statements, query

AT_MOST = {"sqlite": 30, "postgresql": 1000}
"""What a query may take that finds what it needs by index, where a table has 10,000 rows and more."""

READ = """
    SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes) + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)
"""


async def work_of(url: str, read: Any, *args: Any, **kwargs: Any) -> int:
    """The rows and entries of indexes that PostgreSQL reads; the steps of SQLite's virtual machine, in thousands."""
    database = Database(Settings(database_url=url))
    if url.startswith("postgresql"):
        [(before,)] = query(url, READ)
        await database.read(read, *args, **kwargs)
        # Closed connections have reported what they read.
        await database.close()
        [(after,)] = query(url, READ)
        return int(after - before)
    with noting_statements() as sent:
        await database.read(read, *args, **kwargs)
    await database.close()
    return steps_of(url, sent[-1])


def steps_of(url: str, statement: tuple[str, Any]) -> int:
    """The steps of SQLite's virtual machine that a statement takes, in thousands."""
    thousands = 0

    def count() -> None:
        nonlocal thousands
        thousands += 1

    connection = sqlite3.connect(str(make_url(url).database))
    connection.set_progress_handler(count, 1000)
    connection.execute(*statement).fetchall()
    connection.close()
    return thousands
