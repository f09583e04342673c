"""What the tool does, on Savepoint's own project, with another database, revisions or settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from sqlmodel import SQLModel

from alembic_savepoint.backup import saves
from alembic_savepoint.backup.saves import Contents, Progress, Save, silent
from alembic_savepoint.doctor import comparison
from alembic_savepoint.doctor import doctor as doctors
from alembic_savepoint.doctor import repair as repairs
from alembic_savepoint.doctor.catalog import Schema
from alembic_savepoint.doctor.diagnosis import Diagnosis
from alembic_savepoint.doctor.scratch import Scratch
from alembic_savepoint.environment import GUARDED, Environment, compared
from alembic_savepoint.history import applied
from alembic_savepoint.history.applied import Applied
from alembic_savepoint.project import Options, Project
from alembic_savepoint.rehearsal import rehearsal as rehearsals
from alembic_savepoint.rehearsal.trial import Rehearsal
from schema import options_of, read_ini
from settings import Settings
from tests.support.service import ROOT

VERSIONS = ROOT / "migrations" / "versions"


def config_of(scripts: Path) -> Config:
    """Savepoint's configuration, with another folder of scripts."""
    config = read_ini()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    return config


def project_of(url: str, config: Config | None = None, **options: Any) -> Project:
    """Savepoint's project; what its env.py configures is given, so that any folder of revisions will do."""
    configured = {
        "target_metadata": SQLModel.metadata,
        "render_as_batch": True,
        "compare_type": True,
        "compare_server_default": True,
        "transactional_ddl": True,
        "transaction_per_migration": True,
        GUARDED: True,
    }
    environment = Environment(sa.make_url(url), {**configured, **compared(configured)})
    config = config or read_ini()
    given = {"require_names": True, "scratch_url": config.get_alembic_option("savepoint_scratch_url"), **options}
    return Project(config, Options(**given), url=url, environment=environment)


def _saving(url: str, folder: Path, lock_timeout: float) -> Project:
    return project_of(url, saves_dir=folder, lock_timeout=lock_timeout)


def save(url: str, folder: Path, name: str | None = None, progress: Progress = silent, lock_timeout: float = 5) -> Save:
    return saves.save(_saving(url, folder, lock_timeout), name, progress)


def load(url: str, folder: Path, name: str, progress: Progress = silent, lock_timeout: float = 5) -> Save | None:
    return saves.load(_saving(url, folder, lock_timeout), name, progress)


def contents(url: str, lock_timeout: float = 5) -> Contents | None:
    return saves.contents(project_of(url, lock_timeout=lock_timeout))


def check(url: str, config: Config | None = None) -> list[Diagnosis]:
    return doctors.diagnose(project_of(url, config), models=True)


def schema_of_revision(
    place: Scratch,
    revision: str | Sequence[str],
    config: Config | None = None,
    after_each: Callable[[str, sa.Connection], None] | None = None,
) -> Schema:
    return comparison.schema_of_revision(place, revision, project_of("sqlite://", config), after_each)


def read_applied(url: str) -> Applied:
    return applied.read_applied(project_of(url))


def diagnose(url: str, versions: Path, root: Path) -> list[Diagnosis]:
    project = project_of(url, config_of(versions.parent))
    project.config.config_file_name = str(root / "alembic.ini")
    return doctors.diagnose(project)


def plan_repair(found: Sequence[Diagnosis], url: str) -> repairs.Repair:
    return repairs.plan_repair(found, project_of(url))


def restamp(url: str, repair: repairs.Repair, versions: Path, patience: float) -> None:
    repairs.restamp(project_of(url, config_of(versions.parent), migration_timeout=patience), repair)


def rehearse(
    url: str,
    target: str = "head",
    *,
    settings: Settings,
    copy: bool = False,
    config: Config | None = None,
    progress: Progress = silent,
) -> Rehearsal:
    project = project_of(url, config)
    project.options = options_of(settings, project.config)
    return rehearsals.rehearse(project, target, copy=copy, progress=progress)
