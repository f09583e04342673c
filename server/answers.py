"""Answers made in advance, but for their ids: problems that refuse a request before it reaches the application."""

from http import HTTPStatus
from typing import NamedTuple

import metrics
from api import problems
from api.request_ids import HEADER
from refusals import Overloaded, ShuttingDown


class Answer(NamedTuple):
    """An answer but for the id of its request, and its reason for the log and the metrics."""

    reason: str
    head: bytes
    body: bytes

    def to(self, request_id: str) -> bytes:
        """Return the answer to this request."""
        own = request_id.encode()
        body = b'%b,"request_id":"%b"}' % (self.body[:-1], own)
        return b"%b%b: %b\r\ncontent-length: %d\r\n\r\n%b" % (self.head, HEADER, own, len(body), body)


def _make_answer(reason: str, status: HTTPStatus, name: str, detail: str, *, closes: bool = True) -> Answer:
    problem = problems.make_problem(status, name, detail)
    problems.TYPES.add(problem.type)
    body = problem.model_dump_json().encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
    head += "retry-after: 1\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    head += "connection: close\r\n" if closes else ""
    # From the start, since Prometheus cannot tell the first of a kind from a new series.
    metrics.REFUSED.labels(reason)
    return Answer(reason, head.encode(), body)


_OVERLOADED = ("overloaded", HTTPStatus(503), "Overloaded", Overloaded().detail)
BUSY = _make_answer(*_OVERLOADED, closes=False)
BUSY_CLOSING = _make_answer(*_OVERLOADED)
ENDING = _make_answer("shutting down", HTTPStatus(503), "ShuttingDown", ShuttingDown().detail)
_INVALID = "This is not a valid HTTP request. Check how the client writes it."
INVALID = _make_answer("invalid HTTP", HTTPStatus(400), "InvalidHttp", _INVALID)
_TOO_LARGE = "The URL and the headers are too large. Send at most 16 KiB of them."
HEAD_TOO_LARGE = _make_answer("head too large", HTTPStatus(431), "RequestHeaderFieldsTooLarge", _TOO_LARGE)
_TIMED_OUT = "The request took too long to come. Nothing was done; send it again."
TIMED_OUT = _make_answer("timed out", HTTPStatus(408), "RequestTimeout", _TIMED_OUT)
