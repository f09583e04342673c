"""Helpers of the tests of graph."""

from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent

from alembic_savepoint.history.applied import Event
from alembic_savepoint.history.revisions import History, read_history
from tests.support.revisions import Draft, write_all

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def history_of(folder: Path, text: str) -> History:
    """A history from lines such as `c1: a1 b1`, an id and its parents."""
    lines = [line.split(":") for line in dedent(text).strip().splitlines()]
    return read_history(write_all(folder, *(Draft(id.strip(), tuple(parents.split())) for id, parents in lines)))


def event(revision: str, *parents: str, action: str = "upgrade", message: str = "", checksum: str = "ab") -> Event:
    return Event(1, action, revision, parents, checksum, message or f"about {revision}", NOON, 0.1)
