"""What the API would refuse whatever is filled in, the console does not offer, and refuses before anything is."""

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from tests.support.accounts import answer_of, register_all, send
from tests.support.console import Console, location, words
from tests.support.holds import capture, hold
from tests.support.service import AS_OPERATOR
from tests.support.transfers import reverse, set_status

# None of this depends on the database.
pytestmark = pytest.mark.parametrize("engine", ["sqlite"])


def refuses(page: Response, detail: str) -> bool:
    return page.status_code == 409 and detail in words(page) and "<form" not in page.text.partition("<main")[2]


def test_a_transfer_is_reversed_once_and_a_reversal_never(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    sent = send(client, alice, bob, 1)
    back = answer_of(reverse(client, sent, AS_OPERATOR))
    console, path, path_back = Console(client), f"/transfers/{sent['id']}", f"/transfers/{back['id']}"

    assert refuses(console.get(f"{path}/reverse"), "This transfer was already reversed.")
    assert f'href="/console{path}"' in console.get(f"{path}/reverse").text
    assert refuses(console.get(f"{path_back}/reverse"), "This transfer is itself a reversal")
    for each in (path, path_back):
        assert f"{each}/reverse" not in console.get(each).text
    assert f"reversed Reversed by transfer {back['id']}" in words(console.get(path))


def test_an_erased_user_cannot_be_changed(client: TestClient) -> None:
    [bob] = register_all(client, bob=0)
    console, path = Console(client), f"/users/{bob.user_id}"
    assert refuses(console.get(f"{path}/erase"), "Only of a closed user can the personal data be erased.")
    set_status(client, bob, "closed")
    assert "was erased" not in words(console.get(path))
    page = console.review(f"{path}/erase")
    location(console.confirm(f"{path}/erase", page))

    shown = console.get(path)

    assert "The personal data of this user was erased" in words(shown)
    for name in ("suspend", "reopen", "close", "erase", "change"):
        assert f"{path}/{name}" not in shown.text
        assert refuses(console.get(f"{path}/{name}"), "The personal data of this user was erased"), name
    # A second click.
    assert location(console.confirm(f"{path}/erase", page)) == f"/console{path}?done=erase"


def test_a_user_who_is_not_active_gets_no_token_and_no_account(client: TestClient) -> None:
    [bob] = register_all(client, bob=0)
    set_status(client, bob, "suspended")
    console, path = Console(client), f"/users/{bob.user_id}"

    assert "valid refused while suspended" in words(console.get(path))
    set_status(client, bob, "active")
    assert "valid Revoke" in words(console.get(path))
    set_status(client, bob, "suspended")
    for name in ("issue-token", "open-account"):
        assert f"{path}/{name}" not in console.get(path).text
        page = console.get(f"{path}/{name}")
        assert page.status_code == 403
        assert "This user is suspended or closed." in words(page)


def test_a_hold_that_is_not_open_is_left_alone(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    held = hold(client, alice, bob, 10)
    answer_of(capture(client, held["id"], AS_OPERATOR))
    console, path = Console(client), f"/holds/{held['id']}"

    for name in ("capture", "void"):
        assert f"{path}/{name}" not in console.get(path).text
        assert refuses(console.get(f"{path}/{name}"), "captured"), name


@pytest.mark.parametrize("path", ["/unknown", "/", "/users/1/unknown", "/users/x", "/actions/1"])
def test_a_path_that_is_not_there_is_a_page_that_says_so(client: TestClient, path: str) -> None:
    page = Console(client).get(path)

    assert page.status_code == 404
    assert "There is no such page" in words(page)
    assert 'href="/console/users"' in page.text
    assert location(Console(client).get("/sign-out")) == "/console"
    assert client.get("/consoles").headers["Content-Type"] == "application/problem+json"


def test_a_credit_limit_that_is_too_large_is_refused_in_its_currency(client: TestClient) -> None:
    [bob] = register_all(client, bob=0)

    page = Console(client).review(f"/accounts/{bob.account_id}/credit-limit", credit_limit="90071992547409.92")

    assert "This is too large: 90 071 992 547 409.91 EUR is the most." in words(page)
