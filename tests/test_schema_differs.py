"""A schema that is not what its revision says: the service is unready, and names doctor instead of a migration."""

from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import manage
from tests.support.project import VERSIONS, diagnose
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows, serving

CHANGES = {
    "ALTER TABLE users RENAME COLUMN phone_number TO phone": "ALTER TABLE users RENAME COLUMN phone TO phone_number",
    "ALTER TABLE profiles RENAME TO people": "ALTER TABLE people RENAME TO profiles",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_or_column_that_is_renamed_by_hand_is_reported_as_that(
    client: TestClient, rows: Rows, change: str
) -> None:
    rows(change)

    ready = client.get("/readyz")
    refused = client.post("/register", json=named("alice"))

    assert (ready.status_code, ready.json()["status"]) == (503, "differs")
    assert ready.json()["revision"] == ready.json()["head"]
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/schema-differs")
    assert "python manage.py doctor" in refused.json()["detail"]
    assert "upgrade" not in refused.json()["detail"]

    rows(CHANGES[change])
    assert client.get("/readyz").json()["status"] == "ready"
    assert client.post("/register", json=named("alice")).status_code == 201


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("accounts ALTER balance TYPE numeric", "accounts ALTER balance TYPE bigint"),
        ("entries ALTER balance_after TYPE double precision", "entries ALTER balance_after TYPE bigint"),
        ("users ALTER username TYPE char(60)", "users ALTER username TYPE text"),
        ("users ALTER created_at TYPE timestamp", "users ALTER created_at TYPE timestamptz"),
        ("transfers ALTER metadata TYPE jsonb", "transfers ALTER metadata TYPE json"),
        ("transfers ALTER metadata TYPE text", "transfers ALTER metadata TYPE json USING metadata::json"),
    ],
)
def test_a_column_whose_type_was_altered_by_hand_differs(
    client: TestClient, rows: Rows, change: str, undo: str
) -> None:
    rows(f"ALTER TABLE {change}")

    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "differs")
    assert 'status="differs"' in client.get("/metrics", headers=AS_OPERATOR).text

    rows(f"ALTER TABLE {undo}")
    assert client.get("/readyz").json()["status"] == "ready"


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_log_holds_no_balance_of_a_column_that_was_altered(url: str, rows: Rows, tmp_path: Path) -> None:
    with serving(url, tmp_path) as server:
        registered = httpx2.post(f"{server.url}/register", json=named("alice")).json()
        rows("ALTER TABLE accounts ALTER balance TYPE numeric; UPDATE accounts SET balance = 7654321")
        alice = {"Authorization": f"Bearer {registered['access_token']}"}
        for path in ("/accounts", "/accounts/1"):
            assert "7654321" in httpx2.get(f"{server.url}{path}", headers=alice).text

    assert "7654321" not in server.log


def test_at_a_newer_revision_too(client: TestClient, rows: Rows) -> None:
    rows("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert client.get("/readyz").json()["status"] == "ahead"

    rows("ALTER TABLE users RENAME COLUMN phone_number TO phone")

    assert (client.get("/readyz").status_code, client.get("/readyz").json()["status"]) == (503, "differs")
    assert client.get("/users", headers=AS_OPERATOR).json()["type"] == "/problems/schema-differs"


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_column_that_was_added_by_hand_and_needs_a_value_differs(client: TestClient, rows: Rows) -> None:
    rows("ALTER TABLE users ADD COLUMN loyalty integer NOT NULL")

    refused = client.post("/register", json=named("alice"))

    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/schema-differs")


def test_an_import_says_the_same(url: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    users = tmp_path / "users.csv"
    users.write_text("username,email\nalice,alice@example.com\n")
    rows("ALTER TABLE users RENAME COLUMN phone_number TO phone")

    answer = CliRunner().invoke(manage.app, ["import", str(users)])

    assert answer.exit_code == 2
    assert "python manage.py doctor" in answer.stderr
    assert "upgrade" not in answer.stderr


def next_command(url: str, root: Path) -> str | None:
    [diagnosis] = diagnose(url, VERSIONS, root)
    [step] = diagnosis.next_commands
    assert diagnosis.kind == "database-unreadable"
    return step.command


def test_doctor_asks_for_a_migration_only_where_there_is_no_file(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_text("notes " * 1000)

    assert next_command(f"sqlite:///{tmp_path}/none.db", tmp_path) == "alembic upgrade head"
    assert next_command(f"sqlite:///{damaged}", tmp_path) == "alembic-savepoint saves"
    assert next_command("postgresql://127.0.0.1:1/name", tmp_path) == "alembic-savepoint doctor"
