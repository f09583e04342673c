"""Importing: what is imported; what is refused."""

import csv
import io
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import importing
from tests.support.importing import HEADER, Import, counts, many, summary
from tests.support.registration import CURSED
from tests.support.service import Rows
from tokens import hash_secret

ALICE_AND_BOB = f"{HEADER}Alice,alice@Example.com,+4915112345678\nbob,bob@example.com,\n"


STORED = """
    SELECT username, email, phone_number, status, currency, balance
    FROM users JOIN profiles ON profiles.user_id = users.id JOIN accounts ON accounts.user_id = users.id
    ORDER BY username
"""


def check_lines(content: str | bytes) -> list[Any]:
    """What the lines of a file hold: users, or a line's number and why it was refused."""
    text = content.encode() if isinstance(content, str) else content
    found: dict[int, Any] = {}
    for chunk in importing.Source(io.BytesIO(text)).chunks():
        found |= {number: user.model_dump() for number, user in chunk.registrations.items()}
        found |= {number: (number, refused.field, refused.detail) for number, refused in chunk.refused.items()}
    return [found[number] for number in sorted(found)]


def test_each_line_becomes_a_user_with_profile_and_account_and_no_token(run: Import, file: Path, rows: Rows) -> None:
    file.write_text(ALICE_AND_BOB)

    result = run(file)

    assert result.exit_code == 0, result.stderr
    assert result.stdout == "2 lines: 2 users imported, 0 before, 0 refused.\n"
    assert rows(STORED) == [
        ("alice", "alice@example.com", "+4915112345678", "active", "EUR", 0),
        ("bob", "bob@example.com", None, "active", "EUR", 0),
    ]
    assert counts(rows) == (2, 2, 2, 0)
    assert not file.with_name("users.refused.csv").exists()


def test_ndjson_is_imported_as_csv_is(run: Import, file: Path, rows: Rows) -> None:
    alice = {"phone_number": "+4915112345678", "username": "Alice", "email": "alice@Example.com"}
    bob = {"username": "bob", "email": "bob@example.com", "phone_number": None}
    file.write_text(f"{json.dumps(alice)}\n\n{json.dumps(bob)}")

    result = run(file, "--json")

    assert summary(result)["imported"] == 2
    assert [row[:3] for row in rows(STORED)] == [
        ("alice", "alice@example.com", "+4915112345678"),
        ("bob", "bob@example.com", None),
    ]


def test_tokens_are_issued_where_there_is_a_file_for_them(run: Import, file: Path, rows: Rows, tmp_path: Path) -> None:
    file.write_text(ALICE_AND_BOB)
    kept_in = tmp_path / "tokens.csv"

    run(file, "--tokens", kept_in)
    file.write_text(f"{HEADER}{many(1)}")
    run(file, "--tokens", kept_in)

    issued = list(csv.DictReader(kept_in.read_text().splitlines()))
    assert [each["username"] for each in issued] == ["alice", "bob", "user0"]
    assert stat.S_IMODE(kept_in.stat().st_mode) == 0o600
    stored = rows("SELECT username, token_hash FROM users JOIN access_tokens ON user_id = users.id ORDER BY username")
    assert stored == [(each["username"], hash_secret(each["access_token"])) for each in issued]


def test_who_was_imported_is_not_imported_again_even_changed_since(run: Import, file: Path, rows: Rows) -> None:
    file.write_text(f"{HEADER}{many(25)}")
    run(file)
    rows("UPDATE users SET email = 'moved@example.com' WHERE username = 'user7'")
    # Fixed, or in another order, it is another file with the same users.
    file.write_text(f"{HEADER}{many(5, start=23)}{many(23)}")

    result = run(file, "--json")

    assert result.exit_code == 0
    assert summary(result) | {"refusals": None} == {
        "lines": 28,
        "imported": 3,
        "imported_before": 25,
        "refused": 0,
        "tokens": 0,
        "rolled_back": False,
        "refusals": None,
    }
    assert counts(rows) == (28, 28, 28, 0)


def test_a_name_that_somebody_else_has_is_refused_even_with_the_same_fields(
    run: Import, file: Path, client: TestClient
) -> None:
    alice = {"username": "alice", "email": "alice@example.com", "phone_number": "+4915112345678"}
    assert client.post("/register", json=alice).status_code == 201
    file.write_text(ALICE_AND_BOB)

    result = run(file, "--on-error", "continue", "--json")

    assert result.exit_code == 1
    assert summary(result)["refused"] == 1
    assert summary(result)["imported"] == 1
    assert "2,username,This username is taken." in file.with_name("users.refused.csv").read_text()


def test_where_a_line_is_refused_nothing_is_imported(run: Import, file: Path, rows: Rows) -> None:
    file.write_text(f"{HEADER}{many(25)}USER3,other@example.com,\nbob smith,bob,12\n")

    result = run(file, "--json")

    assert result.exit_code == 1
    assert "Nothing was imported, since 2 lines were refused; " in result.stderr
    assert summary(result) == {
        "lines": 27,
        "imported": 0,
        "imported_before": 0,
        "refused": 2,
        "tokens": 0,
        "rolled_back": True,
        "refusals": str(file.with_name("users.refused.csv")),
    }
    assert counts(rows) == (0, 0, 0, 0)
    name = "A username is made of letters, digits and visible ASCII characters, without spaces"
    assert list(csv.reader(file.with_name("users.refused.csv").read_text().splitlines())) == [
        ["line", "field", "refusal", "username", "email", "phone_number"],
        ["27", "username", "This username is taken. Choose another one.", "USER3", "other@example.com", ""],
        [
            "28",
            "username; email; phone_number",
            f"{name}; An email address must have an @-sign.; Write the number with its country code: a plus sign, then "
            "7 to 15 digits, as in +4915112345678",
            "bob smith",
            "bob",
            "12",
        ],
    ]


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_refused_lines_are_fixed_and_imported(run: Import, tmp_path: Path, rows: Rows, form: str) -> None:
    file = tmp_path / f"users.{form}"
    if form == "csv":
        file.write_text(f'{HEADER}{many(12)}bob,b@x.com,1,2\nb"o,\n"carol,c@x.com,\n')
    else:
        users = [{"username": f"user{number}", "email": f"user{number}@example.com"} for number in range(12)]
        file.write_text("\n".join(map(json.dumps, users)) + '\n{"username": "bob", "admin": 1}\n{"a"\n[]\n')

    refused = run(file, "--on-error", "continue", "--json")

    assert refused.exit_code == 1
    assert (summary(refused)["imported"], summary(refused)["refused"]) == (12, 3)
    fixed = Path(summary(refused)["refusals"])
    assert fixed.name == f"users.refused.{form}"
    assert stat.S_IMODE(fixed.stat().st_mode) == 0o600
    lines = fixed.read_text().splitlines()
    if form == "csv":
        assert [line.partition(",")[0] for line in lines] == ["line", "14", "15", "16"]
        lines[1] = lines[1].replace("bob,b@x.com,1,2", "bob,b@x.com,")
        lines[2] = "15,,,bo,bo@x.com,"
        lines[3] = "16,,,carol,c@x.com,"
    else:
        notes = [json.loads(line) for line in lines]
        assert [each["line"] for each in notes] == [13, 14, 15]
        assert notes[0]["refusal"] == "This field is required; There is no such field"
        assert notes[1]["text"] == '{"a"'
        lines = [
            json.dumps({"line": each["line"], "username": f"b{each['line']}", "email": "b@x.com"}) for each in notes
        ]
    fixed.write_text("\n".join(lines))

    assert run(fixed).exit_code == 0
    assert counts(rows) == (15, 15, 15, 0)


def test_an_older_file_of_refusals_is_kept(run: Import, file: Path) -> None:
    refusals = file.with_name("users.refused.csv")
    refusals.write_text("half fixed")
    file.write_text(f"{HEADER}bob,bob,\n")

    run(file)

    assert file.with_name("users.refused.csv~").read_text() == "half fixed"
    assert refusals.read_text().startswith("line,field,refusal")


def test_a_line_that_fails_unforeseen_fails_alone(run: Import, file: Path, rows: Rows, engine: str) -> None:
    rows(CURSED[engine])
    file.write_text(f"{HEADER}{many(5)}cursed,cursed@example.com,\n{many(5, start=5)}")

    result = run(file, "--on-error", "continue", "--json")

    assert (summary(result)["imported"], summary(result)["refused"]) == (10, 1)
    assert counts(rows) == (10, 10, 10, 0)
    refused = file.with_name("users.refused.csv").read_text()
    assert "Unexpected error of the database" in refused
    assert "cursed: " not in refused  # The database's own words may hold anybody's data.


ALICE = {"username": "alice", "email": "a@x.com", "phone_number": None}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xef\xbb\xbfemail,username\r\n\r\na@x.com,alice\r\n,\r\n", [ALICE, 4]),
        ('username,email\n"alice","a@x.com"\nbob,"b@x.com\nalice,a@x.com', [ALICE, 3]),
        ('username,email\n"bob"by,b@x.com\nalice,a@x.com', [2, ALICE]),
        ("username,email\nalice,a@x.com,\nalice\n\n", [2, 3]),
        (b"username,email\nalice,a@x.com\nbj\xf6rn,b@x.com\nbob\0,b@x.com\nal\0ice,b\0@x.com", [ALICE, 3, 4, 5]),
        ("username,email\nx" + "y" * 3 * importing.LIMIT + ",\nalice,a@x.com", [2, ALICE]),
        ("username,email,line\nalice,a@x.com,7\n" + "z" * 51 + ",z@x.com,8", [ALICE, 3]),
        (b'\xef\xbb\xbf{"username":"alice","email":"a@x.com"}\r\n\r\n{"username":1,"email":"a@x.com"}', [ALICE, 3]),
        ('{"username":"a"\n"email":"b@x.com"}\n{}\nnull\n{"username":"a","email":NaN}', [1, 2, 3, 4, 5]),
        ('{"username":"a\\ud800","email":"b@x.com"}\n{"username":"a\\u0000","email":"b@x.com"}', [1, 2]),
        ("[" * 1000 + '\n{"username":"alice","email":"a@x.com"}', None),
        ('{"a":' + "[" * 1000 + '\n{"username":"alice","email":"a@x.com"}', [1, ALICE]),
    ],
)
def test_a_bad_line_is_named_and_harms_no_other(content: str | bytes, found: list[Any] | None) -> None:
    if found is None:
        with pytest.raises(importing.ImportRefused):
            check_lines(content)
    else:
        assert [each if isinstance(each, dict) else each[0] for each in check_lines(content)] == found


def test_a_refusal_tells_what_is_wrong() -> None:
    for line, field, words in (
        (b"bj\xf6rn,b@x.com", "", "Byte 3 of the record, 0xf6, is not UTF-8. Save the file as UTF-8."),
        (b'"bob,b@x.com', "", "This is not CSV: unexpected end of data. Put quotes in pairs."),
        (b"bob", "", "There is 1 column, and line 1 names 2."),
        (b",b@x.com", "username", "This is too short: write 1 or more characters"),
        (b"x" * 5000, "", "The record is longer than 4,095 characters. No user needs as many."),
    ):
        assert check_lines(b"username,email\n" + line) == [(2, field, words)]
    assert check_lines('{"username": "a",}') == [(1, "", "This is not JSON: trailing comma at column 18.")]
    assert check_lines('{"username": "a", "email": 3}') == [(1, "email", "A text is expected")]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\n",
        b"\xef\xbb\xbf",
        b"name,email\n",
        b"username\n",
        b"username;email\n",
        b"username,email,email\n",
        b"bob,bob@x.com\n",
        "username,email\n".encode("utf-16"),
        b'[{"username": "bob"}]',
        b'"username,email\n',
    ],
)
def test_a_file_that_is_none_of_users_imports_nothing(run: Import, file: Path, rows: Rows, header: bytes) -> None:
    file.write_bytes(header + (b"bob,b@example.com\n" if header.strip() else b""))

    result = run(file, "--on-error", "continue")

    assert result.exit_code == 2
    assert result.stderr.startswith(("Nothing was imported. Line 1: ", "Nothing was imported. There are no lines."))
    assert counts(rows) == (0, 0, 0, 0)


def test_what_cannot_be_imported_is_exit_code_2(
    run: Import, file: Path, tmp_path: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = run(file)
    file.write_text(ALICE_AND_BOB)
    over_itself = run(file, "--refusals", file)
    monkeypatch.setenv("DATABASE_URL", empty_url)
    if empty_url.startswith("sqlite"):
        (tmp_path / empty_url.rpartition("/")[2]).touch()
    behind = run(file)
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost:1/x")
    unreachable = run(file)

    for result, words in (
        (missing, "No such file or directory. Name another file"),
        (over_itself, "Name different files"),
        (behind, "alembic upgrade head"),
        (unreachable, "The database cannot be reached"),
    ):
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    assert file.read_text() == ALICE_AND_BOB
