"""What the pages of the console show, and that nothing that users write becomes a part of them."""

from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import crud
from main import app
from models import Transfer, User, now
from operations import Operations
from tests.support.accounts import answer_of, deposit, register, register_all, send
from tests.support.console import Console, location, words
from tests.support.database import Service, registration
from tests.support.holds import capture, hold
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import reverse, set_status, system_account

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


def test_a_user_is_found_by_the_beginning_of_its_name_its_address_and_its_reference(client: TestClient) -> None:
    alice, albert, bob = register_all(client, alice=0, albert=0, bob=0)
    for holder, email, reference in ((alice, "a@example.com", "c-1"), (albert, "b@example.com", "alice")):
        changes = {"email": email, "reference": reference}
        client.patch(f"/users/{holder.user_id}", json=changes, headers=AS_OPERATOR)
    console = Console(client)

    def found(sought: str) -> list[int]:
        page = console.client.get("/console/users", params={"q": sought})
        return [each.user_id for each in (alice, albert, bob) if f'href="/console/users/{each.user_id}"' in page.text]

    assert found("") == [alice.user_id, albert.user_id, bob.user_id]
    assert found("AL") == [alice.user_id, albert.user_id]
    assert found("a@EXAMPLE.com") == [alice.user_id]
    assert found(" c-1 ") == [alice.user_id]
    assert found("alice") == [alice.user_id, albert.user_id]
    for nothing in ("c", "%", "\x00", "\u202e", "x" * 300):
        assert found(nothing) == []


def test_lists_go_on_where_the_page_before_ended(client: TestClient) -> None:
    ids = [each.user_id for each in register_all(client, **{f"user{number:02}": 0 for number in range(30)})]
    console = Console(client)

    first = console.get("/users?q=user")
    following = first.text.partition('rel="next"')[0].rpartition('href="/console')[2].partition('"')[0]
    second = console.get(following.replace("&amp;", "&"))

    shown = [[id for id in ids if f'/users/{id}"' in page.text] for page in (first, second)]
    assert [len(each) for each in shown] == [25, 5]
    assert sorted(shown[0] + shown[1]) == ids
    assert console.get("/users?after=nonsense").status_code == 404


def test_a_users_page_shows_its_profile_tokens_accounts_and_holds(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=12_345, bob=0)
    details = {"reference": "customer-17", "metadata": {"plan": "pro"}, "phone_number": "+4915112345678"}
    client.patch(f"/users/{alice.user_id}", json=details, headers=AS_OPERATOR)
    client.post("/accounts", json={"currency": "JPY"}, headers=alice.headers)
    for name in ("laptop", "phone"):
        answer_of(client.post("/tokens", json={"name": name}, headers=alice.headers))
    rows("UPDATE access_tokens SET expires_at = created_at WHERE name = 'phone'")
    hold(client, alice, bob, 345, memo="Booking")
    client.delete(f"/tokens/{rows('SELECT min(id) FROM access_tokens')[0][0]}", headers=alice.headers)

    page = Console(client).get(f"/users/{alice.user_id}")

    for text in (
        "alice active",
        "Phone +4915112345678 Reference customer-17",
        "plan pro",
        "123.45 EUR 120.00 EUR",
        "0 JPY 0 JPY",
        "Booking",
        "3.45 EUR",
        "laptop number",
        "revoked",
        "expired",
    ):
        assert text in words(page)
    for (token_hash,) in rows("SELECT token_hash FROM access_tokens"):
        assert token_hash not in page.text


def test_an_account_shows_its_statement_with_the_balance_after_each_entry(client: TestClient, rows: Rows) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    sent = send(client, alice, bob, 250, memo="Dinner")
    console = Console(client)

    page = words(console.get(f"/accounts/{alice.account_id}"))

    assert f"Transfer {sent['id']} to account {bob.account_id}: Dinner" in page
    assert "\u22122.50 7.50" in page
    assert "+10.00 10.00" in page
    assert "it was between 7.50 EUR and 10.00 EUR, and is 7.50 EUR in the end." in page
    system = words(console.get(f"/accounts/{system_account(rows)}"))
    assert "of the system" in system
    assert "Balance \u221210.00 EUR" in system
    assert "Deposit" not in system


def test_a_transfer_shows_both_sides_its_hold_and_its_reversal(client: TestClient) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    held = hold(client, alice, bob, 300)
    captured = answer_of(capture(client, held["id"], AS_OPERATOR))
    back = answer_of(reverse(client, captured, AS_OPERATOR))
    deposit(client, bob.account_id, 5)
    console = Console(client)

    page = words(console.get(f"/transfers/{captured['id']}"))

    assert f"From account {alice.account_id} of alice Amount \u22123.00 EUR Balance after it 7.00 EUR" in page
    assert f"To account {bob.account_id} of bob Amount +3.00 EUR Balance after it 3.00 EUR Balance now 0.05 EUR" in page
    assert f"Reversed by transfer {back['id']}" in page
    assert f"Captured hold {held['id']}" in page
    assert f"Reverses transfer {captured['id']}" in words(console.get(f"/transfers/{back['id']}"))
    shown = words(console.get(f"/holds/{held['id']}"))
    assert f"captured Details Amount 3.00 EUR Held on account {alice.account_id} of alice" in shown
    assert f"Its transfer transfer {captured['id']}" in shown


def test_transfers_are_found_by_their_reference(client: TestClient) -> None:
    alice, bob = register_all(client, alice=1000, bob=0)
    ids = [send(client, alice, bob, 1, reference=reference)["id"] for reference in ("a&b=1", "other")]
    console = Console(client)

    def found(query: str) -> list[int]:
        page = console.get(f"/transfers{query}")
        return [id for id in ids if f'/transfers/{id}"' in page.text]

    assert (found(""), found("?reference=a%26b%3D1"), found("?reference=none")) == (ids, ids[:1], [])
    assert found("?reference=%00") == found("?reference=%E2%80%AE") == []
    assert location(console.get(f"/open?kind=transfers&id={ids[0]}")) == f"/console/transfers/{ids[0]}"
    for wrong in ("kind=tokens&id=1", "kind=users&id=x", "kind=users", "kind=users&id=0"):
        assert console.get(f"/open?{wrong}").status_code == 404


def test_what_is_shown_to_do_is_what_can_be_done(client: TestClient) -> None:
    alice, bob = register_all(client, alice=100, bob=0)
    sent = send(client, alice, bob, 1)
    console, user = Console(client), f"/users/{alice.user_id}"

    def offers(path: str, name: str) -> bool:
        return f'href="/console{path}/{name}"' in console.get(path).text

    assert (offers(user, "suspend"), offers(user, "reopen"), offers(user, "issue-token")) == (True, False, True)
    set_status(client, alice, "suspended")
    assert (offers(user, "suspend"), offers(user, "reopen"), offers(user, "issue-token")) == (False, True, False)
    set_status(client, alice, "active")
    assert offers(f"/transfers/{sent['id']}", "reverse")
    back = answer_of(reverse(client, sent, AS_OPERATOR))
    assert not offers(f"/transfers/{sent['id']}", "reverse")
    assert not offers(f"/transfers/{back['id']}", "reverse")


def test_what_users_write_stays_text(client: TestClient) -> None:
    alice = register(client, funds=1000)
    changes = {"reference": HOSTILE, "metadata": {"note": HOSTILE}}
    assert client.patch(f"/users/{alice.user_id}", json=changes, headers=AS_OPERATOR).status_code == 200
    answer_of(client.post("/tokens", json={"name": HOSTILE}, headers=alice.headers))
    answer_of(client.post("/accounts", json={"currency": "USD", "label": HOSTILE}, headers=alice.headers))
    eve = register(client, "<b>eve</b>\"'")
    written = {"memo": HOSTILE, "reference": HOSTILE, "metadata": {"note": HOSTILE}}
    sent, held = (make(client, alice, eve, 100, **written)["id"] for make in (send, hold))
    console = Console(client)
    shown = (
        *("/users", f"/users/{alice.user_id}", f"/users/{alice.user_id}/change", f"/users/{eve.user_id}/suspend"),
        *("/transfers", f"/transfers/{sent}", f"/transfers/{sent}/reverse", f"/holds/{held}"),
        *(f"/accounts/{alice.account_id}", f"/accounts/{eve.account_id}/deposit"),
    )
    echoed = (
        "/users?q=%3Cb%3E%22",
        "/transfers?reference=%3Cb%3E%22",
        "/users?done=%3Cb%3E",
        "/sign-in?next=/%3Cb%3E%22",
    )

    for path in (*shown, *echoed):
        page = console.get(path)
        assert "<b>" not in page.text, path
        assert "<script" not in page.text, path
    for path in shown:
        assert "&lt;" in console.get(path).text, path
    assert HOSTILE in words(console.get(f"/users/{alice.user_id}"))
    assert "<script" not in console.review(f"/accounts/{alice.account_id}/deposit", amount="1", memo=HOSTILE).text


def test_the_dashboard_counts_what_was_stored_in_the_last_minute(
    client: TestClient, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests have saved databases.
    monkeypatch.setattr(app.state.operations.settings, "saves_dir", tmp_path / "saves")
    register_all(client, alice=1000, bob=234)
    rows("UPDATE users SET created_at = '2026-01-01 00:00:00+00:00' WHERE username = 'alice'")
    client.post("/accounts", json={"user_id": 1, "currency": "JPY"}, headers=AS_OPERATOR)

    console = Console(client)
    console.get("/users/999")

    page = words(console.get("?refresh=10"))

    assert "Registrations in the last minute 1 Transfers in the last minute 2 Schema ready" in page
    assert "EUR, all balances of users 12.34 EUR" in page
    assert "User not found" in page.partition("Refusals by type")[2]
    assert "Loaded again every 10 seconds" in page
    assert "Last save on this machine none" in page


async def test_figures_count_new_rows_by_reading_few(operations: Operations, rows: Rows) -> None:
    for number in range(5):
        await operations.write(crud.register_users, registration(f"user{number}"))
    # A gap, as where registrations were refused.
    rows("DELETE FROM access_tokens WHERE user_id = 4")
    rows("DELETE FROM accounts WHERE user_id = 4")
    rows("DELETE FROM profiles WHERE user_id = 4")
    rows("DELETE FROM users WHERE id = 4")
    assert await operations.read(crud.count_newest, User, now() - timedelta(minutes=1)) == 4
    assert await operations.read(crud.count_newest, User, now() + timedelta(minutes=1)) == 0
    assert await operations.read(crud.count_newest, Transfer, now() - timedelta(minutes=1)) == 0
    rows("UPDATE users SET created_at = '2026-01-01 00:00:00+00:00' WHERE id < 3")
    assert await operations.read(crud.count_newest, User, now() - timedelta(minutes=1)) == 2


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_currency_that_the_settings_lost_is_shown_in_minor_units(service: Service, url: str) -> None:
    token = "the-operator-of-this-test"
    as_operator = {"Authorization": f"Bearer {token}"}
    async with service(url, operator_token=token, custom_currencies="POINTS:2") as client:
        await client.post("/register", json={"username": "alice", "email": "a@example.com"})
        await client.post("/accounts", json={"user_id": 1, "currency": "POINTS"}, headers=as_operator)
        await client.post("/deposits", json={"account_id": 2, "amount": 1250}, headers=as_operator)
    async with service(url, operator_token=token, custom_currencies="") as client:
        await client.post("http://localhost/console/sign-in", data={"token": token})
        page = await client.get("http://localhost/console/accounts/2")
    assert "1 250 minor units of POINTS" in words(page)
