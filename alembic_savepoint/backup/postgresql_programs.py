"""PostgreSQL's own programs, as saves use them: pg_dump, pg_restore and psql."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from psycopg.conninfo import make_conninfo

from alembic_savepoint.backup.save_files import UNCHANGED, Progress, SaveError
from alembic_savepoint.connections import driver_url

INSTALL = (
    "Saves of PostgreSQL need its client programs, of version {server} or newer: install postgresql-client-{server} "
    "(Debian, Ubuntu: apt install postgresql-client-{server}), or put the folder that has them first on the PATH. Then "
    "run this again. Nothing was changed."
)
DONE = "savepoint: done"
SQL_FAILED = 3
"""psql's exit code if a statement failed."""


def libpq(url: str) -> tuple[str, dict[str, str]]:
    """Return the connection string for PostgreSQL's programs, and their environment with the password."""
    parsed = driver_url(url)
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    parameters.pop("context", None)
    password = parameters.pop("password", None)
    environment = {**os.environ, "LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}
    if password is not None:
        environment["PGPASSWORD"] = password
    return make_conninfo("", **parameters), environment


class Psql:
    """psql in a transaction that only `commit` commits: any earlier failure, also of this process, rolls it back."""

    def __init__(self, url: str, server_version: str) -> None:
        options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"]
        self.process = start("psql", url, server_version, *options)
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.input, self.messages = self.process.stdin, self.process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Cancel what is running; then the input ends, without a COMMIT.
        self.process.send_signal(signal.SIGINT)
        with suppress(BrokenPipeError), self.process:
            pass

    def send(self, lines: Iterable[bytes], rows: int, progress: Progress) -> None:
        """Send SQL in which most lines are rows. Raises SaveError if an earlier line has failed already."""
        try:
            for number, line in enumerate(lines):
                self.input.write(line)
                if number % 1000 == 0:
                    progress("Loading", min(number, rows), rows)
        except BrokenPipeError:
            raise failure(self.messages) from None

    def run(self, script: str) -> None:
        """Send SQL, and wait until it and all before it are done. Raises SaveError if they failed."""
        with suppress(BrokenPipeError):
            self.input.write(f"{script}\n\\warn {DONE}\n".encode())
            self.input.flush()
        said = []
        for line in self.messages:
            if line.strip() == DONE.encode():
                return
            said.append(line)
        raise failure(said)

    def commit(self) -> None:
        """Commit the transaction. Raises SaveError, which says whether the database is unchanged."""
        with suppress(BrokenPipeError):
            self.input.write(b"COMMIT;\n")
            self.input.close()
        said = list(self.messages)
        status = self.process.wait()
        if status == SQL_FAILED:
            raise failure(said)
        if status:
            raise SaveError(
                f"The answer to COMMIT did not arrive ({complaint(said)}), so it is not known whether the save was "
                "loaded. The newest save whose name begins with replaced- holds what was there before; compare: "
                "alembic-savepoint saves"
            )


def failure(said: Iterable[bytes]) -> SaveError:
    """Return the error of a psql that failed before its COMMIT."""
    fault = complaint(said)
    role = re.fullmatch(r"role (\".+\") does not exist", fault)
    advice = f". A policy in the save needs it. Create it, and load again: CREATE ROLE {role[1]}" if role else ""
    extension = re.fullmatch(r"permission denied to create extension (\".+\")", fault)
    if extension:
        advice = f". Create it as a superuser, and load again: CREATE EXTENSION {extension[1]}"
    return SaveError(f"{UNCHANGED} PostgreSQL says: {fault}{advice}")


def complaint(said: Iterable[bytes]) -> str:
    """Return the error in the output of one of PostgreSQL's programs, without lines that repeat what is in rows."""
    lines = [line.decode(errors="replace").strip() for line in said]
    # psql stops at its first error, which is not called ERROR if the server's language is not English.
    errors = [line for line in lines if re.match(r"psql:<stdin>:\d+: |\w+: error: ", line)]
    return re.sub(r"^(psql:<stdin>:\d+: )?(\w+: )+\s*", "", (errors[-1:] or lines[-1:] or ["nothing"])[0])


def start(program: str, url: str, server_version: str, *options: str) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs. Raises SaveError if it is missing, or older than the server."""
    server = server_version.partition(".")[0]
    path = shutil.which(program)
    if path is None:
        raise SaveError(f"{program} is not on the PATH. {INSTALL.format(server=server)}")
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    version = re.search(r"\(PostgreSQL\) (\d+)", shown)
    if version is None or int(version[1]) < int(server):
        raise SaveError(f"{path} is {shown.strip()}, too old for the server. {INSTALL.format(server=server)}")
    conninfo, environment = libpq(url)
    if program != "pg_restore":
        options = ("--no-password", f"--dbname={conninfo}", *options)
    return subprocess.Popen(  # noqa: S603
        [path, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
