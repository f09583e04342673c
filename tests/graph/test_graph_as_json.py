"""Graph: as JSON; what the database says; the command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

import manage
from alembic_savepoint.history.applied import RECORD, Applied, Event
from alembic_savepoint.history.graph import as_json
from db.engines import create_migration_engine
from tests.support.graph import NOON, event, history_of
from tests.support.project import config_of, project_of, read_applied
from tests.support.revisions import Draft, write_all
from tests.support.service import query


def test_the_document_has_all_that_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("(")
    history = history_of(tmp_path, "a1:\nb1: a1")

    document = as_json(history, Applied(["a1"], [event("a1"), event("b1", "a1", action="downgrade")]))

    common = {"created": "2026-11-23 01:00:00+00:00", "notes": []}
    assert json.loads(json.dumps(document)) == {
        "current": ["a1"],
        "heads": ["b1"],
        "revisions": [
            {
                "id": "b1", "parents": ["a1"], "state": "pending", "message": "about b1", "applied_at": None,
                "paths": [f"{tmp_path}/b1_a_revision.py"], "is_head": True, "is_current": False, **common,
            },
            {
                "id": "a1", "parents": [], "state": "applied", "message": "about a1", "is_head": False,
                "applied_at": "2026-11-23T12:00:00+00:00", "paths": [f"{tmp_path}/a1_a_revision.py"],
                "is_current": True, **common,
            },
        ],
        "unreadable": {f"{tmp_path}/broken.py": "line 1: '(' was never closed"},
    }  # fmt: skip
    assert as_json(history, None)["current"] is None


def store(url: str, current: list[str], *events: Event) -> None:
    """Make the tables of an otherwise empty database, as Alembic and env.py do."""
    query(url, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    for id in current:
        query(url, f"INSERT INTO alembic_version VALUES ('{id}')")
    engine = create_migration_engine(url)
    with engine.begin() as connection:
        RECORD.create(connection)
        for number, each in enumerate(events, 1):
            values = {name: getattr(each, name) for name in Event.__slots__}
            values |= {"id": number, "parents": ", ".join(each.parents)}
            connection.execute(RECORD.insert().values(values))
    engine.dispose()


def test_the_database_tells_where_it_is_and_what_was_done(empty_url: str) -> None:
    store(empty_url, ["b1", "a1"], event("a1"), event("m1", "a1", "b1", action="stamp"))

    applied = read_applied(empty_url)

    assert applied.current == ["a1", "b1"]
    assert [(each.id, each.action, each.revision, each.parents, each.applied_at) for each in applied.record] == [
        (1, "upgrade", "a1", (), NOON),
        (2, "stamp", "m1", ("a1", "b1"), NOON),
    ]


def test_a_database_without_those_tables_is_at_nothing(empty_url: str) -> None:
    query(empty_url, "CREATE TABLE something (id INTEGER)")

    assert read_applied(empty_url) == Applied([], [])


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"There is no file .*gone\.db"):
        read_applied(f"sqlite:///{tmp_path}/gone.db")
    with pytest.raises(sa.exc.OperationalError):
        read_applied("postgresql://127.0.0.1:1/x")
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_read_while_another_process_migrates_it(empty_url: str) -> None:
    store(empty_url, ["a1"])
    engine = create_migration_engine(empty_url)
    with engine.connect() as migrating:
        migrating.execute(sa.text("UPDATE alembic_version SET version_num = 'b1'"))

        assert read_applied(empty_url).current == ["a1"]
    engine.dispose()


Show = Callable[..., Result]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run `manage.py graph` on a history of two revisions."""
    write_all(tmp_path / "versions", Draft("a1"), Draft("b1", ("a1",)))

    def run(url: str, *arguments: str) -> Result:
        monkeypatch.setattr(manage, "chosen_project", lambda: project_of(url, config_of(tmp_path)))
        return CliRunner().invoke(manage.app, ["graph", *arguments])

    return run


def test_the_command_prints_the_graph_of_the_database(empty_url: str, show: Show) -> None:
    store(empty_url, ["a1"])

    result = show(empty_url)

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "○  b1  about b1  (head)\n●  a1  about a1  ← database\n\n● 1 applied  ○ 1 pending\n"


def test_the_command_shows_that_a_migrated_database_is_at_head(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    result = CliRunner().invoke(manage.app, ["graph"])

    assert result.exit_code == 0
    *revisions, _, legend = result.stdout.splitlines()
    assert revisions[0].endswith("(head)  ← database")
    assert legend == f"● {len(revisions)} applied"


def test_the_command_prints_a_document_or_a_flowchart(empty_url: str, show: Show) -> None:
    store(empty_url, ["a1"])

    document, flowchart = show(empty_url, "--json"), show(empty_url, "--mermaid")

    assert (document.exit_code, document.stderr) == (flowchart.exit_code, flowchart.stderr) == (0, "")
    assert [revision["state"] for revision in json.loads(document.stdout)["revisions"]] == ["pending", "applied"]
    assert flowchart.stdout.startswith("flowchart TD\n")


@pytest.mark.parametrize(
    ("database_url", "reason"),
    [
        ("sqlite:///gone.db", f"There is no file {Path.cwd()}/gone.db."),
        ("postgresql://127.0.0.1:1/x", "Connection refused"),
        ("mysql://localhost/x", "The project's database is mysql."),
    ],
)
def test_without_a_database_the_command_says_so_and_shows_the_files(show: Show, database_url: str, reason: str) -> None:
    result = show(database_url)

    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == ["·  b1  about b1  (head)", "·  a1  about a1"]
    assert "Only the files are shown" in result.stderr
    assert reason in result.stderr


def test_the_command_shows_a_broken_history(empty_url: str, show: Show, tmp_path: Path) -> None:
    (tmp_path / "versions" / "broken.py").write_text("raise SystemExit(")
    message = "a long message " * 20 + "[not markup]"
    store(empty_url, ["zz"], event("zz", "b1", message=message))

    result = show(empty_url)

    assert result.exit_code == 0
    assert f"?  zz  {message}  (in no file)  ← database\n" in result.stdout
    assert "broken.py: line 1: '(' was never closed" in result.stdout
