"""`python -m tests.chaos --seconds 60 --seed 1`: faults on every setup, and what they did to the promises."""

import argparse
import asyncio
import os
import random
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import SETUPS, run


def main() -> int:
    """Attack each setup for its share of the time; return 1 where a promise was broken, or too little happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of attack, for all setups together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("setups", nargs="*", choices=[*SETUPS, []], help=", ".join(SETUPS))
    arguments = parser.parse_args()
    setups = arguments.setups or list(SETUPS)
    print(f"seed {arguments.seed}: the same seed sends the same calls and faults; their timing differs", flush=True)
    failed = False
    if "pgbouncer" in setups and shutil.which("pgbouncer") is None:
        print("pgbouncer: left out, since Debian's pgbouncer is not installed", flush=True)
        setups.remove("pgbouncer")
    for setup in setups:
        folder = Path(tempfile.mkdtemp(prefix="savepoint-chaos-"))
        report = asyncio.run(run(setup, arguments.seconds / len(setups), random.Random(arguments.seed), folder))
        print(report.text(), flush=True)
        failed |= report.has_failed
        if report.has_failed:
            print(f"logs and database: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    # In a mount namespace of its own, so that no full disk is left behind whatever ends this process.
    if os.geteuid() == 0 and shutil.which("unshare") and "CHAOS_UNSHARED" not in os.environ:
        os.environ["CHAOS_UNSHARED"] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", "tests.chaos", *sys.argv[1:]])  # noqa: S606
    sys.exit(main())
