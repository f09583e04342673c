"""The data that a downgrade would drop, counted before it does."""

import ast
from collections.abc import Mapping, Set

import sqlalchemy as sa
from alembic.util import CommandError

from alembic_savepoint.history.effects import drops
from alembic_savepoint.history.revisions import Revision, assignments, parse

UNKNOWN = "all"
"""The name for drops that the file does not show."""


def count_losses(connection: sa.Connection, revision: Revision, *, lock: bool = False) -> dict[str, int]:
    """Return the number of rows and values that the downgrade of a revision would drop, by "table" or "table.column".

    A revision says in COUNTS_AS_LOSS which rows count, if not all do: {"accounts": "balance <> 0"}. With `lock`,
    none can be added before the transaction ends.
    """
    dropped = drops(revision, "downgrade")
    if any(drop.table is None for drop in dropped):
        return {UNKNOWN: 1}
    inspector = sa.inspect(connection)
    columns = {
        table: {column["name"] for column in inspector.get_columns(table)}
        for drop in dropped
        if drop.table and inspector.has_table(table := drop.table)
    }
    if lock:
        lock_tables(connection, list(columns))
    tables = {drop.table for drop in dropped if drop.column is None}
    counts = {}
    for drop in dropped:
        if drop.table not in columns or (
            drop.column and (drop.table in tables or drop.column not in columns[drop.table])
        ):
            continue
        name = f"{drop.table}.{drop.column}" if drop.column else drop.table
        query = sa.select(sa.func.count()).select_from(sa.table(drop.table))
        if drop.column:
            query = query.where(sa.column(drop.column).is_not(None))
        if name in (counted := counts_as_loss(revision)):
            query = query.where(sa.text(counted[name]))
        counts[name] = connection.scalar(query) or 0
    return {name: count for name, count in counts.items() if count}


def counts_as_loss(revision: Revision) -> dict[str, str]:
    """Return the conditions in SQL, by table or column, of the rows that count as a loss."""
    said = assignments(parse(revision.source)).get("COUNTS_AS_LOSS")
    return dict(ast.literal_eval(said)) if said else {}


def lock_tables(connection: sa.Connection, tables: list[str]) -> None:
    """Lock the tables against others; on SQLite the transaction does so already."""
    if tables and connection.dialect.name == "postgresql":
        # Children are dropped first, and writers lock parents first.
        names = map(connection.dialect.identifier_preparer.quote, reversed(tables))
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)}")


def refuse_losses(losses: Mapping[str, int], accepted: Set[str]) -> None:
    """Raise CommandError for a loss that was not accepted."""
    refused = {name: count for name, count in losses.items() if not {name, "all"} & accepted}
    if not refused:
        return
    if UNKNOWN in refused:
        found = "its file does not show what it drops"
    else:
        found = ", ".join(
            f"{name}: {count:,} {'value' if '.' in name else 'row'}{'' if count == 1 else 's'}"
            for name, count in refused.items()
        )
    raise CommandError(
        f"This downgrade would lose data ({found}). Nothing was changed. Take a copy first: alembic-savepoint save. "
        f"Then, to lose it: alembic -x accept-loss={','.join(losses)} downgrade …"
    )
