"""Migrating: one at a time; whole revisions, and the record; what cannot be: one paragraph; copies first."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from alembic_savepoint.backup import saves
from alembic_savepoint.project import Project
from schema import ALEMBIC_INI
from tests.support.migrating import ADD_COLUMN, NEW, record, somebody_who_migrates
from tests.support.migrations import (
    ACCOUNTS,
    BEFORE_ACCOUNTS,
    HEAD,
    REVISIONS,
    add_revision,
    complaints,
    fill,
    look,
    migrate,
    only_postgresql,
    only_sqlite,
    quick_alembic,
)
from tests.support.project import load, save
from tests.support.service import alembic, query

pytestmark = pytest.mark.slow

SLEEP = "    import time; time.sleep(30)"


def versions(url: str) -> list[tuple[Any, ...]]:
    return query(url, "SELECT version_num FROM alembic_version")


def test_of_many_who_upgrade_at_once_one_does_the_work_and_all_end_well(empty_url: str) -> None:
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda _: alembic(empty_url, "upgrade", "head"), range(4)))

    assert [result.returncode for result in results] == [0] * 4, [result.stderr for result in results]
    assert sum("Running upgrade" in result.stderr for result in results) == 1
    assert record(empty_url) == [("upgrade", revision) for revision in REVISIONS]
    assert versions(empty_url) == [(HEAD,)]


def test_who_waits_in_vain_is_told_who_migrates(url: str) -> None:
    before = look(url)

    with somebody_who_migrates(url) as name:
        result = quick_alembic(url, "downgrade", "base", MIGRATION_TIMEOUT="0.3")

        # Whoever only looks does not wait.
        for arguments in (("current",), ("check",)):
            assert quick_alembic(url, *arguments).returncode == 0

    assert result.returncode == 1
    (line,) = complaints(result)
    assert line.startswith(f"FAILED: Another process migrates this database ({name}")
    assert "MIGRATION_TIMEOUT" in line
    assert look(url) == before


def test_a_migrator_that_was_killed_leaves_the_turn_and_nothing_else(url: str, fork: Path) -> None:
    add_revision(fork, NEW, HEAD, f"{ADD_COLUMN}\n    print('half way', flush=True)\n{SLEEP}")
    before = look(url)
    environment = {"PATH": "", "DATABASE_URL": url}
    with subprocess.Popen(
        [sys.executable, "-m", "alembic", "upgrade", "head"], cwd=fork, env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half way\n"
        process.kill()

    assert quick_alembic(url, "upgrade", "head").returncode == 0
    assert look(url) == before


def test_the_record_tells_each_step_with_its_file(url: str) -> None:
    migrate(url, "downgrade", BEFORE_ACCOUNTS)
    migrate(url, "stamp", ACCOUNTS)

    assert record(url) == [
        *(("upgrade", revision) for revision in REVISIONS),
        *(("downgrade", revision) for revision in reversed(REVISIONS[REVISIONS.index(ACCOUNTS) :])),
        ("stamp", ACCOUNTS),
    ]
    [(parents, message, checksum, seconds)] = query(
        url,
        "SELECT parents, message, checksum, seconds FROM applied_revisions"
        f" WHERE action = 'upgrade' AND revision = '{ACCOUNTS}'",
    )
    assert (parents, message) == (BEFORE_ACCOUNTS, "accounts, transfers and entries")
    assert len(checksum) == 64
    assert seconds > 0


@only_postgresql  # On SQLite a rebuild cannot be printed.
def test_printed_sql_keeps_the_record_too(empty_url: str) -> None:
    printed = alembic(empty_url, "upgrade", "head", "--sql").stdout

    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute(printed.encode())

    assert record(empty_url) == [("upgrade", revision) for revision in REVISIONS]


def test_a_failed_revision_is_in_no_record(url: str, fork: Path) -> None:
    add_revision(fork, NEW, HEAD, f'{ADD_COLUMN}\n    op.execute("SELECT nonsense")')

    assert alembic(url, "upgrade", "head", cwd=fork).returncode != 0

    assert record(url) == [("upgrade", revision) for revision in REVISIONS]


@pytest.mark.parametrize("arguments", ["upgrade head", "downgrade -1", "current", "check", "stamp head", "revision"])
def test_at_a_revision_that_no_file_has_each_command_says_what_is_known_of_it(url: str, arguments: str) -> None:
    query(url, "UPDATE alembic_version SET version_num = 'abcdef123456'")
    query(
        url,
        "INSERT INTO applied_revisions (action, revision, parents, checksum, message, applied_at, seconds)"
        " VALUES ('upgrade', 'abcdef123456', '', '', 'add wishes', '2026-01-02 03:04:05+00', 1)"
        if url.startswith("postgresql")
        else "INSERT INTO applied_revisions (action, revision, parents, checksum, message, applied_at, seconds)"
        " VALUES ('upgrade', 'abcdef123456', '', '', 'add wishes', '2026-01-02 03:04:05.000000', 1)",
    )
    before = look(url)
    words = [*arguments.split(), *(["--autogenerate", "-m", "x"] if arguments == "revision" else [])]

    result = quick_alembic(url, *words)

    assert result.returncode == 1
    (line,) = complaints(result)
    assert "The database is at abcdef123456 ('add wishes', upgrade on 2026-01-02 03:04:05 UTC)" in line
    assert line.endswith("Run: python manage.py doctor, which shows the cause and the next command.")
    assert look(url) == before


BROKEN = {
    "needs 123456789abc, which no file has": '"""lost"""\nrevision = "abc"\ndown_revision = "123456789abc"\n',
    f"have the same id, {ACCOUNTS}": f'"""twin"""\nrevision = "{ACCOUNTS}"\ndown_revision = "{BEFORE_ACCOUNTS}"\n',
    "come after one another in a cycle": '"""circle"""\nrevision = "abc"\ndown_revision = "abc"\n',
    "cannot be read as a revision: line 1": '"""open\n',
}


@only_sqlite
@pytest.mark.parametrize(
    ("fault", "command"), [*zip(BROKEN, ["downgrade base", "upgrade head", "current", "upgrade head"], strict=True)]
)
def test_a_broken_history_is_named_before_anything_is_changed(url: str, fork: Path, fault: str, command: str) -> None:
    (fork / "migrations" / "versions" / "added.py").write_text(BROKEN[fault])
    before = look(url)

    result = alembic(url, *command.split(), cwd=fork)

    assert result.returncode == 1
    (line,) = complaints(result)
    assert fault in line
    assert "python manage.py doctor" in line
    assert look(url) == before


def test_a_target_that_there_is_not_changes_nothing(url: str) -> None:
    before = look(url)

    result = quick_alembic(url, "upgrade", "123456789abc")

    assert result.returncode == 1
    assert "123456789abc" in complaints(result)[-1]
    assert "doctor" in complaints(result)[-1]
    assert look(url) == before


def test_called_from_python_it_raises_alembics_own_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    query(url, "UPDATE alembic_version SET version_num = 'abcdef123456'")

    with pytest.raises(CommandError, match="no revision file has that id"):
        command.upgrade(Config(ALEMBIC_INI), "head")


@pytest.fixture
def saves_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "saves"
    monkeypatch.setenv("SAVES_DIR", str(folder))
    return folder


def test_a_copy_waits_for_locks_as_long_as_the_setting_says(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("LOCK_TIMEOUT", "0.25")
    patience = []

    def save(project: Project, _: str) -> None:
        patience.append(project.options.lock_timeout)
        raise saves.SaveError("Somebody holds the tables.")

    monkeypatch.setattr("alembic_savepoint.backup.saves.save", save)

    with pytest.raises(CommandError, match=r"no copy could be taken first\. Somebody holds the tables"):
        command.downgrade(Config(ALEMBIC_INI), BEFORE_ACCOUNTS)

    assert patience == [0.25]


def test_before_it_drops_something_a_migration_saves_a_copy_that_can_be_loaded(url: str, saves_dir: Path) -> None:
    fill(url, *REVISIONS)
    before = look(url)

    result = alembic(url, "-x", "accept-loss=all", "downgrade", "base")

    assert result.returncode == 0, result.stderr
    [copy] = saves.list_saves(saves_dir)
    assert copy.name.startswith(f"before-{HEAD}-")
    assert f"python manage.py load {copy.name}" in result.stderr
    load(url, saves_dir, copy.name)
    # PostgreSQL writes the text of a CHECK in other words once it is restored.
    assert look(url).rows == before.rows


def test_what_endangers_nothing_and_what_is_told_not_to_save_nothing(
    url: str, empty_url: str, saves_dir: Path, fork: Path
) -> None:
    add_revision(fork, NEW, HEAD, ADD_COLUMN)

    assert alembic(empty_url, "upgrade", "head").returncode == 0
    assert alembic(url, "upgrade", "head", cwd=fork).returncode == 0
    assert alembic(url, "downgrade", HEAD, cwd=fork).returncode == 0
    assert alembic(url, "downgrade", BEFORE_ACCOUNTS, SAVE_BEFORE_MIGRATIONS="false").returncode == 0
    assert not saves_dir.exists()


@only_sqlite
def test_a_rebuild_on_sqlite_saves_a_copy(url: str, saves_dir: Path, fork: Path) -> None:
    rebuild = (
        '    with op.batch_alter_table("users") as batch_op:\n        batch_op.alter_column("email", nullable=True)'
    )
    add_revision(fork, NEW, HEAD, rebuild)

    assert alembic(url, "upgrade", "head", cwd=fork).returncode == 0

    assert [save.name.split("-")[1] for save in saves.list_saves(saves_dir)] == [NEW]


def test_where_no_copy_can_be_taken_nothing_is_dropped(url: str, saves_dir: Path) -> None:
    saves_dir.write_text("no folder")
    before = look(url)

    result = alembic(url, "downgrade", BEFORE_ACCOUNTS)

    assert result.returncode == 1
    assert "SAVE_BEFORE_MIGRATIONS=false" in complaints(result)[-1]
    assert look(url) == before


@only_postgresql
def test_in_production_on_postgresql_a_copy_is_asked_for(url: str, saves_dir: Path) -> None:
    before = look(url)
    in_production: Any = {"ALEMBIC_CONFIG": "prod_alembic.ini", "PROD_DATABASE_URL": url}

    result = alembic("sqlite:///unused.db", "downgrade", BEFORE_ACCOUNTS, **in_production)

    assert result.returncode == 1
    assert "python manage.py save" in complaints(result)[-1]
    assert look(url) == before
    elsewhere = ("-x", "saved=elsewhere")
    assert alembic("sqlite:///unused.db", *elsewhere, "downgrade", BEFORE_ACCOUNTS, **in_production).returncode == 0
    migrate(url, "upgrade", "head")
    save(url, saves_dir)
    assert alembic("sqlite:///unused.db", "downgrade", BEFORE_ACCOUNTS, **in_production).returncode == 0
