"""A database, or role, whose settings are not the usual ones: everything works as ever."""

from pathlib import Path

import httpx2
import pytest
from sqlalchemy import make_url

from tests.support.accounts import answer_of, cash, order, register_all
from tests.support.migrations import only_postgresql
from tests.support.poolers import needs_pgbouncer, pooling
from tests.support.service import AS_OPERATOR, query, serving

pytestmark = [pytest.mark.slow, only_postgresql]

SETTINGS = {
    "datestyle": "German, DMY",
    "timezone": "Asia/Kathmandu",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "serializable",
}


def use_all(server_url: str) -> None:
    """Read and write instants."""
    with httpx2.Client(base_url=server_url) as client:
        alice, bob = register_all(client, alice=100, bob=0)
        sent = answer_of(
            client.post("/transfers", json=order(alice.account_id, bob.account_id, 1), headers=alice.headers)
        )
        for path in (
            "/me",
            "/tokens",
            "/accounts",
            f"/accounts/{alice.account_id}/entries",
            f"/transfers/{sent['id']}",
        ):
            assert client.get(path, headers=alice.headers).status_code == 200, path
        for instant in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
            then = client.get(f"/accounts/{alice.account_id}?at={instant}", headers=alice.headers)
            assert then.json()["balance"] == (99 if instant > "2" else 0)
        assert client.get("/users", headers=AS_OPERATOR).status_code == 200
        issued = client.post("/tokens", json={"expires_in_days": 3650}, headers=alice.headers)
        assert issued.status_code == 201
        answer_of(client.post("/deposits", json=cash(bob.account_id, 5), headers=AS_OPERATOR))


@pytest.fixture
def odd_url(url: str) -> str:
    for name, value in SETTINGS.items():
        query(url, f"ALTER DATABASE {make_url(url).database} SET {name} = '{value}'")
    return url


def test_the_settings_of_a_database_change_nothing(odd_url: str, tmp_path: Path) -> None:
    with serving(odd_url, tmp_path) as server:
        use_all(server.url)


@needs_pgbouncer
def test_nor_do_they_behind_a_pooler_in_transaction_mode(odd_url: str, tmp_path: Path) -> None:
    with pooling(odd_url, tmp_path) as through, serving(through, tmp_path) as server:
        use_all(server.url)
