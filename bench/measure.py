"""One contender under one load: what it cost, and whether everything that was answered was stored."""

import resource
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]
from sqlalchemy import func
from sqlmodel import SQLModel, select

from audit import open_books
from bench.contenders import Contender, serving
from bench.engines import Engine, copy_of
from bench.load import Load, Measurement, run_pgbench, run_wrk
from bench.workloads import Workload, bearer_token
from database import create_migration_engine

WARM_UP = 2
"""Seconds of load before the measured ones: connections open, statements are compiled and prepared."""


def measure(contender: Contender, workload: Workload, engine: Engine, load: Load, folder: Path) -> Measurement:
    """Put the contender under load on fresh data, and check that nothing was lost, halved or made."""
    with copy_of(engine, workload.template) as url:
        rows = count_rows(workload, url)
        with serving(contender, url, folder) as (pid, target):
            if contender.app is not None:
                check_answer(workload, target)
            send = partial(run_pgbench if contender.app is None else run_wrk, workload, target)
            warm_up = send(replace(load, seconds=WARM_UP), "warm")
            before = cpu_seconds(pid, engine)
            measured = send(load, "load")
            after = cpu_seconds(pid, engine)
        # Only now, since the server stores what it accepted before it ends.
        if contender.stores:
            check_rows(workload, url, rows, (contender.app is not None) + warm_up.answers + measured.answers)
        check_books(url)
    server_cpu, database_cpu, sender_cpu, machine_cpu = (
        late - early for early, late in zip(before, after, strict=True)
    )
    return replace(
        measured,
        server_cpu=server_cpu * 1000 / measured.answers,
        database_cpu=database_cpu * 1000 / measured.answers,
        disturbance=max(0, machine_cpu - server_cpu - database_cpu - sender_cpu) / load.seconds,
    )


def check_answer(workload: Workload, origin: str) -> None:
    """Send one request, and end the benchmark unless the answer is what Savepoint answers."""
    headers = {"Authorization": f"Bearer {bearer_token(2)}"}
    answer = httpx2.post(origin + workload.path, json=workload.first, headers=headers, timeout=30)
    if answer.status_code != 201 or answer.json().keys() != workload.answer.model_fields.keys():
        sys.exit(f"{answer.status_code}: {answer.text}")
    workload.answer.model_validate_json(answer.content)


def count_rows(workload: Workload, url: str) -> dict[type[SQLModel], int]:
    """How many rows the tables hold that this workload writes."""
    with create_migration_engine(url).connect() as connection:
        return {table: connection.scalar(select(func.count()).select_from(table)) or 0 for table in workload.rows}


def check_rows(workload: Workload, url: str, before: dict[type[SQLModel], int], answers: int) -> None:
    """End the benchmark where an answer of 2xx is not in the database, whole."""
    added = {table: count - before[table] for table, count in count_rows(workload, url).items()}
    stored = {added[table] / count for table, count in workload.rows.items()}
    # There may be more than answers: wrk hangs up on what is still under way at the end.
    if len(stored) != 1 or stored.pop() < answers:
        rows = ", ".join(f"{count} {table.__tablename__}" for table, count in added.items())
        sys.exit(f"{answers} were answered, and these rows stored: {rows}.")


def check_books(url: str) -> None:
    """End the benchmark where money was made or lost."""
    with open_books(url) as books:
        for finding in books.run(lambda _: None):
            sys.exit(f"{finding.subject}: {finding.fault}")


def cpu_seconds(server_pid: int | None, engine: Engine) -> tuple[float, float, float, float]:
    """The CPU time that server, database server, sender of the load and the whole machine have used so far."""
    # The processes of connections that were just closed end, and their parent takes over what they used.
    time.sleep(0.1)
    sender = resource.getrusage(resource.RUSAGE_CHILDREN)
    machine = psutil.cpu_times()
    return (
        tree_cpu_seconds(server_pid) if server_pid else 0,
        tree_cpu_seconds(engine.server.get_pid()) if engine.server else 0,
        sender.ru_utime + sender.ru_stime,
        sum(machine) - machine.idle - getattr(machine, "iowait", 0),
    )


def tree_cpu_seconds(pid: int | None) -> float:
    """The CPU time of a process and its descendants, those that have ended included."""
    process = psutil.Process(pid)
    seconds = 0.0
    for each in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            # The time of a child that has ended is kept by its parent.
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
