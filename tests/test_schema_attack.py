"""Schemathesis attacks the service with all that its description allows or forbids, as a user and as the operator."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from main import app
from tests.support.accounts import register_all
from tests.support.events import create_webhook
from tests.support.holds import try_hold
from tests.support.service import AS_OPERATOR, ROOT, serving
from tests.support.transfers import set_status, try_transfer

pytestmark = pytest.mark.slow

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")

NEVER = {"DELETE /me"}
"""What is refused in the end: who has money is not closed."""

COUNTED = re.compile(r'savepoint_requests_total{method="(\w+)",route="([^"]+)",status="(\d+)"} (\d+)')


def fill(client: httpx2.Client) -> dict[str, str]:
    """Fill the database with what the examples name by its id: as its recipient, alice can reverse, capture and void.

    The tokens of a user and of the operator, by the names that the description gives them.
    """
    # By other names, which leave those of the examples free: no text that is generated is a name and an address.
    alice, bob, _ = register_all(client, alice_1=10**9, bob_1=10**9, carol_1=0)
    for _ in range(30):
        assert try_transfer(client, bob.headers, bob.account_id, alice.account_id, 1).status_code == 201
        assert try_hold(client, bob.headers, bob.account_id, alice.account_id, 1).status_code == 201
    # Token 4 is bob's in the examples, too.
    client.post(f"/users/{bob.user_id}/tokens", json={}, headers=AS_OPERATOR)
    # The user that tests/schemathesis.toml has erased.
    [former] = register_all(client, dave_1=0)
    assert former.user_id == 4
    set_status(client, former, "closed")
    # Several, of which the attack ends some.
    for _ in range(25):
        assert create_webhook(client)["id"]
    # So many that the last one has an id that nothing guesses: or else the attack would revoke its own.
    for _ in range(60):
        last = client.post(f"/users/{alice.user_id}/tokens", json={}, headers=AS_OPERATOR).json()
    return {"UserToken": f"Bearer {last['access_token']}", "OperatorToken": AS_OPERATOR["Authorization"]}


def count(client: httpx2.Client) -> Counter[tuple[str, str]]:
    """How often each route was answered, by status."""
    metrics = client.get("/metrics", headers=AS_OPERATOR).text.replace(".0\n", "\n")
    return Counter({(f"{method} {route}", status): int(n) for method, route, status, n in COUNTED.findall(metrics)})


def operations_for(scheme: str) -> set[str]:
    """The operations that are for whoever has this token, by the description."""
    return {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if any(scheme in each or not each for each in operation.get("security", [{}]))
    }


@pytest.mark.parametrize("scheme", ["UserToken", "OperatorToken"])
def test_no_check_of_schemathesis_finds_a_fault(scheme: str, tmp_path: Path) -> None:
    with (
        serving(f"sqlite:///{tmp_path}/savepoint.db", tmp_path, EVENTS="true", DELIVERER="false") as server,
        httpx2.Client(base_url=server.url) as client,
    ):
        token = fill(client)[scheme]
        before = count(client)
        command = [
            *(str(SCHEMATHESIS), "--config-file", str(ROOT / "tests" / "schemathesis.toml")),
            *("run", f"{server.url}/openapi.json", "--checks", "all", "--max-examples", "5", "--no-color"),
            *("--header", f"Authorization: {token}"),
        ]
        attack = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        answered = count(client) - before
        answered["GET /metrics", "200"] -= 1  # by count
    assert attack.returncode == 0, attack.stdout + attack.stderr
    summary = attack.stdout.partition("= SUMMARY =")[2]
    assert {"✅ Examples", "✅ Coverage", "✅ Fuzzing", "✅ Stateful"} <= set(re.findall("✅ [A-Z][a-z]+", summary))
    assert "500" not in {status for _, status in answered}

    # Were all calls refused, nothing would have been found.
    accepted = {route for (route, status), times in answered.items() if status.startswith("2") and times}
    mine = operations_for(scheme)
    others = operations_for("UserToken" if scheme == "OperatorToken" else "OperatorToken") - mine
    of_mine = Counter({key: times for key, times in answered.items() if key[0] in mine})
    share = sum(times for (_, status), times in of_mine.items() if status.startswith("2")) / of_mine.total()
    reached = f"{len(accepted & mine)} of {len(mine)} routes"
    print(f"{scheme}: {answered.total():,} calls, {share:.0%} answered with a 2xx, which {reached} gave")
    assert mine - accepted <= NEVER
    assert not others & accepted
    assert share > 0.1
