"""The console in a browser: by keyboard alone, on a phone, in the dark, and for who listens to it."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, ViewportSize, expect

from tests.support.accounts import Holder, answer_of, register_all, send
from tests.support.browser import ELSEWHERE
from tests.support.holds import hold
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, Server
from tests.support.transfers import reverse

WIDE, PHONE = ViewportSize(width=1200, height=800), ViewportSize(width=360, height=740)

SCREENSHOTS = {("", "light"): "dashboard", ("/users/1", "light"): "user", ("/accounts/1", "dark"): "account"}
SCREENSHOTS |= {("/transfers/20/reverse", "phone"): "reverse"}
"""The pages that docs/console.md shows, and how they are named there: `make screenshots`."""

RULES = {"light": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"], "dark": ["color-contrast"]}
"""What axe checks: in the dark, nothing but the colours is different; on a phone, no text is."""
KINDS = {
    *(
        "/sign-in",
        "",
        "/users",
        "/users/1",
        "/users/999",
        "/users/1/open-account",
        "/accounts/1",
        "/accounts/1/deposit",
    ),
    *("/transfers", "/transfers/5", "/transfers/20/reverse", "/holds/1", "/actions"),
    *("/events", "/webhooks", "/webhooks/1", "/create-webhook"),
}
"""A page of each kind."""

PAGES = (
    *("", "/users", "/users?q=al", "/users/1", "/users/1/change", "/users/1/issue-token", "/users/1/suspend"),
    *("/users/1/open-account", "/users/1/tokens/1/revoke", "/users/4", "/users/999", "/accounts/1", "/accounts/4"),
    *("/accounts/1/deposit", "/accounts/1/credit-limit", "/transfers", "/transfers/5", "/transfers/20"),
    *("/transfers/20/reverse", "/holds/1", "/holds/1/capture", "/actions"),
    *("/events", "/events?type=hold.created", "/webhooks", "/webhooks/1", "/webhooks/1?status=waiting"),
    *("/create-webhook", "/webhooks/1/new-secret", "/webhooks/1/deliveries/1/send-again"),
)

LONG = "the-very-long-name-" + "without-a-space" * 2


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def holders(api: httpx2.Client) -> list[Holder]:
    """Users with money, transfers, holds and tokens of all kinds; a webhook where nothing arrives."""
    answer_of(api.post("/webhooks", json={"url": f"http://127.0.0.1:9/{LONG * 9}"}, headers=AS_OPERATOR))
    # As much as fits into no tile, but for pictures.
    most = 325_000 if "SCREENSHOTS" in os.environ else 2**53 - 10**6
    alice, bob, carol, eve = holders = register_all(api, alice=325_000, bob=325_000, carol=325_000, **{LONG: most})
    for holder, name in zip(holders, ("alice", "bob", "carol", "dave"), strict=True):
        api.patch(f"/users/{holder.user_id}", json={"email": f"{name}@example.com"}, headers=AS_OPERATOR)
    details = {"reference": "customer-17", "phone_number": "+4915112345678", "metadata": {"plan": "pro"}}
    api.patch(f"/users/{alice.user_id}", json=details, headers=AS_OPERATOR)
    api.patch(f"/users/{eve.user_id}", json={"status": "suspended"}, headers=AS_OPERATOR)
    for name in ("laptop", "phone"):
        body = {"name": name, "expires_in_days": 90}
        token = answer_of(api.post(f"/users/{alice.user_id}/tokens", json=body, headers=AS_OPERATOR))
    api.delete(f"/users/{alice.user_id}/tokens/{token['id']}", headers=AS_OPERATOR)
    chance = random.Random(3)
    for _ in range(60):
        sender, receiver = chance.sample((alice, bob, carol), 2)
        memo = chance.choice(("Dinner", "Rent", "Invoice 4711", "x" * 200, None))
        sent = send(api, sender, receiver, chance.randint(100, 30_000), memo=memo)
    reverse(api, sent, AS_OPERATOR)
    hold(api, alice, bob, 2000, memo="Booking")
    return holders


@pytest.fixture(params=["light", "dark", "phone"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def context(browser: Browser, server: Server, kind: str) -> Iterator[BrowserContext]:
    size = PHONE if kind == "phone" else WIDE
    scheme: Literal["dark", "light"] = "dark" if kind == "dark" else "light"
    with browser.new_context(base_url=server.url, viewport=size, color_scheme=scheme) as context:
        yield context


def sign_in(page: Page) -> None:
    page.goto("/console")
    page.keyboard.type(OPERATOR_TOKEN)  # The field has the focus.
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this name has the focus, and can be seen to have it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "(() => { const on = document.activeElement;"
            " return [on.innerText || on.labels?.[0]?.innerText || '', getComputedStyle(on).outlineStyle] })()"
        )
        if focus[0].strip() == name:
            assert focus[1] == "solid", name
            return
    pytest.fail(f"Tab never came to {name}")


def enter(page: Page) -> None:
    with page.expect_navigation():
        page.keyboard.press("Enter")


def press(page: Page, name: str) -> None:
    tab_to(page, name)
    enter(page)


@pytest.mark.parametrize("kind", ["light"])
def test_by_keyboard_alone_a_user_who_lost_a_token_is_helped_and_a_wrong_transfer_reversed(
    context: BrowserContext, holders: list[Holder], api: httpx2.Client
) -> None:
    _, bob, carol, _ = holders
    page = context.new_page()
    wrong = send(api, bob, carol, 4711, memo="Wrong")
    sign_in(page)

    press(page, "Users")
    tab_to(page, "Name, e-mail address or reference")
    page.keyboard.type("BO")
    enter(page)
    press(page, "bob")
    press(page, "Revoke all tokens")
    expect(page.get_by_text("All tokens of bob stop working at once and for good")).to_be_visible()
    press(page, "Revoke all tokens")
    expect(page.get_by_role("status")).to_have_text("All tokens were revoked.")
    assert api.get("/me", headers=bob.headers).status_code == 401

    press(page, "Issue a token")
    page.keyboard.type("new phone")
    enter(page)
    expect(page.get_by_text("bob gets a new token named “new phone”")).to_be_visible()
    press(page, "Issue a token")
    secret = page.get_by_label("Secret").input_value()
    assert api.get("/me", headers={"Authorization": f"Bearer {secret}"}).json()["id"] == bob.user_id
    press(page, "I have copied it")

    press(page, f"Account {bob.account_id}")
    press(page, f"Transfer {wrong['id']}")
    press(page, "Reverse")
    expect(page.get_by_text(f"47.11 EUR will go back from account {carol.account_id} of carol")).to_be_visible()
    press(page, "Reverse")
    expect(page.get_by_role("status")).to_have_text("The transfer was reversed. This is the reversal.")
    page.keyboard.press("F5")
    back = api.get("/transfers", params={"account_id": bob.account_id, "limit": 1}, headers=AS_OPERATOR).json()["items"]
    assert [each["reverses_id"] for each in back] == [wrong["id"]]


@pytest.mark.parametrize("kind", ["phone"])
def test_by_keyboard_alone_a_webhook_is_created_and_tested(context: BrowserContext, holders: list[Holder]) -> None:
    page = context.new_page()
    sign_in(page)
    press(page, "Webhooks")
    press(page, "Create a webhook")
    page.keyboard.type("http://127.0.0.1:9/hooks")
    tab_to(page, "Types of events (optional)")
    page.keyboard.type("user.closed")
    press(page, "Go on")
    expect(page.get_by_text("Events: user.closed.")).to_be_visible()
    press(page, "Create a webhook")

    assert page.get_by_label("Secret").input_value().startswith("whsec_")
    assert_fits_and_is_read(page, RULES["light"])
    press(page, "I have copied it")
    press(page, "Test")
    press(page, "Test")
    expect(page.get_by_role("status")).to_have_text("The test is sent; its delivery shows what becomes of it.")


def assert_fits_and_is_read(page: Page, rules: list[str] | None) -> None:
    """The page is not wider than the window, and axe, by these rules, finds nothing."""
    hidden = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert hidden <= 0, f"{page.url} is {hidden} pixels too wide"
    if rules:
        found = Axe().run(page, options={"runOnly": rules}).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], page.url


def test_every_page_fits_is_read_aloud_and_needs_nothing_from_elsewhere(
    context: BrowserContext, holders: list[Holder], kind: str
) -> None:
    page, elsewhere, errors = context.new_page(), set(), []

    def refuse(route: Route) -> None:
        elsewhere.add(route.request.url)
        route.abort()

    context.route(ELSEWHERE, refuse)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    grounds = set()
    for path in ("/sign-in", *PAGES):
        if path == "":
            sign_in(page)
        page.goto(f"/console{path}")
        assert_fits_and_is_read(page, RULES.get(kind) if path in KINDS else None)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if "SCREENSHOTS" in os.environ and (path, kind) in SCREENSHOTS:
            page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{SCREENSHOTS[path, kind]}.png")
    assert elsewhere == set()
    # Of the user who is not there.
    assert len(errors) == 1
    assert grounds == {"rgb(18, 24, 23)" if kind == "dark" else "rgb(246, 247, 246)"}
