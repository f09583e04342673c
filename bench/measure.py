"""One contender under load: what it cost, and whether everything that was answered was stored."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]
from pydantic import BaseModel
from sqlalchemy import func, text
from sqlmodel import SQLModel, select

from bench.contenders import WATCHED, Contender, serving
from bench.engines import OPERATOR_TOKEN, Engine, copy_of
from bench.filling import bearer_token
from bench.load import BUSY, HERE, Load, Measurement, run_pgbench, run_wrk
from bench.workloads import ME, ROWS, Workload
from db.engines import create_migration_engine

Step = tuple[Workload, Sequence[Load]]


def measure(
    contender: Contender, steps: Iterable[Step], engine: Engine, template: str, folder: Path
) -> Iterator[tuple[Workload, Load, Measurement]]:
    """Put the contender under each load in turn, and check that nothing was lost, halved or made.

    It runs on a copy of the template.
    """
    answers: Counter[str] = Counter()
    checked: set[Workload] = set()
    with copy_of(engine, template) as url:
        if contender.function is not None and engine.server is not None:
            engine.server.psql(f"\\connect copy\n{(HERE / contender.function).read_text()}")
        rows = count_rows(url)
        with serving(contender, url, folder) as served:
            send = partial(measure_load, contender, engine, served)
            for workload, loads in steps:
                if contender.app is not None and workload not in checked:
                    check_answer(workload, served[1][0])
                    checked.add(workload)
                    answers[workload.kind] += 1
                warm_up = replace(loads[0], connections=BUSY, seconds=loads[0].warm_up)
                answers[workload.kind] += send(workload, warm_up).answers
                for load in loads:
                    measured = send(workload, load)
                    answers[workload.kind] += measured.answers
                    yield workload, load, measured
        # Only now, since the server stores what it accepted before it ends.
        if contender.stores:
            check_rows(url, rows, answers)
        check_books(url)


def measure_load(
    contender: Contender, engine: Engine, served: tuple[list[int], list[str]], workload: Workload, load: Load
) -> Measurement:
    """Send the load, and find what it took."""
    pids, urls = served
    if contender.app is not None:
        for url in urls:
            # It waits its turn behind what the load before hung up on.
            ask(url, ME)
    forget_peaks(pids)
    before = cpu_seconds(pids, engine)
    watched = watch(urls[0]) if contender is WATCHED else None
    script = contender.script.format(workload.kind)
    measured = run_pgbench(script, workload, urls[0], load) if contender.app is None else run_wrk(workload, urls, load)
    after = cpu_seconds(pids, engine)
    answers = max(1, measured.answers)
    if watched is not None:
        batches, calls, waited = (late - early for early, late in zip(watched, watch(urls[0]), strict=True))
        measured = replace(measured, batch_size=calls / max(1, batches), waited=waited * 1000 / answers)
    server_cpu, database_cpu, sender_cpu, machine_cpu = (
        late - early for early, late in zip(before, after, strict=True)
    )
    return replace(
        measured,
        server_cpu=server_cpu * 1000 / answers,
        database_cpu=database_cpu * 1000 / answers,
        memory=sum(peak_memory(each) for each in trees(pids)) / 1e6,
        disturbance=max(0, machine_cpu - server_cpu - database_cpu - sender_cpu) / load.seconds,
    )


def check_answer(workload: Workload, origin: str) -> None:
    """Send one request, and end the benchmark unless the answer is what Savepoint answers."""
    answer = ask(origin, workload)
    if not answer.is_success or answer.json().keys() != names_of(workload.answer):
        sys.exit(f"{answer.status_code}: {answer.text}")
    workload.answer.model_validate_json(answer.content)


def names_of(answer: type[BaseModel]) -> set[str]:
    """The names of an answer's fields, as callers see them."""
    return {field.alias or name for name, field in answer.model_fields.items()}


def ask(origin: str, workload: Workload) -> httpx2.Response:
    """Send one request as user 2."""
    method = "GET" if workload.body is None else "POST"
    headers = {"Authorization": f"Bearer {bearer_token(2)}"}
    return httpx2.request(method, origin + workload.path, json=workload.body, headers=headers, timeout=60)


def count_rows(url: str) -> dict[type[SQLModel], int]:
    """How many rows the tables hold."""
    tables = {table for counts in ROWS.values() for table in counts}
    with create_migration_engine(url).connect() as connection:
        return {table: connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def check_rows(url: str, before: dict[type[SQLModel], int], answers: Counter[str]) -> None:
    """End the benchmark where an answer of 2xx is not in the database, whole."""
    after = count_rows(url)
    for kind, counts in ROWS.items():
        stored = {(after[table] - before[table]) / count for table, count in counts.items()}
        # There may be more than answers: wrk hangs up on what is still under way at the end.
        if len(stored) != 1 or min(stored) < answers[kind]:
            sys.exit(f"{answers[kind]} of kind {kind} were answered, and the tables hold {stored} of them.")


def check_books(url: str) -> None:
    """End the benchmark where balances, entries and transfers do not add up."""
    with create_migration_engine(url).connect() as connection:
        for subject, id in connection.execute(text((HERE / "books.sql").read_text())):
            sys.exit(f"The books are wrong: {subject} {id}")


def watch(origin: str) -> tuple[float, float, float]:
    """How many batches of transfers there were so far, the calls in them, and the seconds that calls waited."""
    lines = httpx2.get(f"{origin}/metrics", headers={"Authorization": f"Bearer {OPERATOR_TOKEN}"}).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines)
    size = 'savepoint_batch_size_{}{{operation="make_transfers"}}'
    names = (size.format("count"), size.format("sum"), "savepoint_waited_seconds_total")
    batches, calls, waited = (float(values[name]) for name in names)
    return batches, calls, waited


def cpu_seconds(server_pids: list[int], engine: Engine) -> tuple[float, float, float, float]:
    """The CPU time that server, database server, sender of the load and the whole machine have used so far."""
    # The processes of connections that were just closed end, and their parent takes over what they used.
    time.sleep(0.1)
    sender = resource.getrusage(resource.RUSAGE_CHILDREN)
    machine = psutil.cpu_times()
    database = engine.server.get_pid() if engine.server else None
    return (
        sum(map(process_seconds, trees(server_pids))),
        sum(map(process_seconds, trees([database] if database else []))),
        sender.ru_utime + sender.ru_stime,
        sum(machine) - machine.idle - getattr(machine, "iowait", 0),
    )


def trees(pids: list[int]) -> list[psutil.Process]:
    """Processes and their descendants."""
    return [each for pid in pids for each in (*psutil.Process(pid).children(recursive=True), psutil.Process(pid))]


def process_seconds(process: psutil.Process) -> float:
    """The CPU time of a process, and of its children that have ended."""
    with suppress(psutil.NoSuchProcess):
        return float(sum(process.cpu_times()[:4]))
    return 0


def forget_peaks(pids: list[int]) -> None:
    """Let Linux begin anew with the peak memory of these processes (proc_pid_clear_refs(5))."""
    for process in trees(pids):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_memory(process: psutil.Process) -> int:
    """The most memory that a process has used, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
