"""A PgBouncer in front of a test's database."""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.service import free_port, wait_until

needs_pgbouncer = pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="needs Debian's pgbouncer")


POOLER = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
default_pool_size = 3
ignore_startup_parameters = {ignored}
logfile = {folder}/pgbouncer.log
"""


def configure_pooler(
    url: str,
    folder: Path,
    pool_mode: str = "transaction",
    ignored: str = "extra_float_digits",
    more: str = "",
) -> tuple[list[str], str]:
    """A PgBouncer with three backends in front of this database: the command that runs it, and the URL through it."""
    parsed = make_url(url)
    listen_port = free_port()
    place = folder / f"pgbouncer-{listen_port}"
    place.mkdir()
    config = place / "pgbouncer.ini"
    config.write_text(
        POOLER.format(
            host=parsed.query["host"],
            port=parsed.port or 5432,
            listen_port=listen_port,
            pool_mode=pool_mode,
            ignored=ignored,
            folder=place,
        )
        + more
    )
    # It refuses to run as root, and the server's socket is for the server's own user.
    owner = Path(str(parsed.query["host"])).owner()
    as_user = ["-u", owner] if os.getuid() == 0 else []
    if as_user:
        shutil.chown(place, owner)
        for parent in (place, *place.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    through = f"postgresql://postgres@127.0.0.1:{listen_port}/{parsed.database}"
    return ["pgbouncer", "-q", *as_user, str(config)], through


def accepts(url: str) -> bool:
    """Whether a connection to this database can be opened."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def pooling(url: str, folder: Path, **options: str) -> Iterator[str]:
    """A PgBouncer in front of this database, as configure_pooler configures it; the URL through it."""
    command, through = configure_pooler(url, folder, **options)
    log = Path(command[-1]).with_name("pgbouncer.log")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        return accepts(through)

    try:
        wait_until(is_up, "PgBouncer to start")
        yield through
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
