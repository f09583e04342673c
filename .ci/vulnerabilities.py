"""Look every pinned package up among the known vulnerabilities (osv.dev); any finding, and any doubt, is exit code 1.

Where that service cannot be reached, say so and end with 0. PIP_AUDIT_OSV_URL names another service of its kind.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx2

SERVICE = os.environ.get("PIP_AUDIT_OSV_URL", "https://api.osv.dev/v1/query")
# It has several, so that a service that says it has none knows nothing.
VULNERABLE = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}
ROOT = Path(__file__).parent.parent


def main() -> int:
    """Ask about a package that is known to be vulnerable, and then about those that are pinned."""
    try:
        answer = httpx2.post(SERVICE, json=VULNERABLE, timeout=15)
    except httpx2.TransportError as error:
        print(f"Vulnerabilities were not looked up: {SERVICE} cannot be reached from here ({error}).")
        return 0
    if not answer.is_success or not answer.json().get("vulns"):
        print(f"{SERVICE} does not know a vulnerability that is known: {answer.status_code} {answer.text[:200]}")
        return 1
    options = ("--strict", "--require-hashes", "--disable-pip", "--progress-spinner=off", "--vulnerability-service=osv")
    command = [sys.executable, "-m", "pip_audit", *options, "--osv-url", SERVICE]
    lists = sys.argv[1:] or [str(ROOT / "requirements-dev.txt")]
    # It has all of requirements.txt, and what tests and checks need.
    audit = subprocess.run(  # noqa: S603 (no shell takes part)  # nosec B603
        [*command, *(f"--requirement={each}" for each in lists)], check=False
    )
    return audit.returncode


if __name__ == "__main__":
    sys.exit(main())
