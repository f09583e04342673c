"""Limits on each client: the size of a head, the time to send and to read, pipelined requests, calls under overload.

docs/decisions/0001-the-server.md says why.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import httptools
from starlette.types import Scope

from api.request_ids import new_id, request_id_of
from server.answers import BUSY_CLOSING, ENDING, HEAD_TOO_LARGE, INVALID, TIMED_OUT, Answer
from server.connection import Connection, Stage, headers_of_one_request
from server.worker import Worker
from webhooks.sequencer import end_waiting

HEAD_LIMIT = 16 * 2**10
"""Bytes of a request without its body: request line and headers, trailers and the framing of chunks."""
PIPELINE_LIMIT = 16
"""Requests of one connection that may wait behind the one that is being answered."""
DISCARD_LIMIT = 2**20
"""Bytes that are read and discarded after a refusal, so that the client can read it."""
DISCARD_SECONDS = 2
ENDING_SECONDS = 3
"""Seconds for clients to send their request and read its answer after the server was told to stop."""
ALWAYS_ANSWERED = (b"GET /healthz ", b"GET /readyz ", b"GET /metrics ")
"""The beginnings of requests that are answered under overload too."""
NEVER = float("inf")

_WORKERS: WeakKeyDictionary[object, Worker] = WeakKeyDictionary()
"""By the state of uvicorn's server, of which only tests have several in a process."""


class _Refused(Exception):
    """Stops the parser: the rest of the data is ignored."""


class BoundedProtocol(Connection):
    """One connection.

    A request that arrives in one piece, as nearly all do, costs a few comparisons here. The others are counted
    (`_wait_for_more`), and once a second each connection checks its time-outs (`grow_older`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.server_state not in _WORKERS:
            _WORKERS[self.server_state] = Worker(self.connections, self.tasks)  # type: ignore[arg-type]
        self.worker = _WORKERS[self.server_state]
        self.is_refused = False
        self.awaits_refusal = False
        self.refused_id = ""
        self.age = 0
        self._refusal = INVALID
        self._received = 0
        self._received_of_body = 0
        self._waited: tuple[object, object] = (None, None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        self.worker.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what the connection holds."""
        self.awaits_refusal = False
        self.worker.release(self)
        self.worker.unread.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Answer accepted requests, without waiting for events; incomplete ones have ENDING_SECONDS to arrive."""
        end_waiting()
        self.worker.ends_at = min(self.worker.ends_at, self.loop.time() + ENDING_SECONDS)
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse the data, unless a limit is exceeded."""
        if self.is_refused:
            self._received += len(data)
            if self._received > DISCARD_LIMIT:
                self.transport.abort()
            return
        if self.awaits_refusal:
            # The client sends more without waiting for its answer.
            self.refuse(BUSY_CLOSING)
            return
        self.end_keep_alive()
        if self._is_refused_at_once(data):
            return
        self._received += len(data)
        try:
            self.feed(data)
        except httptools.HttpParserError:
            self.refuse(self._refusal)
            return
        if self.stage:
            self._wait_for_more(len(data))
            return
        self._received = self._received_of_body = 0
        if self in self.worker.unfinished:
            self.worker.release(self)

    def eof_received(self) -> Any:
        """Answer complete requests although the client has closed its side."""
        if self.awaits_refusal:
            self.refuse(BUSY_CLOSING)
            return False
        if self.is_refused and self.is_answering:
            return True
        if self.stage and self.is_answering and (self.stage is Stage.HEAD or self.pipeline):
            # A request that breaks off loses no answer to those before it.
            self.refuse(INVALID)
            return True
        return super().eof_received()

    def on_headers_complete(self) -> None:
        """Start the application, unless the request is to be refused."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Refused
            return  # `feed` parses it again, without the offer.
        if self._received > HEAD_LIMIT and self.size_of_head() > HEAD_LIMIT:
            self._refusal = HEAD_TOO_LARGE
            raise _Refused
        if len(self.pipeline) >= PIPELINE_LIMIT or not self.is_unambiguous():
            raise _Refused
        if self._is_overload() and b"GET %b " % self.url not in ALWAYS_ANSWERED:
            self._refusal = BUSY_CLOSING
            raise _Refused
        super().on_headers_complete()
        if self.is_unread:
            self._note_unread()

    def on_body(self, body: bytes) -> None:
        """Count a piece of the body, and pass it on."""
        self._received_of_body += len(body)
        super().on_body(body)

    def _wait_for_more(self, size: int) -> None:
        """Count data of an incomplete request."""
        if self._received - self._received_of_body > HEAD_LIMIT:
            self.refuse(HEAD_TOO_LARGE)
            return
        if self.stage is Stage.BODY and self.is_answering and self not in self.worker.unread:
            self.worker.uploading.add(self)
        self.worker.hold(self, size)

    def _is_overload(self) -> bool:
        """Return True under overload, if a request can be refused without harm to one before it."""
        worker = self.worker
        return len(worker.calls) >= worker.call_limit and not self.is_answering and worker.is_busy()

    def _is_refused_at_once(self, data: bytes) -> bool:
        """Under overload, refuse data that is one complete request before it is parsed; return True if refused."""
        if not self._is_overload() or self.stage or self.is_unread or data.startswith(ALWAYS_ANSWERED):
            return False
        headers = headers_of_one_request(data)
        if headers is None:
            return False
        self.refused_id = request_id_of({"headers": headers})
        self.worker.refuse_soon(self)
        return True

    def refuse(self, answer: Answer) -> None:
        """Send this answer, unless another one was begun, and close the connection."""
        if not self.awaits_refusal:
            # Between requests, this is still the scope of the one before.
            self.refused_id = request_id_of(cast(Scope, self.scope)) if self.stage else new_id()
        self.is_refused = True
        self.awaits_refusal = False
        self.worker.refused[answer.reason] += 1
        self.worker.release(self)
        self._received = 0
        self.end_with(answer.to(self.refused_id))

    def give_way(self) -> None:
        """End, to make room for another connection."""
        if self.stage is Stage.BODY and not self.is_unread:
            self.refuse(BUSY_CLOSING)
        else:
            self.transport.abort()

    @property
    def is_idle(self) -> bool:
        """True if a request, or more of its head, is to arrive next."""
        return self.stage is not Stage.BODY and not self.is_answering and not self.awaits_refusal

    def time_out(self) -> tuple[Callable[[], None], float] | None:
        """Return the action of the time-out that runs, and its seconds; None while the client waits for its answer."""
        settings = self.worker.settings
        if self.is_refused and not self.is_answering and not self.transport.is_closing() and not self.is_unheard:
            return self.transport.abort, DISCARD_SECONDS
        if self.transport.is_closing() or self.is_unread:
            return self.transport.abort, settings.answer_timeout
        if self.is_idle and self.stage:
            return self._refuse_slow, settings.head_timeout
        if self.is_idle:
            # After an answer, uvicorn's own time-out applies; only the age is counted.
            return self.transport.close, NEVER if self.is_kept_alive else settings.head_timeout
        if self.stage is Stage.BODY and not self.is_unheard:
            return self._refuse_slow, settings.body_timeout * (1 + self._received_of_body // DISCARD_LIMIT)
        return None

    def _refuse_slow(self) -> None:
        self.refuse(TIMED_OUT if self.worker.ends_at == NEVER else ENDING)

    def grow_older(self) -> None:
        """Count a second, and act at the end of a time-out, or when the server ends."""
        act, seconds = self.time_out() or (None, 0)
        last_act, last_scope = self._waited
        self._waited = (act, self.scope)
        self.age = self.age + 1 if act and act == last_act and self.scope is last_scope else 0
        if act and (self.age >= seconds or self.loop.time() >= self.worker.ends_at):
            act()

    def on_response_complete(self) -> None:
        """Go on, without waiting for the rest of the body."""
        if self.stage:
            self.worker.uploading.discard(self)
        super().on_response_complete()
        if self.is_unread:
            self._note_unread()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._note_unread()

    def resume_writing(self) -> None:
        """Go on, since the client has read."""
        super().resume_writing()
        self.worker.unread.discard(self)

    def _note_unread(self) -> None:
        """Add the connection to `unread` while its client delays a call by not reading, or remove it."""
        if self.is_answering and self not in self.worker.uploading:
            self.worker.unread.add(self)
        else:
            self.worker.unread.discard(self)
