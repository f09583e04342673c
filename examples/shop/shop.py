"""A marketplace that sells for credits. Its own database knows the orders, Savepoint knows who has how much.

The shop writes down what it is about to do, asks Savepoint to do it under a key made of the order, and writes down that
it is done. Whatever is lost or killed in between, it makes the same call again, and Savepoint does it once.
"""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

FEE_PERCENT = 3
PAUSES = (0.1, 0.3, 1, 3)
"""Seconds between the tries of a call."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    username TEXT PRIMARY KEY, user_id INTEGER NOT NULL, account_id INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, buyer TEXT NOT NULL, seller TEXT NOT NULL, price INTEGER NOT NULL, fee INTEGER NOT NULL,
    state TEXT NOT NULL, hold_id INTEGER
);
CREATE TABLE IF NOT EXISTS statuses (user_id INTEGER PRIMARY KEY, status TEXT NOT NULL, event_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS handled (webhook_id TEXT PRIMARY KEY);
"""


class Refused(Exception):
    """Savepoint refused a call; nothing was done."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem["detail"])
        self.type: str = problem["type"]


class Unavailable(Exception):
    """Savepoint did not answer; nobody knows what was done. Shop.resume() goes on from there."""


class Order(NamedTuple):
    """An order; its fee is kept, since a call that is made again must have the same content."""

    id: str
    buyer: str
    seller: str
    price: int
    fee: int
    state: str
    hold_id: int | None


def open_database(path: Path | str) -> sqlite3.Connection:
    """Open the shop's database, without transactions: each statement is one."""
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(SCHEMA)
    return database


class Shop:
    """The shop, whose house has two accounts: the till, for what is paid and not yet paid out, and the fees."""

    def __init__(self, database: Path | str, savepoint: httpx2.Client) -> None:
        """Open the shop's database; `savepoint` sends the operator's token."""
        self.savepoint = savepoint
        self.database = open_database(database)
        self.steps = {
            "ordered": self._hold,
            "delivered": self._capture,
            "captured": self._pay_out,
            "cancelled": self._void,
            "returned": self._refund,
        }
        """What is to be done in each state that is not the end of something; it returns the next state."""
        for name in ("till", "fees"):
            self.sign_up(name, f"{name}@shop.example")

    def sign_up(self, username: str, email: str) -> None:
        """Register a customer, or find the one that an earlier try registered."""
        if self.database.execute("SELECT 1 FROM accounts WHERE username = ?", (username,)).fetchone():
            return
        try:
            user = self._call("POST", "/register", body={"username": username, "email": email})["user"]
        except Refused as refused:
            # Only this shop registers users (REGISTRATION=operator), so it has done so before.
            if refused.type != "/problems/username-taken":
                raise
            found = self._call("GET", "/users", query={"username_prefix": username, "email": email})["items"]
            [user] = [each for each in found if each["username"] == username]
        account_id = self._call("GET", "/accounts", query={"user_id": user["id"]})["items"][0]["id"]
        row = (username, user["id"], account_id)
        self.database.execute("INSERT OR IGNORE INTO accounts VALUES (?, ?, ?)", row)

    def top_up(self, username: str, amount: int, payment: str) -> None:
        """Credit a payment of real money; a payment that is reported twice counts once."""
        body = {"account_id": self.account_of(username), "amount": amount, "reference": payment}
        self._call("POST", "/deposits", key=payment, body=body)

    def buy(self, order_id: str, buyer: str, seller: str, price: int) -> str:
        """Hold the price of an order; the state is then "held", or "refused"."""
        fee = price * FEE_PERCENT // 100
        state = "refused" if self._is_suspended(buyer, seller) else "ordered"
        row = (order_id, buyer, seller, price, fee, state, None)
        self.database.execute("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return self._go_on(order_id)

    def deliver(self, order_id: str) -> str:
        """Take the price, pay the seller and keep the fee, once the order has arrived."""
        self._move(order_id, "held", "delivered")
        return self._go_on(order_id)

    def cancel(self, order_id: str) -> str:
        """Give the price free again, before delivery."""
        self._move(order_id, "held", "cancelled")
        return self._go_on(order_id)

    def take_back(self, order_id: str) -> str:
        """Refund an order that was paid. Where the seller has too little, this is Refused, and can be tried again."""
        self._move(order_id, "paid", "returned")
        return self._go_on(order_id)

    def resume(self) -> None:
        """Finish what a restart or an outage interrupted."""
        for (order_id,) in self.database.execute("SELECT id FROM orders ORDER BY id").fetchall():
            self._go_on(order_id)

    def account_of(self, username: str) -> int:
        """The account of a customer."""
        [(account_id,)] = self.database.execute("SELECT account_id FROM accounts WHERE username = ?", (username,))
        return int(account_id)

    def balance_of(self, username: str) -> int:
        """What a customer can spend."""
        return int(self._call("GET", f"/accounts/{self.account_of(username)}")["available"])

    def _is_suspended(self, *parties: str) -> bool:
        """Return True if the buyer or the seller may not act, as far as listening.py was told."""
        select = "SELECT 1 FROM accounts JOIN statuses USING (user_id) WHERE username IN (?, ?) AND status <> 'active'"
        return self.database.execute(select, parties).fetchone() is not None

    def _hold(self, order: Order) -> str:
        body = {**self._leg(order.buyer, "till", order.price), "reference": order.id}
        try:
            hold = self._call("POST", "/holds", key=order.id, body=body)
        except Refused:
            return "refused"
        self.database.execute("UPDATE orders SET hold_id = ? WHERE id = ?", (hold["id"], order.id))
        return "held"

    def _capture(self, order: Order) -> str:
        try:
            self._call("POST", f"/holds/{order.hold_id}/capture", key=f"{order.id}/capture")
        except Refused as refused:
            if refused.type != "/problems/hold-resolved":
                raise
            return "expired"
        return "captured"

    def _pay_out(self, order: Order) -> str:
        legs = [self._leg("till", order.seller, order.price - order.fee), self._leg("till", "fees", order.fee)]
        self._transact(order, "payout", legs)
        return "paid"

    def _refund(self, order: Order) -> str:
        legs = [self._leg(order.seller, "till", order.price - order.fee), self._leg("fees", "till", order.fee)]
        self._transact(order, "refund", [*legs, self._leg("till", order.buyer, order.price)])
        return "refunded"

    def _void(self, order: Order) -> str:
        try:
            self._call("POST", f"/holds/{order.hold_id}/void")
        except Refused as refused:
            # An earlier try voided it, or it has expired: the price is free.
            if refused.type != "/problems/hold-resolved":
                raise
        return "freed"

    def _transact(self, order: Order, what: str, legs: list[dict[str, Any]]) -> None:
        """Move all legs or none; a fee of less than a credit is no leg."""
        body = {"reference": order.id, "transfers": [leg for leg in legs if leg["amount"]]}
        self._call("POST", "/transactions", key=f"{order.id}/{what}", body=body)

    def _leg(self, debit: str, credit: str, amount: int) -> dict[str, Any]:
        accounts = {"debit_account_id": self.account_of(debit), "credit_account_id": self.account_of(credit)}
        return {**accounts, "amount": amount}

    def _move(self, order_id: str, state: str, following: str) -> None:
        """Write the following state down, if the order is still in this one."""
        update = "UPDATE orders SET state = ? WHERE id = ? AND state = ?"
        self.database.execute(update, (following, order_id, state))

    def _go_on(self, order_id: str) -> str:
        """Take the order's next steps, as far as it goes by itself, and return its state."""
        while True:
            [row] = self.database.execute("SELECT * FROM orders WHERE id = ?", (order_id,))
            order = Order(*row)
            step = self.steps.get(order.state)
            if step is None:
                return order.state
            self._move(order_id, order.state, step(order))

    def _call(self, method: str, path: str, *, key: str | None = None, query: Any = None, body: Any = None) -> Any:
        """Call Savepoint until it answers, with the same key. Raises Refused, Unavailable."""
        headers = {"Idempotency-Key": key} if key else {}
        for pause in (*PAUSES, None):
            try:
                answer = self.savepoint.request(method, path, params=query, json=body, headers=headers)
                if answer.is_success:
                    return answer.json()
                if answer.status_code < 500:
                    raise Refused(answer.json())
            except httpx2.TransportError:
                pass  # It may have been done or not: the key makes it safe to ask again.
            if pause is not None:
                time.sleep(pause)
        raise Unavailable


def sell(shop: Shop) -> None:
    """Sell some things; however often it is called, each is sold once."""
    shop.resume()
    shop.sign_up("anna", "anna@example.com")
    shop.sign_up("ben", "ben@example.com")
    shop.top_up("anna", 5000, "payment-1")
    print("A lamp:", shop.buy("order-1", "anna", "ben", 2000), shop.deliver("order-1"))
    print("A chair:", shop.buy("order-2", "anna", "ben", 2500), shop.cancel("order-2"))
    print("A clock:", shop.buy("order-3", "anna", "ben", 1000), shop.deliver("order-3"), shop.take_back("order-3"))
    print("A house:", shop.buy("order-4", "anna", "ben", 900_000))
    for name in ("anna", "ben", "till", "fees"):
        print(name, "has", shop.balance_of(name))


def main() -> None:
    """Sell with the service and the database that the environment names."""
    headers = {"Authorization": f"Bearer {os.environ['SAVEPOINT_OPERATOR_TOKEN']}"}
    with httpx2.Client(base_url=os.environ["SAVEPOINT_URL"], headers=headers) as savepoint:
        sell(Shop(os.environ.get("SHOP_DATABASE", "shop.db"), savepoint))


if __name__ == "__main__":
    main()
