"""examples/shop: whatever is lost or killed in between, each order is paid once."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from examples.shop import shop as module
from examples.shop.shop import Shop, Unavailable, sell
from tests.support.service import AS_OPERATOR, ROOT, Rows

# The shop is what is tested here.
pytestmark = pytest.mark.parametrize("engine", ["sqlite"])


class Killed(BaseException):
    """The end of the shop's process."""


class Trouble(httpx2.BaseTransport):
    """The way to the service, on which one call goes wrong, or all from one on."""

    def __init__(self, service: TestClient) -> None:
        self.service = service
        self.expect("nothing", at=0)

    def expect(self, what: str, at: int) -> None:
        self.what, self.left, self.met = what, at, False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.left -= 1
        what = self.what if self.left == 0 or (self.what == "outage" and self.left < 0) else None
        self.met = self.met or what is not None
        if what in ("busy", "outage"):
            return httpx2.Response(503, json={"type": "/problems/overloaded"})
        if what == "killed before":
            raise Killed
        answer = self.service.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        if what == "killed after":
            raise Killed
        if what == "lost":
            raise httpx2.ReadError("the connection was lost")
        return httpx2.Response(answer.status_code, content=answer.content)


@pytest.fixture(autouse=True)
def credits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the service as the shop's README says; the shop tries again at once."""
    for name, value in {
        "CUSTOM_CURRENCIES": "CREDITS",
        "DEFAULT_CURRENCY": "CREDITS",
        "REGISTRATION": "operator",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PAUSES", (0, 0))


@pytest.fixture
def trouble(client: TestClient) -> Trouble:
    return Trouble(client)


@pytest.fixture
def savepoint(trouble: Trouble) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url="http://savepoint", headers=AS_OPERATOR, transport=trouble) as savepoint:
        yield savepoint


def test_the_shop_prints_what_its_readme_shows_however_often_it_runs(
    savepoint: httpx2.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [shown] = re.findall(r"```text\n(.*?)```", (ROOT / "examples/shop/README.md").read_text(), re.DOTALL)

    sell(Shop(tmp_path / "shop.db", savepoint))
    assert capsys.readouterr().out == shown
    sell(Shop(tmp_path / "shop.db", savepoint))
    assert capsys.readouterr().out.splitlines()[-4:] == shown.splitlines()[-4:]


def live(shop: Shop, name: str) -> None:
    """One customer's life: an order that is paid, one that is cancelled and one that is returned."""
    buyer, seller = f"buyer-{name}", f"seller-{name}"
    for username in (buyer, seller):
        shop.sign_up(username, f"{username}@example.com")
    shop.top_up(buyer, 6000, f"payment-{name}")
    for number, price in enumerate((2000, 2500, 1000)):
        shop.buy(f"{number}-{name}", buyer, seller, price)
    shop.deliver(f"0-{name}")
    shop.cancel(f"1-{name}")
    shop.deliver(f"2-{name}")
    shop.take_back(f"2-{name}")


@pytest.mark.parametrize("what", ["lost", "busy", "killed before", "killed after", "outage"])
def test_each_order_is_paid_once_wherever_something_goes_wrong(
    what: str, savepoint: httpx2.Client, trouble: Trouble, tmp_path: Path, rows: Rows
) -> None:
    shop = Shop(tmp_path / "shop.db", savepoint)
    lives, met = 0, True
    while met:
        lives += 1
        trouble.expect(what, at=lives)
        try:
            live(shop, str(lives))
        except (Killed, Unavailable):
            trouble.what = "nothing"
            shop = Shop(tmp_path / "shop.db", savepoint)
            shop.resume()
            live(shop, str(lives))
        met = trouble.met

    assert lives > 14
    names = "SELECT username, balance, held FROM accounts JOIN users ON users.id = user_id ORDER BY username"
    assert rows(names) == [
        *sorted((f"buyer-{life}", 4000, 0) for life in range(1, lives + 1)),
        ("fees", 60 * lives, 0),
        *sorted((f"seller-{life}", 1940, 0) for life in range(1, lives + 1)),
        ("till", 0, 0),
    ]
