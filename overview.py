"""How a database is, in a few figures."""

from dataclasses import dataclass, field, replace

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, ProgrammingError

from db.engines import reading
from db.statements import table_of
from models import Account, Profile
from schema import Schema, SchemaState, has_types, select_all_columns


@dataclass(frozen=True, slots=True)
class CurrencyTotal:
    """What users have in one currency, in minor units; held is what their holds keep, also those just expired."""

    currency: str
    accounts: int
    balance: int
    held: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The revision of a database and, unless its tables are older than this code, what is in them."""

    schema: SchemaState
    users: dict[str, int] = field(default_factory=dict)
    totals: list[CurrencyTotal] = field(default_factory=list)


def look(url: str) -> Overview:
    """Return the overview of a database at one instant; users are counted by status.

    Raises SQLAlchemyError where it cannot be read.
    """
    with reading(url) as connection:
        state = Schema().compare(_find_revision(connection))
        if state.status == "behind":
            return Overview(state)
        try:
            connection.execute(select_all_columns())
        except (ProgrammingError, OperationalError):
            return Overview(replace(state, status="differs"))
        if not has_types(connection):
            return Overview(replace(state, status="differs"))
        status, account = table_of(Profile).c.status, table_of(Account).c
        users = sa.select(status, sa.func.count()).group_by(status).order_by(status)
        sums = [sa.cast(sa.func.sum(each), sa.BigInteger) for each in (account.balance, account.held)]
        of_users = sa.select(account.currency, sa.func.count(), *sums).where(account.user_id.is_not(None))
        rows = connection.execute(of_users.group_by(account.currency).order_by(account.currency))
        return Overview(state, dict(map(tuple, connection.execute(users))), [CurrencyTotal(*row) for row in rows])


def _find_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return ", ".join(connection.scalars(sa.text("SELECT version_num FROM alembic_version"))) or None
