"""A receiver of webhooks in threads of its own, which keeps what arrives."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Arrived:
    """A delivery that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> int:
        """The event's id, with which its webhook-id begins."""
        id: int = self.event["id"]
        assert self.headers["webhook-id"].startswith(f"{id}-")
        return id

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verify(self, secret: str) -> dict[str, Any]:
        """The event, whose signature must be right."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


@dataclass
class Inbox:
    """What arrived at each path, and what the receivers there answer: 200, unless they have another status."""

    url: str
    arrived: list[Arrived] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    """The paths that are not answered until the end."""
    end: threading.Event = field(default_factory=threading.Event)

    def at(self, path: str) -> list[Arrived]:
        return [each for each in [*self.arrived] if each.path == path]

    def ids(self, path: str) -> list[int]:
        """The events that arrived there, in order of their ids."""
        return sorted(each.id for each in self.at(path))

    def receive(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = request.rfile.read(int(headers["content-length"]))
        if len(body) < int(headers["content-length"]):
            # Its sender was killed.
            return
        self.arrived.append(Arrived(request.path, headers, body))
        if request.path in self.hanging:
            self.end.wait(30)
        request.send_response(self.statuses.get(request.path, 200))
        request.send_header("Content-Length", "0")
        request.end_headers()


class _Server(ThreadingHTTPServer):
    request_queue_size = 200
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Say nothing of senders that were killed."""


@contextmanager
def receiving() -> Iterator[Inbox]:
    """An inbox on a free port of the loopback address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            with suppress(ConnectionError):
                inbox.receive(self)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        inbox = Inbox(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield inbox
        finally:
            inbox.end.set()
            server.shutdown()
            thread.join()
