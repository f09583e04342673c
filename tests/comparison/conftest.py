"""Fixtures of the tests beside this file."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from sqlmodel import SQLModel

from alembic_savepoint.doctor import comparison
from alembic_savepoint.doctor.catalog import Schema
from alembic_savepoint.doctor.comparison import schema_of_models, schema_of_revision
from alembic_savepoint.doctor.scratch import Scratch
from tests.support.comparison import config_of
from tests.support.service import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of the migrations, to change."""
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    return tmp_path


@pytest.fixture
def config(folder: Path) -> Config:
    """Alembic's configuration for the copy."""
    return config_of(folder)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> sa.MetaData:
    """A copy of the models' tables, to change; the check takes it for the models."""
    conventions: Any = dict(SQLModel.metadata.naming_convention)
    del conventions["ck"]  # which lets no CHECK go without a name
    copy = sa.MetaData(naming_convention=conventions)
    for table in SQLModel.metadata.sorted_tables:
        table.to_metadata(copy)
    monkeypatch.setattr(SQLModel, "metadata", copy)
    return copy


@pytest.fixture(scope="module")
def made() -> dict[Any, Schema]:
    """The schemas that were made to compare with."""
    return {}


@pytest.fixture
def _made_once(made: dict[Any, Schema], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make them once for all tests that change nothing but a database."""
    for function in (schema_of_models, schema_of_revision):

        def remember(place: Scratch, *arguments: Any, make: Any = function) -> Schema:
            key = (make, type(place))
            if key not in made:
                made[key] = make(place, *arguments)
            return made[key]

        monkeypatch.setattr(comparison, function.__name__, remember)
