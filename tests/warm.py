"""A Python that has imported the libraries already and runs each alembic command in a fork of itself.

Importing them takes most of such a command's time. The repository's own modules are imported by each fork, from the
folder that it runs in, since a test may have changed them.
"""

import json
import os
import runpy
import socket
import sys
import traceback
from importlib import import_module
from socketserver import ForkingMixIn, StreamRequestHandler, UnixStreamServer

LIBRARIES = [
    "alembic.config",
    "alembic.autogenerate",
    "email_validator",
    "filelock",
    "logging.config",
    "precis_i18n",
    "prometheus_client",
    "psycopg",
    "pydantic_settings",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "sqlalchemy.ext.asyncio",
    "sqlmodel.ext.asyncio.session",
]


class Command(StreamRequestHandler):
    """Runs the command that a caller sends, on the caller's standard output and error; answers its exit code."""

    def handle(self) -> None:
        request, (output, errors), _, _ = socket.recv_fds(self.request, 1_000_000, 2)
        arguments, folder, environment = json.loads(request)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        sys.path[0] = folder  # as `python -m` does
        code = run()
        sys.stdout.flush()
        sys.stderr.flush()
        self.wfile.write(b"%d" % code)


class Commands(ForkingMixIn, UnixStreamServer):
    """Each command in a process of its own."""

    request_queue_size = 50


def run() -> int:
    """Run `python -m alembic` in this process; its exit code."""
    try:
        runpy.run_module("alembic", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return (end.code or 0) & 0xFF
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for library in LIBRARIES:
        import_module(library)
    with Commands(sys.argv[1], Command) as commands:
        print("ready", flush=True)
        commands.serve_forever()
