"""Each action of the console does exactly what the API's call does, once, and says before what that will be."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from console.actions import ACTIONS
from tests.support.accounts import Holder, answer_of, balance, books, deposit, register_all, send
from tests.support.console import Console, fail_after_writing, hidden, location, words
from tests.support.holds import hold
from tests.support.service import AS_OPERATOR, Rows


class Twin(NamedTuple):
    """A user with money, a transfer that it received, a hold for it, and two tokens."""

    holder: Holder
    transfer: int
    hold: int
    token: int


class Case(NamedTuple):
    """An action: its path and what is typed, the same call of the API, and what the page says."""

    path: str
    typed: dict[str, str]
    call: Callable[[TestClient, Twin], Response]
    says: str
    leads_to: str


def call(method: str, path: str, **body: Any) -> Callable[[TestClient, Twin], Response]:
    """A call of the operator's; {user} and its like in path and body are the twin's."""

    def send_it(client: TestClient, twin: Twin) -> Response:
        ids = ids_of(twin)
        filled = {name: ids["account"] if value == "{account}" else value for name, value in body.items()}
        filled = {name: ids["user"] if value == "{user}" else value for name, value in filled.items()}
        return client.request(method, path.format_map(ids), json=filled or None, headers=AS_OPERATOR)

    return send_it


def ids_of(twin: Twin) -> dict[str, int]:
    return {
        "user": twin.holder.user_id,
        "account": twin.holder.account_id,
        "transfer": twin.transfer,
        "hold": twin.hold,
        "token": twin.token,
    }


CASES = {
    "suspend": Case(
        "/users/{user}/suspend",
        {},
        call("PATCH", "/users/{user}", status="suspended"),
        "bob will be suspended",
        "/users/{user}?done=suspend",
    ),
    "reopen": Case(
        "/users/{user}/reopen",
        {},
        call("PATCH", "/users/{user}", status="active"),
        "bob will be active again",
        "/users/{user}?done=reopen",
    ),
    "close": Case(
        "/users/{user}/close",
        {},
        call("PATCH", "/users/{user}", status="closed"),
        "bob will be closed: all tokens of bob are revoked for good",
        "/users/{user}?done=close",
    ),
    "change": Case(
        "/users/{user}/change",
        {"email": " new@EXAMPLE.com ", "phone_number": "+4915112345678", "reference": ""},
        call("PATCH", "/users/{user}", email="new@example.com", phone_number="+4915112345678", reference=None),
        "E-mail address: someone@example.com becomes new@example.com. Phone number: none becomes +4915112345678.",
        "/users/{user}?done=change",
    ),
    "revoke-tokens": Case(
        "/users/{user}/revoke-tokens",
        {},
        call("DELETE", "/users/{user}/tokens"),
        "All tokens of bob stop working at once and for good",
        "/users/{user}?done=revoke-tokens",
    ),
    "revoke": Case(
        "/users/{user}/tokens/{token}/revoke",
        {},
        call("DELETE", "/users/{user}/tokens/{token}"),
        "of bob stops working at once and for good",
        "/users/{user}?done=revoke",
    ),
    "open-account": Case(
        "/users/{user}/open-account",
        {"currency": "JPY", "label": "savings"},
        call("POST", "/accounts", user_id="{user}", currency="JPY", label="savings"),
        "bob gets an account in JPY, named “savings”",
        "/accounts/",
    ),
    "deposit": Case(
        "/accounts/{account}/deposit",
        {"amount": "12.5", "memo": "Top-up", "reference": "order-1"},
        call("POST", "/deposits", account_id="{account}", amount=1250, memo="Top-up", reference="order-1"),
        "12.50 EUR will be paid into account",
        "/transfers/",
    ),
    "withdraw": Case(
        "/accounts/{account}/withdraw",
        {"amount": "1"},
        call("POST", "/withdrawals", account_id="{account}", amount=100),
        "1.00 EUR will be paid out of account",
        "/transfers/",
    ),
    "credit-limit": Case(
        "/accounts/{account}/credit-limit",
        {"credit_limit": "1 000.05"},
        call("PATCH", "/accounts/{account}", credit_limit=100_005),
        "changes from 0.00 EUR to 1 000.05 EUR",
        "/accounts/{account}?done=credit-limit",
    ),
    "reverse": Case(
        "/transfers/{transfer}/reverse",
        {},
        call("POST", "/transfers/{transfer}/reversal"),
        "3.00 EUR will go back from account",
        "/transfers/",
    ),
    "capture": Case(
        "/holds/{hold}/capture",
        {"amount": "1.50"},
        call("POST", "/holds/{hold}/capture", amount=150),
        "The rest, 0.50 EUR, is free again at once",
        "/transfers/",
    ),
    "void": Case(
        "/holds/{hold}/void",
        {},
        call("POST", "/holds/{hold}/void"),
        "2.00 EUR on account",
        "/holds/{hold}?done=void",
    ),
}


def state_of(rows: Rows, twin: Twin) -> list[Any]:
    """All that is stored of a twin, but for ids, times and keys."""
    user, account = twin.holder.user_id, twin.holder.account_id
    ours = f"(debit_account_id = {account} OR credit_account_id = {account})"
    return [
        rows(f"SELECT email, phone_number, reference IS NULL FROM users WHERE id = {user}"),
        rows(f"SELECT status FROM profiles WHERE user_id = {user}"),
        rows(f"SELECT name, revoked_at IS NULL FROM access_tokens WHERE user_id = {user} ORDER BY id"),
        rows(
            "SELECT currency, label, balance, held, credit_limit, version FROM accounts "
            f"WHERE user_id = {user} ORDER BY id"
        ),
        rows(
            f"SELECT debit_account_id = {account}, amount, currency, memo, reference, initiator, reverses_id IS NULL, "
            f"hold_id IS NULL FROM transfers WHERE {ours} ORDER BY id"
        ),
        rows(f"SELECT amount, status FROM holds WHERE {ours} ORDER BY id"),
    ]


@pytest.fixture
def twins(client: TestClient) -> list[Twin]:
    """Alice, whom the API changes, and bob, whom the console does."""
    alice, bob, carol = register_all(client, alice=1000, bob=1000, carol=10_000)
    twins = []
    for number, twin in enumerate((alice, bob)):
        client.patch(f"/users/{twin.user_id}", json={"reference": f"customer-{number}"}, headers=AS_OPERATOR)
        token = client.post(f"/users/{twin.user_id}/tokens", json={"name": "web"}, headers=AS_OPERATOR)
        transfer = send(client, carol, twin, 300, memo="Rent")
        twins.append(Twin(twin, transfer["id"], hold(client, carol, twin, 200)["id"], answer_of(token)["id"]))
    return twins


@pytest.mark.parametrize("name", CASES)
def test_an_action_changes_what_the_call_of_the_api_does(
    client: TestClient, rows: Rows, twins: list[Twin], name: str
) -> None:
    case, (alice, bob) = CASES[name], twins
    if name == "reopen":
        for twin in twins:
            assert call("PATCH", "/users/{user}", status="closed")(client, twin).status_code == 200
    before = state_of(rows, bob)
    assert before == state_of(rows, alice)

    console, path = Console(client), case.path.format_map(ids_of(bob))
    page = console.review(path, **case.typed)
    assert case.says in words(page)
    assert state_of(rows, bob) == before
    answer = console.confirm(path, page)

    assert case.call(client, alice).status_code in (200, 201, 204)
    assert state_of(rows, bob) == state_of(rows, alice) != before
    assert location(answer).startswith("/console" + case.leads_to.format_map(ids_of(bob)))
    [done] = [each.done for each in ACTIONS if each.name == name]
    assert done in words(console.get(location(answer).removeprefix("/console")))


def test_each_action_is_tested() -> None:
    others = [each.name for each in ACTIONS if each.scope != "webhooks"]
    assert sorted([*CASES, "erase", "issue-token"]) == sorted(others)


def test_a_closed_users_personal_data_is_erased(client: TestClient, rows: Rows) -> None:
    [bob] = register_all(client, bob=100)
    console, path = Console(client), f"/users/{bob.user_id}"
    location(console.do(f"{path}/close"))
    assert "An account of this user has money" in words(console.do(f"{path}/erase"))
    location(console.do(f"/accounts/{bob.account_id}/withdraw", amount="1"))

    page = console.review(f"{path}/erase")
    assert "of bob are erased for good." in words(page)
    assert location(console.confirm(f"{path}/erase", page)) == f"/console{path}?done=erase"

    assert rows("SELECT username FROM users") == [(f"erased {bob.user_id}",)]


@pytest.mark.parametrize("name", CASES)
def test_sent_twice_an_action_is_done_once(client: TestClient, rows: Rows, twins: list[Twin], name: str) -> None:
    if name == "reopen":
        call("PATCH", "/users/{user}", status="suspended")(client, twins[1])
    console, path = Console(client), CASES[name].path.format_map(ids_of(twins[1]))
    page = console.review(path, **CASES[name].typed)
    location(console.confirm(path, page))
    after = state_of(rows, twins[1])

    again = console.confirm(path, page)

    assert again.status_code in (303, 409)
    assert state_of(rows, twins[1]) == after


def test_a_token_is_issued_once_and_its_secret_shown_once(client: TestClient, rows: Rows) -> None:
    [bob] = register_all(client, bob=0)
    console, path = Console(client), f"/users/{bob.user_id}/issue-token"
    page = console.review(path, name="laptop", expires_in_days="90")
    assert "bob gets a new token named “laptop”, which expires after 90 days." in words(page)

    shown = console.confirm(path, page)

    secret = shown.text.partition('readonly value="')[2].partition('"')[0]
    assert client.get("/me", headers={"Authorization": f"Bearer {secret}"}).json()["id"] == bob.user_id
    # A second click, or a reload of the page with the secret.
    again = console.confirm(path, page)
    assert again.status_code == 409
    assert "or it was sent twice" in words(again)
    assert rows("SELECT name FROM access_tokens ORDER BY id") == [(None,), ("laptop",)]
    for path in ("", f"/users/{bob.user_id}", f"/users/{bob.user_id}/issue-token"):
        assert secret not in console.get(path).text


def test_what_someone_else_changed_meanwhile_is_not_overwritten_unseen(client: TestClient, rows: Rows) -> None:
    [bob] = register_all(client, bob=0)
    console, path = Console(client), f"/users/{bob.user_id}/change"
    page = console.review(path, email="first@example.com", phone_number="", reference="")
    client.patch("/me", json={"email": "bob@example.com"}, headers=bob.headers)

    answer = console.confirm(path, page)

    assert answer.status_code == 409
    assert "Something has changed since this page was shown" in words(answer)
    assert "bob@example.com becomes first@example.com" in words(answer)
    assert rows("SELECT email FROM users") == [("bob@example.com",)]
    assert location(console.confirm_anyway(path, answer)) == f"/console/users/{bob.user_id}?done=change"


def test_a_refusal_is_shown_in_words_with_what_was_typed(client: TestClient, rows: Rows) -> None:
    [bob] = register_all(client, bob=1000)
    console, before = Console(client), books(rows)

    answer = console.do(f"/accounts/{bob.account_id}/withdraw", amount="10.01", memo='"Payout" & more')

    assert answer.status_code == 409
    assert "Insufficient funds. The debit account has less than this amount available." in words(answer)
    assert f"Request {answer.headers.get('x-request-id', '')}".strip() in words(answer)
    assert 'value="10.01"' in answer.text
    assert 'value="&#34;Payout&#34; &amp; more"' in answer.text
    assert books(rows) == before


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        ({"amount": ""}, "Amount: This field is required."),
        ({"amount": "12,50"}, "Amount: Write a number such as 12.50."),
        ({"amount": "1.005"}, "Amount: EUR has 2 decimals."),
        ({"amount": "-1"}, "Amount: Write a number such as 12.50."),
        ({"amount": "0.00"}, "Amount: This is too small: 0.01 EUR is the least."),
        ({"amount": "90071992547409.92"}, "Amount: This is too large: 90 071 992 547 409.91 EUR is the most."),
        ({"amount": "1", "memo": "x" * 201}, "Memo: This is too long: write 200 or fewer characters."),
        ({"amount": "1", "memo": "a\u202eb"}, "Memo: Write one line of text, without control characters"),
    ],
)
@pytest.mark.parametrize("engine", ["sqlite"])
def test_what_cannot_be_read_is_named_beside_its_field(
    client: TestClient, rows: Rows, typed: dict[str, str], error: str
) -> None:
    [bob] = register_all(client, bob=0)
    console = Console(client)

    answer = console.review(f"/accounts/{bob.account_id}/deposit", **typed)

    assert answer.status_code == 422
    assert error in words(answer).replace(" :", ":")
    assert 'aria-invalid="true"' in answer.text
    assert balance(rows, bob.account_id) == 0


@pytest.mark.parametrize("engine", ["sqlite"])
def test_going_back_from_the_confirmation_loses_nothing(client: TestClient) -> None:
    [bob] = register_all(client, bob=0)
    console, path = Console(client), f"/accounts/{bob.account_id}/deposit"
    page = console.review(path, amount="7.25", memo="Gift")

    form = console.post(path, **{**hidden(page), "step": "edit"})

    assert (form.status_code, 'value="7.25"' in form.text, 'value="Gift"' in form.text) == (200, True, True)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_outcome_that_is_unknown_can_be_sent_again_with_the_same_key(
    client: TestClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    [bob] = register_all(client, bob=0)
    console, path = Console(client), f"/accounts/{bob.account_id}/deposit"
    page = console.review(path, amount="5")
    with monkeypatch.context() as patch:
        patch.setattr("operations.Operations.write", fail_after_writing())
        unknown = console.confirm(path, page)
    assert unknown.status_code == 503
    assert "It is unknown whether this was stored." in words(unknown)
    assert hidden(unknown)["key"] == hidden(page)["key"]
    assert balance(rows, bob.account_id) == 500

    location(console.post(path, **hidden(unknown), step="do"))

    assert balance(rows, bob.account_id) == 500


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_confirmation_without_its_key_does_nothing(client: TestClient, rows: Rows) -> None:
    [bob] = register_all(client, bob=0)
    console, path = Console(client), f"/accounts/{bob.account_id}/deposit"
    sent = hidden(console.review(path, amount="5"))

    for key in ("", "order-4711", "console-\u00e9"):
        assert console.post(path, **{**sent, "key": key, "step": "do"}).status_code == 200

    assert balance(rows, bob.account_id) == 0


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_subject_that_is_not_there_is_a_page_that_says_so(client: TestClient) -> None:
    console = Console(client)
    for path in ("/users/9", "/users/9/suspend", "/accounts/9/deposit", "/transfers/9/reverse", "/holds/9", "/users/x"):
        answer = console.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8"), path


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_other_users_token_is_not_revoked(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=0, bob=0)
    [(token,)] = rows(f"SELECT id FROM access_tokens WHERE user_id = {alice.user_id}")

    assert Console(client).get(f"/users/{bob.user_id}/tokens/{token}/revoke").status_code == 404


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_currency_that_is_not_known_is_refused(client: TestClient, rows: Rows) -> None:
    [bob] = register_all(client, bob=0)

    answer = Console(client).review(f"/users/{bob.user_id}/open-account", currency="XXXX", label="main")

    assert "Choose one of the list" in words(answer)
    assert deposit(client, bob.account_id, 1)["currency"] == "EUR"
