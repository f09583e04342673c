"""The shop's endpoint for Savepoint's webhooks: what happened without the shop, or before its call was answered.

It runs beside the shop, on the same database. An event comes at least once, in any order, and may be forged. So the
endpoint verifies it, remembers it in the transaction that acts on it, and acts so that the order does not matter.
"""

import os
import sqlite3
from contextlib import closing
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from examples.shop.shop import open_database

LONGEST = 64 * 1024
"""Bytes of a body, at most."""

ENDS = {"hold.captured": "captured", "hold.voided": "freed", "hold.expired": "expired"}
"""The state of an order whose hold ended so. A hold ends once, so no two of these concern one order."""

EVENTS = [*ENDS, "user.suspended", "user.reopened", "user.closed"]
"""What the shop asks for."""


def receive(database: sqlite3.Connection, secret: str, headers: Message, body: bytes) -> int:
    """Handle a delivery once; return the status of the answer. After anything but 2xx, Savepoint sends it again."""
    try:
        event = Webhook(secret).verify(body, dict(headers.items()))
    except (WebhookVerificationError, ValueError):
        # The library's ValueError is for headers or a body of another form.
        return 401
    try:
        with database:
            database.execute("BEGIN IMMEDIATE")
            remember = "INSERT OR IGNORE INTO handled VALUES (?)"
            if database.execute(remember, (headers["webhook-id"],)).rowcount:
                handle(database, event)
    except sqlite3.OperationalError:
        return 503
    return 204


def handle(database: sqlite3.Connection, event: dict[str, Any]) -> None:
    """Act on an event, in the caller's transaction; nothing is called from here, so that the answer is quick."""
    data = event["data"]
    if event["type"] in ENDS:
        end_order(database, ENDS[event["type"]], data)
    elif event["type"].startswith("user."):
        # The ids of events ascend: an older one that comes later changes nothing.
        write = (
            "INSERT INTO statuses VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET status = excluded.status, "
            "event_id = excluded.event_id WHERE excluded.event_id > statuses.event_id"
        )
        database.execute(write, (data["id"], data["status"], event["id"]))


def end_order(database: sqlite3.Connection, state: str, hold: dict[str, Any]) -> None:
    """Write down how the hold of an order ended; Shop.resume() goes on from there.

    A reference proves nothing, since a customer with a token can write any. So the hold must be the order's own or,
    where the call that made it has no answer yet, have its buyer and price.
    """
    update = (
        "UPDATE orders SET state = ?, hold_id = ? WHERE id = ? AND price = ? "
        "AND buyer = (SELECT username FROM accounts WHERE account_id = ?) AND ? = coalesce(hold_id, ?) "
        "AND state IN ('ordered', 'held', 'delivered', 'cancelled')"
    )
    buyer, id = hold["debit_account_id"], hold["id"]
    database.execute(update, (state, id, hold["reference"], hold["amount"], buyer, id, id))


class Endpoint(BaseHTTPRequestHandler):
    """POST of a delivery, at any path."""

    timeout = 10
    server: "Listener"

    def do_POST(self) -> None:
        """Read the body, and answer 2xx once what it says is stored."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            status = 413
        else:
            with closing(open_database(self.server.database)) as database:
                status = receive(database, self.server.secret, self.headers, self.rfile.read(int(length)))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class Listener(HTTPServer):
    """The endpoint on a port of this machine; in production, a proxy before it does TLS."""

    def __init__(self, database: str, secret: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), Endpoint)
        self.database = database
        self.secret = secret


def main() -> None:
    """Listen for the shop whose database the environment names."""
    database = os.environ.get("SHOP_DATABASE", "shop.db")
    Listener(database, os.environ["SHOP_WEBHOOK_SECRET"], int(os.environ.get("SHOP_PORT", "8001"))).serve_forever()


if __name__ == "__main__":
    main()
