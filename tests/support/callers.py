"""Helpers of the tests of callers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from httpx2 import Response
from sqlmodel import SQLModel
from starlette.testclient import TestClient

from tests.support.accounts import Headers, Holder, answer_of, cash, order, register_all
from tests.support.holds import hold
from tests.support.operator import issue_key_of
from tests.support.registration import named
from tests.support.service import AS_OPERATOR, Rows
from tests.support.transfers import set_status, system_account

MARK = "wonderland"
"""A word that is in what alice and bob have, and in nothing that others may see."""

RECEIVER = "https://hooks.example/savepoint"
"""The URL of a webhook that nobody can find."""

WORDS: dict[str, Any] = {"memo": MARK, "reference": MARK, "metadata": {"of": MARK}}


class World:
    """Alice, and what is hers; bob, the other party of all of it; eve, who is a party of none of it."""

    def __init__(self, client: TestClient, rows: Rows, eve: int = 1000) -> None:
        self.client = client
        self.rows = rows
        self.numbers = count(1)
        self.alice, self.bob, self.eve = register_all(client, **{MARK: 1000, "bob": 1000, "eve": eve})
        record = {"email": f"{MARK}@example.com", "reference": MARK, "metadata": {"of": MARK}}
        assert self._by_operator("PATCH", f"/users/{self.alice.user_id}", record).status_code == 200

    def _by_operator(self, method: str, path: str, body: Any = None) -> Response:
        return self.client.request(method, path, json=body, headers=AS_OPERATOR)

    def issue(self, holder: Holder) -> tuple[int, Headers]:
        """A new token of this user: its id, and the header that has it."""
        token = answer_of(self._by_operator("POST", f"/users/{holder.user_id}/tokens", {}))
        return token["id"], {"Authorization": f"Bearer {token['access_token']}"}

    def send(self, sender: Holder, receiver: Holder, headers: Headers | None = None) -> dict[str, Any]:
        """A transfer of 1, by the sender unless another caller is named."""
        body = order(sender.account_id, receiver.account_id, 1, **WORDS)
        return answer_of(self.client.post("/transfers", json=body, headers=headers or sender.headers))

    def end(self, hold_id: int, call: str) -> int:
        """Capture or void a hold as the operator; its id."""
        assert self._by_operator("POST", f"/holds/{hold_id}/{call}").is_success
        return hold_id

    def reversal(self) -> dict[str, Any]:
        """The reversal of a transfer, as a transfer."""
        return answer_of(self._by_operator("POST", f"/transfers/{self.send(self.bob, self.alice)['id']}/reversal"))

    def user(self, status: str, funds: int = 5) -> Holder:
        """A user in this status, with so much in its account."""
        [holder] = register_all(self.client, **{f"{MARK}{next(self.numbers)}": funds})
        set_status(self.client, holder, status)
        return holder

    @contextmanager
    def in_status(self, holder: Holder, status: str) -> Iterator[Headers]:
        """Suspend or close a user for a while; the header with a token that it has."""
        _, headers = self.issue(holder)
        set_status(self.client, holder, status)
        yield headers
        set_status(self.client, holder, "active")

    def transaction(self) -> dict[str, Any]:
        """A transaction of one transfer, from bob to alice."""
        leg = order(self.bob.account_id, self.alice.account_id, 1, **WORDS)
        return answer_of(self.client.post("/transactions", json={"transfers": [leg]}, headers=self.bob.headers))

    def webhook(self) -> int:
        """A webhook."""
        return int(answer_of(self._by_operator("POST", "/webhooks", {"url": RECEIVER}))["id"])

    def event(self) -> int:
        """An event that has its number."""
        [first, *_] = self._by_operator("GET", "/events?wait=10").json()["items"]
        return int(first["id"])

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row that there is, but for the numbers that events get by themselves, and the deliveries."""
        shown = dict.fromkeys(SQLModel.metadata.tables, "*") | {"events": "id, type, size"}
        del shown["event_numbers"], shown["webhook_deliveries"]
        rows = {name: self.rows(f"SELECT {columns} FROM {name}") for name, columns in shown.items()}
        return {name: sorted(found, key=repr) for name, found in rows.items()}


class Things(dict[str, Any]):
    """What is alice's, by the names that the tables of calls use; each is made when it is asked for first."""

    def __init__(self, world: World, **things: Any) -> None:
        super().__init__(things)
        self.world = world

    def __missing__(self, name: str) -> Any:
        world = self.world
        make: dict[str, Callable[[], Any]] = {
            "name": lambda: f"{MARK}{next(world.numbers)}",
            "number": lambda: f"+4915{next(world.numbers):0>9}",
            "user": lambda: world.alice.user_id,
            "another user": lambda: world.user("active").user_id,
            "former user": lambda: world.user("closed", funds=0).user_id,
            "account": lambda: world.alice.account_id,
            "bobs": lambda: world.bob.account_id,
            "eves": lambda: world.eve.account_id,
            "transfer": lambda: world.send(world.bob, world.alice)["id"],
            "transaction": lambda: world.transaction()["id"],
            "hold": lambda: hold(world.client, world.bob, world.alice, 1, **WORDS)["id"],
            "captured": lambda: world.end(self["hold"], "capture"),
            "token": lambda: world.issue(world.alice)[0],
            "webhook": world.webhook,
            "event": world.event,
            "key": lambda: issue_key_of(world.client, "keys")["id"],
        }
        self[name] = make[name]()
        return self[name]


def variants(world: World) -> dict[str, list[Any]]:
    """What is not eve's, in every state that it can be in, by the names that the tables of calls use."""
    alice, bob = world.alice, world.bob
    suspended, closed = world.user("suspended"), world.user("closed")
    paid_in = answer_of(world.client.post("/deposits", json=cash(alice.account_id, 1, **WORDS), headers=AS_OPERATOR))
    dollars = answer_of(world.client.post("/accounts", json={"currency": "USD", "label": MARK}, headers=bob.headers))
    reversal, (revoked, _) = world.reversal(), world.issue(alice)
    assert world.client.delete(f"/tokens/{revoked}", headers=alice.headers).status_code == 204
    held, captured, voided = (hold(world.client, bob, alice, 1, **WORDS)["id"] for _ in range(3))
    transfers = [world.send(bob, alice), world.send(bob, alice, AS_OPERATOR), paid_in, reversal]
    transfers += world.transaction()["transfers"]
    owners = [alice, suspended, closed]
    return {
        "user": [each.user_id for each in owners],
        "account": [
            *(each.account_id for each in (alice, suspended, closed)),
            system_account(world.rows),
            dollars["id"],
        ],
        "transfer": [*(each["id"] for each in transfers), reversal["reverses_id"]],
        "transaction": [1],
        "hold": [held, world.end(captured, "capture"), world.end(voided, "void")],
        "token": [world.issue(alice)[0], revoked],
    }


def outcome_of(response: Response) -> str:
    """The status, and the kind of problem if it is one."""
    if response.headers.get("content-type") != "application/problem+json":
        return str(response.status_code)
    problem = response.json()
    assert problem["status"] == response.status_code
    return f"{response.status_code} {problem['type'].removeprefix('/problems/')}"


def shown_by(response: Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """All that a caller can tell two answers apart by."""
    return response.status_code, sorted(response.headers.multi_items()), response.content


def registered_as(name: str) -> dict[str, Any]:
    return named(name, email=f"{name}@example.com")
