"""A process of clients: `python -m tests.chaos.actors URL WORLD LOG NAME SEED PATIENCE`, until SIGTERM."""

import asyncio
import json
import random
import signal
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.calls import Call, Client
from tests.support.accounts import cash, order
from tests.support.registration import named
from tests.support.service import AS_OPERATOR

ACTORS = 12
"""How many act at the same time in a process, each making one call after another."""

HOLDERS = 10
"""How many of the users, the first ones, hold money; the rest has all of its balance available."""

BATCH = 12
"""Items of a batch, at most."""


@dataclass(frozen=True)
class Party:
    """A user of the world, its account, and its token."""

    user_id: int
    account_id: int
    token: str

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} | ({"Idempotency-Key": key} if key else {})


def read_world(path: Path) -> list[Party]:
    return [Party(**each) for each in json.loads(path.read_text())]


def write_world(path: Path, parties: list[Party]) -> None:
    path.write_text(json.dumps([asdict(each) for each in parties]))


class Actor:
    """A client program that does whatever its seed says, one thing after the other."""

    def __init__(self, client: Client, parties: list[Party], name: str, seed: int) -> None:
        self.client = client
        self.parties = parties
        self.name = name
        self.random = random.Random(f"{seed} {name}")
        self.made = 0
        self.paid: list[tuple[int, Party]] = []
        """Transfers that can be reversed, each with its recipient."""

    async def act_until(self, stop: asyncio.Event) -> None:
        actions = {
            self.register: 3,
            self.register_many: 1,
            self.transfer: 8,
            self.transfer_hot: 4,
            self.transfer_many: 2,
            self.hold: 3,
            self.link: 2,
            self.reverse: 2,
            self.pay: 2,
            self.read: 6,
        }
        while not stop.is_set():
            [action] = self.random.choices(list(actions), weights=list(actions.values()))
            await action()

    def new_key(self) -> str:
        self.made += 1
        return f"{self.name}-{self.made}"

    def new_call(self, kind: str, key: str | None = None, **fields: Any) -> Call:
        return Call(kind, key or self.new_key(), sent=time.monotonic(), **fields)

    def new_registration(self) -> dict[str, Any]:
        self.made += 1
        return named(f"{self.name}n{self.made}", phone_number="+4912345678" if self.made % 2 else None)

    def new_uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def amount(self) -> int:
        return self.random.choice([1, 10, 500, 4_000])

    def two(self) -> tuple[Party, Party]:
        sender, recipient = self.random.sample(self.parties, 2)
        return sender, recipient

    async def register(self) -> None:
        body, key = self.new_registration(), self.new_uuid()
        call = self.new_call("registration", key, about=body["username"])
        await self.client.send(call, "POST", "/register", body, {"Idempotency-Key": key})

    async def register_many(self) -> None:
        users = [self.new_registration() | {"idempotency_key": self.new_uuid()} for _ in range(3)]
        items = [self.new_call("registration", each["idempotency_key"], about=each["username"]) for each in users]
        await self.send_batch("/users/batch", {"users": users, "on_error": "continue"}, AS_OPERATOR, items)

    async def transfer(self) -> None:
        await self.make_transfer(*self.two())

    async def transfer_hot(self) -> None:
        shop = self.parties[-1]
        other = self.random.choice(self.parties[:-1])
        await self.make_transfer(*((other, shop) if self.random.random() < 0.7 else (shop, other)))

    async def make_transfer(self, sender: Party, recipient: Party) -> None:
        call = self.new_call("transfer", account_id=sender.account_id)
        body = order(sender.account_id, recipient.account_id, self.amount(), reference=call.key)
        call.about = body["amount"]
        await self.client.send(call, "POST", "/transfers", body, sender.headers(call.key))
        if call.is_done:
            self.paid.append((call.answer["id"], recipient))

    async def transfer_many(self) -> None:
        sender = self.random.choice(self.parties)
        on_error = self.random.choice(["rollback", "continue"])
        batch = self.new_key() if on_error == "rollback" else None
        items = [
            self.new_call("batch item", account_id=sender.account_id, about=batch)
            for _ in range(self.random.randint(2, BATCH))
        ]
        others = [each for each in self.parties if each is not sender]
        transfers = [
            order(sender.account_id, self.random.choice(others).account_id, self.amount(), idempotency_key=item.key)
            for item in items
        ]
        body = {"transfers": transfers, "on_error": on_error}
        await self.send_batch("/transfers/batch", body, sender.headers(), items)

    async def send_batch(self, path: str, body: object, headers: dict[str, str], items: list[Call]) -> None:
        """Send a batch until each of its items has a definite outcome, and note those."""
        whole = await self.client.send_unnoted(self.new_call("batch"), "POST", path, body, headers)
        results = whole.answer["results"] if whole.status == 200 else [None] * len(items)
        for item, result in zip(items, results, strict=True):
            item.answered, item.attempts = whole.answered, whole.attempts
            item.is_unknown, item.internal_errors = whole.is_unknown, whole.internal_errors
            if result is None:
                item.status, item.problem = whole.status, whole.problem
            elif result["status"] == "created":
                item.status, item.answer = 201, result.get("transfer") or result
            else:
                item.status = result["problem"]["status"]
                item.problem = result["problem"]["type"].removeprefix("/problems/")
            self.client.note(item)

    async def hold(self) -> None:
        """Hold money, and then mostly capture all or a part of it, or void it."""
        sender = self.random.choice(self.parties[:HOLDERS])
        recipient = self.random.choice(self.parties[HOLDERS:])
        call = self.new_call("hold", account_id=sender.account_id)
        body = order(sender.account_id, recipient.account_id, self.amount())
        await self.client.send(call, "POST", "/holds", body, sender.headers(call.key))
        if not call.is_done:
            return
        id, chance = call.answer["id"], self.random.random()
        if chance < 0.6:
            part = {"amount": self.random.randint(1, body["amount"])} if chance < 0.3 else None
            capture = self.new_call("capture", about=id)
            await self.client.send(capture, "POST", f"/holds/{id}/capture", part, recipient.headers(capture.key))
        elif chance < 0.9:
            await self.client.send(
                self.new_call("void", about=id), "POST", f"/holds/{id}/void", None, recipient.headers()
            )

    async def link(self) -> None:
        sender, recipient = self.two()
        legs = [order(sender.account_id, recipient.account_id, self.amount()) for _ in range(self.random.randint(2, 5))]
        call = self.new_call("transaction", account_id=sender.account_id, about=len(legs))
        await self.client.send(call, "POST", "/transactions", {"transfers": legs}, sender.headers(call.key))

    async def reverse(self) -> None:
        if self.paid:
            id, recipient = self.paid.pop(self.random.randrange(len(self.paid)))
            call = self.new_call("reversal", account_id=recipient.account_id, about=id)
            await self.client.send(call, "POST", f"/transfers/{id}/reversal", None, recipient.headers(call.key))

    async def pay(self) -> None:
        party = self.random.choice(self.parties)
        kind = self.random.choice(["deposit", "withdrawal"])
        call = self.new_call(kind)
        headers = AS_OPERATOR | {"Idempotency-Key": call.key}
        await self.client.send(call, "POST", f"/{kind}s", cash(party.account_id, self.amount()), headers)

    async def read(self) -> None:
        party = self.random.choice([*self.parties, self.parties[-1]])
        call = self.new_call("read", account_id=party.account_id)
        await self.client.send(call, "GET", f"/accounts/{party.account_id}", None, party.headers())


async def act(url: str, world: str, log: str, *how: str) -> None:
    """Let all actors of this process act until SIGTERM, and end what they have begun."""
    name, seed, patience = how
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = Client(url, Path(log), float(patience), ACTORS, random.Random(f"{seed} {name}"))
    parties = read_world(Path(world))
    actors = [Actor(client, parties, f"{name}{number}", int(seed)) for number in range(ACTORS)]
    await asyncio.gather(*(actor.act_until(stop) for actor in actors))
    await client.close()


if __name__ == "__main__":
    asyncio.run(act(*sys.argv[1:]))
