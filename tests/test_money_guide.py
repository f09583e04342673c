"""What docs/money.md shows works as it stands."""

import json
import re

from starlette.testclient import TestClient

from tests.support.accounts import deposit, register
from tests.support.service import AS_OPERATOR, ROOT

GUIDE = (ROOT / "docs/money.md").read_text()


def test_every_call_of_the_guide_works(client: TestClient) -> None:
    # Accounts: 1 the seller, 2 the buyer, 3 the system, 4 and, in dollars, 5 the house; 6 the buyer, in dollars.
    register(client, "seller")
    buyer = register(client, "buyer", funds=50_000)
    house = register(client, "house")
    for holder in (house, buyer):
        assert client.post("/accounts", json={"currency": "USD"}, headers=holder.headers).status_code == 201
    deposit(client, 5, 20_000)

    blocks = "\n".join(re.findall(r"```\n(.*?)```", GUIDE, re.DOTALL))
    calls = re.findall(r"^(POST) (/\S+) (\{.*?\})$", blocks, re.MULTILINE | re.DOTALL)
    calls += re.findall(r"`(PATCH) (/[^` ]+) (\{[^`]+\})`", GUIDE)

    assert len(calls) == 5
    for method, path, body in calls:
        answer = client.request(method, path.replace("{id}", "2"), json=json.loads(body), headers=AS_OPERATOR)
        assert answer.status_code in (200, 201), answer.text
    assert client.post("/holds/1/capture", headers=AS_OPERATOR).json()["reference"] == "payout-17"
