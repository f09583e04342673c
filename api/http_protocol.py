"""uvicorn's HTTP/1.1 with limits: heads, slow clients, connections, overload; and each answer in one write.

`install` makes it what `uvicorn main:app` speaks. docs/decisions/0001-the-server.md says why.
"""

import asyncio
import gc
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

import metrics
from api import problems
from refusals import Overloaded, ShuttingDown
from settings import settings_from_environment

logger = logging.getLogger("savepoint")

KIB = 2**10
HEAD_LIMIT = 16 * KIB
"""Bytes of a request that are not its body: request line and headers; trailers and the framing of chunks."""
PIPELINE_LIMIT = 16
"""Requests of one connection that may wait behind the one that is being answered."""
UNFINISHED_LIMIT = 32 * KIB * KIB
"""Bytes of requests that have not come whole, of all connections together."""
DISCARD_LIMIT = KIB * KIB
"""Bytes that are still read, and discarded, after a refusal, so that the client gets to read it."""
DISCARD_SECONDS = 2
REFUSED_LIMIT = 100
"""Connections past the limit whose clients get to read the refusal; more are cut."""
ENDING_SECONDS = 3
"""Seconds that clients have once the server is told to stop, to send their request and read its answer."""
PAUSE = 0.01
REFUSALS_A_PAUSE = 150
"""Calls are refused for overload so many at a time, after so many seconds, so that clients that repeat at once take
about a fifth of the time of a core, however many they are."""
ALWAYS_ANSWERED = (b"GET /healthz ", b"GET /readyz ", b"GET /metrics ")
"""How requests begin that are answered under overload too."""


def ready_made(status: int, name: str, detail: str) -> bytes:
    """The bytes of a problem as the last answer of a connection."""
    return answer_of(problems.make_problem(status, name, detail), "connection: close\r\n")


def answer_of(problem: problems.Problem, headers: str) -> bytes:
    """The bytes of an answer."""
    body = problem.model_dump_json()
    retry = "retry-after: 1\r\n" if problem.status == 503 else ""
    return (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
        f"content-length: {len(body.encode())}\r\n{retry}{headers}\r\n{body}"
    ).encode()


OVERLOADED = problems.make_problem(503, "Overloaded", Overloaded().detail)
BUSY = answer_of(OVERLOADED, "")
BUSY_CLOSING = answer_of(OVERLOADED, "connection: close\r\n")
ENDING = ready_made(503, "ShuttingDown", ShuttingDown().detail)
INVALID = ready_made(400, "InvalidHttp", "This is not a valid HTTP request. Check how the client writes it.")
HEAD_TOO_LARGE = ready_made(
    431, "RequestHeaderFieldsTooLarge", "The URL and the headers are too large. Send at most 16 KiB of them."
)
TIMED_OUT = ready_made(408, "RequestTimeout", "The request took too long to come. Nothing was done; send it again.")
REASONS = {
    BUSY: "overloaded",
    BUSY_CLOSING: "overloaded",
    ENDING: "shutting down",
    INVALID: "invalid HTTP",
    HEAD_TOO_LARGE: "head too large",
    TIMED_OUT: "timed out",
}


class Stage(IntEnum):
    """Where in a request the next byte belongs."""

    BETWEEN = 0
    HEAD = 1
    BODY = 2


class Refused(Exception):
    """Stops the parser: the rest of what came is not looked at."""


class Counted:
    """Sees that bytes are exactly one request, without building anything."""

    def __init__(self) -> None:
        self.begun = self.completed = 0

    def on_message_begin(self) -> None:
        """Count a request."""
        self.begun += 1

    def on_message_complete(self) -> None:
        """Count its end."""
        self.completed += 1


class Worker:
    """The connections of this process, and the limits that they share."""

    def __init__(self, config: Config, state: ServerState) -> None:
        settings = settings_from_environment()
        self.state = state
        self.call_limit = settings.call_limit
        self.connection_limit = min(settings.connection_limit, raise_descriptor_limit() * 9 // 10)
        self.head_timeout = settings.head_timeout
        self.body_timeout = settings.body_timeout
        self.answer_timeout = settings.answer_timeout
        self.loop = asyncio.get_running_loop()
        self.unfinished: dict[BoundedProtocol, int] = {}
        """The bytes of requests that have not come whole."""
        self.unfinished_bytes = 0
        self.uploading: set[BoundedProtocol] = set()
        """Connections whose call waits for its body."""
        self.unread: set[BoundedProtocol] = set()
        """Connections whose call waits until its client reads."""
        self.replaceable: list[tuple[BoundedProtocol, object]] = []
        """Connections that wait for their client and can be closed to make room, the first to go last."""
        self.waiting: deque[BoundedProtocol] = deque()
        """Connections whose call is about to be refused."""
        self.refused: Counter[str] = Counter()
        self.is_sweeping = False
        self.ends_at = float("inf")
        # uvicorn has no public way to leave out its name but a flag that nobody types.
        for headers in (config.encoded_headers, state.default_headers):
            headers[:] = [header for header in headers if header != (b"server", b"uvicorn")]

    @property
    def is_busy(self) -> bool:
        """Whether as many whole requests as may be are being answered."""
        return len(self.state.tasks) - len(self.uploading) - len(self.unread) >= self.call_limit

    def is_whole(self, data: bytes) -> bool:
        """Whether these bytes are exactly one request, after which the connection stays open."""
        counted = Counted()
        parser = httptools.HttpRequestParser(counted)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return counted.begun == counted.completed == 1 and parser.should_keep_alive()

    def refuse_soon(self, connection: "BoundedProtocol") -> None:
        """Refuse the call of this connection in a moment."""
        connection.awaits_refusal = True
        if not self.waiting:
            self.loop.call_later(PAUSE, self.refuse_waiting)
        self.waiting.append(connection)

    def refuse_waiting(self) -> None:
        """Refuse the calls that have waited longest for it."""
        for _ in range(min(REFUSALS_A_PAUSE, len(self.waiting))):
            connection = self.waiting.popleft()
            if connection.awaits_refusal:
                connection.awaits_refusal = False
                connection.transport.write(BUSY)
        if self.waiting:
            self.loop.call_later(PAUSE, self.refuse_waiting)

    def make_room(self) -> "BoundedProtocol | None":
        """End the connection that its client has kept waiting longest, and return it; None where there is none."""
        while self.replaceable:
            connection, scope = self.replaceable.pop()
            is_open = connection in self.state.connections and not connection.is_refused
            if is_open and connection.scope is scope and connection.time_out() is not None:
                connection.give_way()
                return connection
        return None

    @property
    def is_ending(self) -> bool:
        """Whether the server was told to stop."""
        return self.ends_at < float("inf")

    def sweep_later(self) -> None:
        """Look at all connections in a second, as long as there are any."""
        if not self.is_sweeping:
            self.is_sweeping = True
            self.loop.call_later(1, self.sweep)

    def sweep(self) -> None:
        """Close connections whose client has let a time-out pass, and say in one line what was refused."""
        self.is_sweeping = False
        connections = [each for each in self.state.connections if isinstance(each, BoundedProtocol)]
        for connection in connections:
            connection.grow_older()
        replaceable = [each for each in connections if each.age and not each.is_refused]
        replaceable.sort(key=lambda each: (each.is_idle, each.age))
        self.replaceable = [(each, each.scope) for each in replaceable]
        for reason, count in self.refused.items():
            metrics.REFUSED.labels(reason).inc(count)
            logger.warning("Refused in the last second: %d (%s)", count, reason)
        if self.refused:
            # The exceptions of calls whose body did not come refer to each other, and to what came of it.
            gc.collect(1)
        self.refused.clear()
        if connections:
            self.sweep_later()


WORKERS: WeakKeyDictionary[ServerState, Worker] = WeakKeyDictionary()


def raise_descriptor_limit() -> int:
    """Let this process open as many files and connections as the system allows; how many that is."""
    if sys.platform == "win32":
        return 8192
    import resource  # noqa: PLC0415 (not on Windows)

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**20


class OneWrite:
    """A transport that writes the head of an answer together with the first piece of its body.

    uvicorn writes each by itself, and each is a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.head = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        """Hold a head back until the next write; what is large is not copied for it."""
        # uvloop raises an error for what is written to a closed connection.
        if self.is_closing():
            return
        if self.head:
            head, self.head = self.head, b""
            if len(data) > 64 * KIB:
                self.transport.write(head)
            else:
                data = head + data
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 100"):
            self.head = data
            return
        self.transport.write(data)

    def pause_reading(self) -> None:
        """Read nothing more."""
        if not self.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if not self.is_closing():
            self.transport.resume_reading()

    def release(self) -> None:
        """Write a head that has no body."""
        if self.head:
            self.write(b"")

    def close(self) -> None:
        """Close once all is written."""
        self.release()
        self.transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    Whatever comes whole in one piece, as nearly all requests do, costs a few comparisons here. What does not is counted
    (`wait_for_more`), and once a second each connection is asked what it has waited for, and how long (`grow_older`).
    """

    transport: OneWrite  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # There are no WebSockets here, so that a request to upgrade is a request like any other (RFC 9110, 7.8).
        self.ws_protocol_class = None
        worker = WORKERS.get(server_state)
        if worker is None:
            worker = WORKERS[server_state] = Worker(config, server_state)
        self.worker = worker
        self.stage = Stage.BETWEEN
        self.is_refused = False
        self.awaits_refusal = False
        self.refusal = INVALID
        self.received = 0
        self.received_of_body = 0
        self.age = 0
        self.last_scope: object = None
        self.last_act: object = None

    # --- a connection begins and ends ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where there are too many."""
        # As soon as a client leaves anything unread, no further answer is made for it.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]
        self.worker.sweep_later()
        excess = len(self.connections) - self.worker.connection_limit
        if excess > 0:
            left_out = self.worker.make_room()
            if left_out is None:
                left_out = self
                self.refuse(BUSY_CLOSING)
            if excess > REFUSED_LIMIT:
                left_out.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what had come."""
        self.awaits_refusal = False
        self.forget_unfinished()
        self.worker.unread.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Let what was accepted be answered; what has not come whole has ENDING_SECONDS."""
        self.worker.ends_at = min(self.worker.ends_at, self.loop.time() + ENDING_SECONDS)
        super().shutdown()

    # --- bytes come ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Read what came, and refuse what goes past a limit."""
        if self.is_refused:
            self.discard(data)
            return
        if self.awaits_refusal:
            # It sends on without waiting for its answer.
            self.awaits_refusal = False
            self.refuse(BUSY_CLOSING)
            return
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if len(self.tasks) >= self.worker.call_limit and self.is_refused_at_once(data):
            return
        self.received += len(data)
        try:
            self.feed(data)
        except httptools.HttpParserError:
            self.refuse(self.refusal)
        else:
            if self.stage:
                self.wait_for_more(len(data))
            else:
                self.received = self.received_of_body = 0
                if self in self.worker.unfinished:
                    self.forget_unfinished()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what came whole, though the client has closed its side, and then close ours."""
        if self.awaits_refusal:
            self.awaits_refusal = False
            self.refuse(BUSY_CLOSING)
        elif self.cycle is not None and not self.cycle.response_complete and self.stage is Stage.BETWEEN:
            last = self.pipeline[0][0] if self.pipeline else self.cycle
            last.keep_alive = False
            return True
        return False

    def feed(self, data: bytes) -> None:
        """Parse; where the client offers to upgrade, go on as if it had not."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # httptools has skipped the body. So the head is parsed again, without the offer.
            head = [self.method, b" ", self.url, b" HTTP/1.1\r\n"]
            for name, value in self.headers:
                if name == b"connection":
                    value = b"close" if b"close" in value.lower() else b"keep-alive"  # noqa: PLW2901
                if name != b"upgrade":
                    head += [name, b": ", value, b"\r\n"]
            self.parser = httptools.HttpRequestParser(self)
            self.feed(b"".join([*head, b"\r\n", data[upgrade.args[0] :]]))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.stage = Stage.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application, unless the head is one to refuse."""
        if self.parser.should_upgrade():
            self.method = self.parser.get_method()
            if self.method == b"CONNECT":
                raise Refused
            return
        if self.received > HEAD_LIMIT and self.size_of_head() > HEAD_LIMIT:
            self.refusal = HEAD_TOO_LARGE
            raise Refused
        if len(self.pipeline) >= PIPELINE_LIMIT or not self.is_unambiguous():
            raise Refused
        if (
            len(self.tasks) >= self.worker.call_limit
            and self.is_to_be_refused()
            and b"GET %b " % self.url not in ALWAYS_ANSWERED
        ):
            self.refusal = BUSY_CLOSING
            raise Refused
        super().on_headers_complete()
        self.stage = Stage.BODY
        if self.flow.write_paused:
            self.note_unread()
        if self.expect_100_continue:
            # A client that is answered before its body was asked for may send it or not: only a closed connection
            # leaves no doubt where the next request begins.
            self.cycle.keep_alive = False
        # Trailers are no headers (RFC 9110, 6.5.1): nobody reads this list.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of the body."""
        self.received_of_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if self.stage is Stage.BODY:
            self.stage = Stage.BETWEEN
            if self.expect_100_continue:
                self.cycle.keep_alive = self.parser.should_keep_alive()
            super().on_message_complete()

    def size_of_head(self) -> int:
        """The bytes of the request line and the headers, about."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def is_unambiguous(self) -> bool:
        """Whether every server reads from the headers the same host and end of the body (RFC 9112, 3.2 and 6.1)."""
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            return False
        if b"transfer-encoding" not in names:
            return True
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        return codings == [b"chunked"]

    def wait_for_more(self, size: int) -> None:
        """Count what has come of a request that is not whole yet."""
        worker = self.worker
        if self.received - self.received_of_body > HEAD_LIMIT:
            self.refuse(HEAD_TOO_LARGE)
            return
        worker.unfinished[self] = worker.unfinished.get(self, 0) + size
        worker.unfinished_bytes += size
        if self.stage is Stage.BODY and not self.cycle.response_complete and self not in worker.unread:
            worker.uploading.add(self)
        while worker.unfinished_bytes > UNFINISHED_LIMIT:
            max(worker.unfinished, key=worker.unfinished.__getitem__).refuse(BUSY_CLOSING)

    def forget_unfinished(self) -> None:
        """Count no longer what has come."""
        self.worker.unfinished_bytes -= self.worker.unfinished.pop(self, 0)
        self.worker.uploading.discard(self)

    # --- refusals -----------------------------------------------------------------------------------------------------

    def is_to_be_refused(self) -> bool:
        """Whether there is overload, and this request can be refused without harm to one before it."""
        is_first = self.cycle is None or self.cycle.response_complete
        return is_first and self.worker.is_busy

    def is_refused_at_once(self, data: bytes) -> bool:
        """Under overload, refuse what is one whole request before anything is made of it."""
        if self.stage or self.flow.write_paused or data.startswith(ALWAYS_ANSWERED) or not self.is_to_be_refused():
            return False
        if not self.worker.is_whole(data):
            return False
        self.worker.refused[REASONS[BUSY]] += 1
        self.worker.refuse_soon(self)
        return True

    def refuse(self, answer: bytes) -> None:
        """Answer with this, unless something else was answered, and close the connection."""
        self.is_refused = True
        self.worker.refused[REASONS[answer]] += 1
        self.forget_unfinished()
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering and self.stage is not Stage.BODY:
            # What came before is whole: it gets its answer, and this is not looked at.
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if is_answering:
            is_answerable = not cycle.response_started and not self.pipeline
            cycle.disconnected = True
            cycle.message_event.set()
        else:
            is_answerable = self.stage is not Stage.BODY
        if is_answerable:
            self.transport.write(answer)
        self.stage = Stage.BETWEEN
        self.received = 0
        if is_answerable and self.transport.can_write_eof() and not self.transport.is_closing():
            # To close now would reset the connection, and with it the answer, if the client has sent more.
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()

    def give_way(self) -> None:
        """End, so that another connection has room."""
        if self.stage is Stage.BODY and not self.flow.write_paused:
            self.refuse(BUSY_CLOSING)
        else:
            self.transport.abort()

    def discard(self, data: bytes) -> None:
        """Leave unread what comes after a refusal."""
        self.received += len(data)
        if self.received > DISCARD_LIMIT:
            self.transport.abort()

    # --- time passes --------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether the next thing to come is a request, or more of its head."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return self.stage is not Stage.BODY and is_answered and not self.awaits_refusal

    def time_out(self) -> tuple[Callable[[], None], float] | None:
        """What is done to a client that does nothing for how many seconds; None while it waits for the application."""
        worker = self.worker
        if self.is_refused and not self.transport.is_closing() and not self.flow.read_paused:
            return self.transport.abort, DISCARD_SECONDS
        if self.transport.is_closing() or self.flow.write_paused:
            return self.transport.abort, worker.answer_timeout
        if self.is_idle and self.stage:
            return self.refuse_slow, worker.head_timeout
        if self.is_idle:
            # After an answer, uvicorn's own time-out (--timeout-keep-alive) says how long; here is only its age noted.
            return self.transport.close, worker.head_timeout if self.timeout_keep_alive_task is None else float("inf")
        if self.stage is Stage.BODY and not self.flow.read_paused:
            seconds = worker.body_timeout * (1 + self.received_of_body // DISCARD_LIMIT)
            return self.refuse_slow, seconds
        return None

    def refuse_slow(self) -> None:
        """Refuse a request that does not come."""
        self.refuse(ENDING if self.worker.is_ending else TIMED_OUT)

    def grow_older(self) -> None:
        """Note that a second has passed, and act where that was one too many, or the server ends."""
        act, seconds = self.time_out() or (None, 0)
        is_same = act is not None and act == self.last_act and self.scope is self.last_scope
        self.age = self.age + 1 if is_same else 0
        self.last_act, self.last_scope = act, self.scope
        if act is not None and (self.age >= seconds or self.loop.time() >= self.worker.ends_at):
            act()

    # --- answers ------------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Write what is left of an answer, and go on."""
        self.transport.release()
        if self.stage:
            self.worker.uploading.discard(self)
        super().on_response_complete()
        if self.flow.write_paused:
            self.note_unread()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self.note_unread()

    def resume_writing(self) -> None:
        """Go on, since the client has read."""
        super().resume_writing()
        self.worker.unread.discard(self)

    def note_unread(self) -> None:
        """Note whether there is a call that the client keeps waiting by reading no answer."""
        worker = self.worker
        if self.cycle is None or self.cycle.response_complete or self in worker.uploading:
            worker.unread.discard(self)
        else:
            worker.unread.add(self)


def install() -> None:
    """Make every HttpToolsProtocol that uvicorn makes from now on a BoundedProtocol.

    `uvicorn main:app` chooses its protocol before it imports the application, and reads no file of ours before that.
    """
    HttpToolsProtocol.__new__ = lambda cls, *_, **__: object.__new__(BoundedProtocol)  # type: ignore[method-assign,assignment]
