"""What is wrong outside of the service (locale, paths, files, output) is survived, or told in one line."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import main
import manage
from settings import Settings, SettingsError, check_database_url, settings_from_environment
from starting import StartRefused
from tests.support.service import AS_OPERATOR, ROOT, Rows, alembic, query, serving
from tokens import hash_secret

pytestmark = pytest.mark.slow

PERSON = {"username": "alice", "email": "alice@example.com", "phone_number": "+4915112345678"}


only_sqlite = pytest.mark.parametrize("engine", ["sqlite"])


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with this Python's programs first on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.ini")), ids=lambda path: path.name)
def test_what_alembic_reads_in_the_encoding_of_the_locale_is_ascii(path: Path) -> None:
    assert path.read_bytes().isascii()


@only_sqlite
def test_the_service_starts_without_a_locale(url: str, tmp_path: Path) -> None:
    with serving(url, tmp_path, LC_ALL="C") as server:
        assert "Traceback" not in server.log


@only_sqlite
def test_commands_run_without_a_locale(url: str, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("username,email\nrenée,renee@example.com\nalice,…\n", encoding="utf-8")
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "DATABASE_URL": url}

    current = run("alembic", "current", cwd=ROOT, **environment)
    graph = run("python", ROOT / "manage.py", "graph", cwd=tmp_path, **environment)
    imported = run(
        "python", ROOT / "manage.py", "import", "users.csv", "--on-error", "continue", cwd=tmp_path, **environment
    )

    assert (current.returncode, graph.returncode, imported.returncode) == (0, 0, 1), current.stderr + graph.stderr
    assert "users and profiles" in graph.stdout
    assert "1 user imported" in imported.stdout
    assert query(url, "SELECT username FROM users") == [("renée",)]


def checkout(folder: Path) -> Path:
    """A copy of this code in a folder."""
    folder.mkdir()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.ini")):
        shutil.copy2(path, folder)
    for name in ("alembic_savepoint", "api", "console", "db", "migrations", "server", "webhooks", "__pycache__"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name)
    return folder


@only_sqlite
def test_a_percent_sign_in_the_path_of_the_code_is_only_a_character(url: str, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "p%q %(here)s")
    start = "from starlette.testclient import TestClient; import main\nwith TestClient(main.app): pass"
    new = f"sqlite:///{tmp_path}/new.db"

    started = run("python", "-c", start, cwd=folder, DATABASE_URL=new)
    checked = run("python", "manage.py", "check", cwd=folder, DATABASE_URL=url)
    # As alembic.ini says: none of our code runs before Alembic reads it.
    current = run("alembic", "-c", "/proc/self/cwd/alembic.ini", "current", cwd=folder, DATABASE_URL=url)

    assert (started.returncode, checked.returncode) == (0, 0), started.stderr + checked.stderr
    assert (current.returncode, current.stdout.endswith(" (head)\n")) == (0, True), current.stderr
    assert query(new, "SELECT * FROM alembic_version") == query(url, "SELECT * FROM alembic_version")


@only_sqlite
def test_alembic_runs_in_a_folder_with_a_colon_in_its_name(url: str, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "p:q, co")

    current = run("alembic", "current", cwd=folder, DATABASE_URL=url)

    assert current.returncode == 0, current.stderr


@pytest.fixture
def debugging(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, of which each logger tells all."""
    for name in (None, "aiosqlite", "psycopg", "sqlalchemy.engine", "asyncio", "uvicorn"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def test_at_no_level_a_log_holds_what_a_user_sent(
    debugging: pytest.LogCaptureFixture, client: TestClient, rows: Rows
) -> None:
    answer = client.post("/register", json=PERSON)
    token = answer.json()["access_token"]
    client.get("/me", headers={"Authorization": f"Bearer {token}"})
    client.get("/users", headers=AS_OPERATOR)
    refused = client.post("/register", json=PERSON)

    assert (answer.status_code, refused.status_code) == (201, 409)
    assert debugging.records
    for private in (PERSON["email"], PERSON["phone_number"], token, hash_secret(token)):
        assert private not in debugging.text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("REGISTRATION: operator", 1),
        ("\n# who may register\n\nREGISTRATION operator\n", 4),
        ("DATABASE_POOL_SIZE=5\n\nOPERATOR_TOKEN='hunter2-hunter2-hunter2\nREGISTRATION=operator\n", 3),
        ("REGISTRATION\n", 1),
        ("REGISTRATION:=operator\n", 1),
        ("SAVES_DIR=a\0b\n", 1),
    ],
)
def test_a_line_of_the_file_of_settings_that_sets_nothing_is_refused(
    text: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text(text, encoding="utf-8")

    with pytest.raises(SettingsError) as refusal:
        settings_from_environment()

    assert str(refusal.value) == (
        f"The file .env, line {line}: it cannot be read. Write NAME=value, and close each quote."
    )


def test_uvicorn_alembic_and_manage_refuse_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("REGISTRATION: operator\n")

    with pytest.raises(StartRefused, match=r"^The file \.env, line 1: "), TestClient(main.app):
        pass
    command = CliRunner().invoke(manage.app, ["audit"])
    upgrade = run("alembic", "-c", ROOT / "alembic.ini", "upgrade", "head", cwd=tmp_path)

    assert (command.exit_code, command.stderr.count("\n")) == (2, 1)
    assert upgrade.returncode == 1
    assert upgrade.stderr.startswith("FAILED: The file .env, line 1: ")


def test_a_file_of_settings_may_hold_comments_quotes_and_settings_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("# ours\n\nexport REGISTRATION='operator'  # only\nOTHER.NAME-1=\"two\nlines\"\nEMPTY=\n")

    assert settings_from_environment().registration == "operator"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://a:hunter1@hunter2@127.0.0.1:1/x", "has an @ too many; write an @ in a user, password"),
        ("postgresql://a:hunter1@h/hunter2@127.0.0.1/x", "has an @ too many"),
        ("postgresql://a:hunter1@h?hunter2@127.0.0.1/x", "has an @ too many"),
        ("postgresql://h/x?password=a&hunter2=b", "a name after its ? is not a parameter of a PostgreSQL URL"),
        ("postgresql://h/x?password=a&hunter2", "has a parameter without a value"),
        ("postgresql://h/x?sslmode", "has a parameter without a value"),
        ("postgresql://h:99999/x", "has a port that is not 1 to 65535"),
        ("postgresql://h:0/x", "has a port that is not 1 to 65535"),
        ("postgresql://a:b%00@h/x", "has a control character"),
        ("sqlite:///a\0b.db", "has a control character"),
        ("sqlite:///a%0Ab.db", "has a control character"),
        ("sqlite:///a\udcff.db", "has a control character, or bytes that are not UTF-8"),
        ("sqlite:///./q?1.db", "a SQLite URL has three slashes, the file, and no options"),
        ("sqlite:///./q?", "write a ? in a file's name as %3F"),
    ],
)
def test_a_url_that_names_something_else_than_was_meant_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        check_database_url(url)

    assert "hunter" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@server:secret@h:5432/x",
        "postgresql://a:p%40@h/d%40b?user=a%40b&sslmode=require",
        "postgresql://a:p?q@h/x",
        "postgresql:///x?host=a:5432&host=b",
        "sqlite:///./q%3F1.db",
    ],
)
def test_a_url_with_such_characters_in_their_place_is_taken(url: str) -> None:
    assert Settings(database_url=url).database_url == url


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("DROP TABLE alembic_version", "Upgrade 4f1c7a9d2b60"),
        ("UPDATE alembic_version SET version_num = 'd27f60b8e913'", "Upgrade e8a4c05b7d31"),
    ],
)
def test_tables_that_alembic_version_knows_nothing_of_are_told_in_two_lines(url: str, change: str, named: str) -> None:
    query(url, change)
    upgrade = alembic(url, "upgrade", "head")

    assert "Traceback" not in upgrade.stderr
    first, second = upgrade.stderr.splitlines()[-2:]
    assert upgrade.returncode == 1
    assert first.startswith(f"FAILED: {named}: “CREATE TABLE ")
    assert first.endswith("already exists")
    assert second.startswith("Nothing was changed. The schema is not that of the revisions in alembic_version. Run: ")
    assert "python manage.py doctor" in second
    assert "alembic stamp REVISION" in second


@only_sqlite
def test_the_service_does_not_start_on_such_tables(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query(url, "DROP TABLE alembic_version")
    monkeypatch.setenv("DATABASE_URL", url)

    with pytest.raises(StartRefused, match=r"table users already exists\nNothing was changed\."):
        TestClient(main.app).__enter__()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("hunter2:x:0:0\n", "line 1"),
        ("[alembic]\nhunter2\n", "line 2"),
        ("[alembic]\n[alembic]\n", "line 2"),
        ("[alembic]\nscript_location = hunter2%d\n", "script_location"),
        ("[alembic]\nscript_location = %(hunter)s\n", "script_location"),
        ("\udcff", "it is not text"),
    ],
)
@pytest.mark.parametrize("command", ["audit", "graph"])
def test_an_ini_file_that_is_none_is_told_in_one_line(
    text: str, where: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ini"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    monkeypatch.setenv("ALEMBIC_CONFIG", str(path))

    told = CliRunner().invoke(manage.app, [command]).stderr

    assert f"{path} is not an ini file of Alembic: {where}. Correct it, or name another file in ALEMBIC_CONFIG" in told
    assert told.count("\n") == 1
    assert "hunter" not in told


@only_sqlite
def test_an_ini_file_without_its_sections_for_logging_is_told_in_one_line(url: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ini"
    path.write_text((ROOT / "alembic.ini").read_text().partition("[loggers]")[0].replace("%(here)s", str(ROOT)))

    current = alembic(url, "-c", str(path), "current")

    assert current.returncode == 1
    assert current.stderr == f"FAILED: {path}: its sections for logging are wrong. Copy those of alembic.ini.\n"


@only_sqlite
@pytest.mark.parametrize("command", [("audit",), ("graph", "--json"), ("save", "kept"), ("--help",)])
def test_output_that_is_lost_is_told_in_one_line_with_a_code_of_its_own(
    command: tuple[str, ...], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SAVES_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["manage.py", *command])
    with open("/dev/full", "w") as full, open(tmp_path / "errors", "w") as errors:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as ended:
            manage.main()

    assert ended.value.code == 74
    assert (tmp_path / "errors").read_text() == (
        "Standard output cannot be written: No space left on device. What was done until then stays; its report is "
        "lost.\n"
    )
    assert (tmp_path / "kept.json").exists() == ("save" in command)


def in_a_shell(command: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run("bash", "-c", f"set -o pipefail; python '{ROOT}/manage.py' {command}", cwd=folder, DATABASE_URL=url)


@only_sqlite
@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("audit | true", "cannot be written: Broken pipe."),
        ("audit >&-", "is closed, so nothing was done. To run without output: >/dev/null"),
    ],
)
def test_so_is_a_pipe_that_nobody_reads_and_output_that_is_closed(
    command: str, why: str, url: str, tmp_path: Path
) -> None:
    result = in_a_shell(command, url, tmp_path)

    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (74, "", 1)
    assert result.stderr.startswith(f"Standard output {why}")


@only_sqlite
def test_a_command_does_without_standard_error(url: str, tmp_path: Path) -> None:
    result = in_a_shell("audit 2>/dev/full", url, tmp_path)

    assert (result.returncode, result.stderr) == (0, "")
    assert "Totals" in result.stdout


def test_a_token_that_cannot_be_printed_is_told_as_that_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = open("/dev/full", "w")  # noqa: SIM115 (closing it fails)
    monkeypatch.setattr(sys, "stdout", full)

    with pytest.raises(StartRefused, match=r"^OPERATOR_TOKEN: not set, and a new one cannot be printed: No space"):
        TestClient(main.app).__enter__()
    with pytest.raises(OSError, match="No space"):
        full.close()


@only_sqlite
def test_a_refused_line_with_a_number_out_of_range_is_still_json(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    line = '{"username": "alice", "email": "a@example.com", "phone_number": 1e400}'
    (tmp_path / "users.ndjson").write_text(f"{line}\n")

    CliRunner().invoke(manage.app, ["import", str(tmp_path / "users.ndjson")])

    def refuse(number: str) -> None:
        raise AssertionError(number)

    refused = json.loads((tmp_path / "users.refused.ndjson").read_text(), parse_constant=refuse)
    assert refused["text"] == line
