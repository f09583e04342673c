"""Which revision the database is at, and whether this code can work with it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import String, column, false, table
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from refusals import SchemaBehind

ALEMBIC_INI = Path(__file__).with_name("alembic.ini")

Readiness = Literal["ready", "behind", "ahead", "differs"]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The revision of the database, next to the newest that this code knows."""

    status: Readiness
    revision: str | None
    head: str


class Schema:
    """The revisions in migrations/versions, compared with those of a database."""

    def __init__(self) -> None:
        scripts = ScriptDirectory.from_config(Config(ALEMBIC_INI))
        self.known = {script.revision for script in scripts.walk_revisions()}
        head = scripts.get_current_head()
        assert head is not None, "migrations/versions is empty"
        self.head = head

    def compare(self, revision: str | None) -> SchemaState:
        """Ready at the head, ahead at a revision that this code does not know yet, behind at any other."""
        if revision == self.head:
            return SchemaState("ready", revision, self.head)
        return SchemaState("behind" if revision is None or revision in self.known else "ahead", revision, self.head)


async def get_revision(session: AsyncSession) -> str | None:
    """What alembic_version holds: a revision, several where a branch was not merged, or none."""
    try:
        revisions = await session.exec(select(column("version_num", String)).select_from(table("alembic_version")))
    except SchemaBehind:
        return None
    return ", ".join(revisions) or None


async def has_columns(session: AsyncSession) -> bool:
    """Whether every table and column of models.py is there; somebody may have renamed or dropped one by hand."""
    reads = (select(*each.columns).where(false()).exists() for each in SQLModel.metadata.sorted_tables)
    try:
        await session.exec(select(*reads))
    except SchemaBehind:
        return False
    return True


async def upgrade_to_head() -> None:
    """Run `alembic upgrade head`; on SQLite any number of processes may do so at once."""
    await asyncio.to_thread(command.upgrade, Config(ALEMBIC_INI), "head")
