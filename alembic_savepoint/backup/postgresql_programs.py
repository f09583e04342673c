"""PostgreSQL's own programs, as saves use them: pg_dump and pg_restore."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable

from psycopg.conninfo import make_conninfo

from alembic_savepoint.backup.save_files import SaveError
from alembic_savepoint.connections import driver_url

INSTALL = (
    "Saves of PostgreSQL need its client programs, of version {server} or newer: install postgresql-client-{server} "
    "(Debian, Ubuntu: apt install postgresql-client-{server}), or put the folder that has them first on the PATH. Then "
    "run this again. Nothing was changed."
)


def libpq(url: str) -> tuple[str, str | None]:
    """Return the connection string for PostgreSQL's programs, and separately the password."""
    parsed = driver_url(url)
    _, parameters = parsed.get_dialect()().create_connect_args(parsed)
    parameters.pop("context", None)
    password = parameters.pop("password", None)
    return make_conninfo("", **parameters), password


def complaint(said: Iterable[bytes]) -> str:
    """Return the error in the output of one of PostgreSQL's programs, without lines that repeat what is in rows."""
    lines = [line.decode(errors="replace").strip() for line in said]
    errors = [line for line in lines if re.match(r"\w+: error: ", line)]
    return re.sub(r"^(\w+: )+\s*", "", (errors[-1:] or lines[-1:] or ["nothing"])[0])


def start(program: str, server_version: str, *options: str, url: str | None = None) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs. Raises SaveError if it is missing, or older than the server."""
    server = server_version.partition(".")[0]
    path = shutil.which(program)
    if path is None:
        raise SaveError(f"{program} is not on the PATH. {INSTALL.format(server=server)}")
    # PostgreSQL's programs, by their paths; no shell takes part.
    command = [path, "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603  # nosec B603
    version = re.search(r"\(PostgreSQL\) (\d+)", shown)
    if version is None or int(version[1]) < int(server):
        raise SaveError(f"{path} is {shown.strip()}, too old for the server. {INSTALL.format(server=server)}")
    environment = {**os.environ, "LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}
    if url is not None:
        conninfo, password = libpq(url)
        if password is not None:
            environment["PGPASSWORD"] = password
        options = ("--no-password", f"--dbname={conninfo}", *options)
    return subprocess.Popen(  # noqa: S603 (as above)  # nosec B603
        [path, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
