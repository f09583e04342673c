"""Importing: what is interrupted; how much of it."""

import csv
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from email_validator import validate_email
from hypothesis import given
from hypothesis import strategies as st

import importing
from fields import normalise_email
from settings import Settings
from tests.support.importing import HEADER, Import, counts, many, summary
from tests.support.service import ROOT, Rows, wait_until
from tokens import hash_secret

pytestmark = pytest.mark.slow

KILLED = """
import os, sys
sys.path.insert(0, {root!r})
import importing, manage

def kill_at_the_third(function):
    calls = []
    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), 9)
        return function(*arguments)
    return killed

importing.CHUNK = 10
importing.{place} = kill_at_the_third(importing.{place})
sys.argv[0] = "manage.py"
manage.app()
"""
"""The command, killed at the third call of something: Tokens.keep comes before a COMMIT, Import.note after it."""


@pytest.mark.parametrize("source", ["file", "-"])
# The refused line is among the third ten.
@pytest.mark.parametrize(("place", "committed"), [("Tokens.keep", 20), ("Import.note", 29)])
def test_who_is_killed_is_run_again_and_nobody_is_missing_or_doubled(  # noqa: PLR0917
    url: str, run: Import, file: Path, rows: Rows, place: str, committed: int, source: str
) -> None:
    file.write_text(f"{HEADER}{many(25)}bob,bob,\n{many(20, start=25)}")
    tokens = file.with_name("tokens.csv")
    options = ("--on-error", "continue", "--tokens", str(tokens), "--json")
    script = KILLED.format(root=str(ROOT), place=place)
    with file.open("rb") as content:
        process = subprocess.run(
            [sys.executable, "-c", script, "import", str(file) if source == "file" else "-", *options],
            cwd=file.parent,
            env={**os.environ, "DATABASE_URL": url},
            stdin=content,
            capture_output=True,
            check=False,
            timeout=60,
        )
    assert process.returncode == -signal.SIGKILL, process.stderr
    wait_until(lambda: counts(rows)[0] == committed, "what was committed")

    result = run(file, *options)

    assert (summary(result)["imported"], summary(result)["imported_before"]) == (45 - committed, committed)
    assert summary(result)["refused"] == 1
    assert counts(rows) == (45, 45, 45, 45)
    latest = {each["username"]: each["access_token"] for each in csv.DictReader(tokens.read_text().splitlines())}
    hashes: dict[str, str] = dict(
        rows("SELECT username, token_hash FROM users JOIN access_tokens ON user_id = users.id")
    )
    assert {name: hash_secret(token) for name, token in latest.items()} == hashes


def test_who_is_killed_before_a_rollback_import_ends_leaves_nothing(
    url: str, run: Import, file: Path, rows: Rows, tmp_path: Path
) -> None:
    file.write_text(f"{HEADER}{many(45)}")
    process = subprocess.run(
        [sys.executable, "-c", KILLED.format(root=str(ROOT), place="Import.note"), "import", str(file)],
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert counts(rows) == (0, 0, 0, 0)

    assert summary(run(file, "--json"))["imported"] == 45
    assert counts(rows) == (45, 45, 45, 0)


def test_a_pipe_in_which_nothing_comes_can_be_interrupted(url: str, rows: Rows, tmp_path: Path) -> None:
    script = KILLED.format(root=str(ROOT), place="Import.note")
    # Where these tests run in the background, Ctrl-C is ignored, which the command would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "import", "-", "--on-error", "continue"],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": url},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(f"{HEADER}{many(15)}".encode())
    process.stdin.flush()
    wait_until(lambda: counts(rows)[0] == 10, "the first ten")
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    finally:
        process.kill()
    _, stderr = process.communicate()

    assert stderr.decode() == "Interrupted. Run it again: nobody is imported twice.\n"
    assert process.returncode == 2
    assert counts(rows) == (10, 10, 10, 0)


def test_memory_does_not_grow_with_the_file(url: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "CHUNK", 100)

    def peak(start: int, lines: int) -> int:
        file.write_text(f"{HEADER}{many(lines, start)}")
        tracemalloc.start()
        try:
            with file.open("rb", 0) as raw:
                source = importing.Source(raw)
                found = importing.import_users(
                    source,
                    Settings(database_url=url),
                    on_error="rollback",
                    refusals=file.with_suffix(".refused.csv"),
                    tokens=None,
                    progress=lambda position, found: None,
                )
            assert found.imported == lines
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(0, 500)  # What is compiled and cached once.
    small, large = peak(500, 500), peak(1000, 5000)

    assert large < 1.5 * small


@given(
    st.builds(
        "{}@{}".format,
        st.one_of(
            st.from_regex(r"[a-zA-Z0-9_.+-]{0,66}", fullmatch=True), st.sampled_from(["POSTMASTER", "Info", "ü"])
        ),
        st.one_of(
            st.from_regex(r"[a-zA-Z0-9.-]{0,20}\.(com|DE|test|1)\n?", fullmatch=True),
            st.sampled_from(
                ["xn--mnchen-3ya.de", "münchen.de", "localhost", "example", "[127.0.0.1]", "x.com ", "X.com"]
            ),
        ),
    )
)
def test_an_email_is_judged_as_its_library_judges_it(email: str) -> None:
    def judged(judge: Callable[[str], Any]) -> str:
        try:
            return str(judge(email))
        except ValueError as error:
            return f"refused: {error}"

    assert judged(normalise_email) == judged(lambda email: validate_email(email, check_deliverability=False).normalized)
