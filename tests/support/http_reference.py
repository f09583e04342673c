"""The grammar of RFC 9112, written down again: which requests are in what a client sent, as a strict proxy reads it."""

import re
from typing import NamedTuple

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Empty lines may come before, and more than one space between (RFC 9112, 2.2 and 3). A bare CR before the first letter
# is not the RFC's, but it is no part of any request either.
REQUEST_LINE = re.compile(rb"[\r\n]*(%b) +[\x21\x22\x24-\x7e]+ +HTTP/1\.([01])\r\n" % TOKEN)
FIELD = re.compile(rb"(%b):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*\r\n" % TOKEN)
CHUNK = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")


class Request(NamedTuple):
    """A request that came whole."""

    method: bytes
    body: bytes


class _Unreadable(Exception):
    """There is no whole request, or it is no valid one."""


def requests_in(data: bytes) -> list[Request]:
    """The requests up to the first that is invalid, ambiguous or not whole."""
    found: list[Request] = []
    place = 0
    try:
        while place < len(data):
            line, place = _match(REQUEST_LINE, data, place)
            fields, place = _fields(data, place)
            body, place = _body(fields, data, place)
            found.append(Request(line[1], body))
    except _Unreadable:
        pass
    return found


def _match(pattern: re.Pattern[bytes], data: bytes, place: int) -> tuple[re.Match[bytes], int]:
    match = pattern.match(data, place)
    if match is None:
        raise _Unreadable
    return match, match.end()


def _fields(data: bytes, place: int) -> tuple[dict[bytes, list[bytes]], int]:
    """The values of each field by its name, up to the empty line."""
    fields: dict[bytes, list[bytes]] = {}
    while data[place : place + 2] != b"\r\n":
        field, place = _match(FIELD, data, place)
        fields.setdefault(field[1].lower(), []).append(field[2])
    return fields, place + 2


def _body(fields: dict[bytes, list[bytes]], data: bytes, place: int) -> tuple[bytes, int]:
    codings, lengths = fields.get(b"transfer-encoding", []), fields.get(b"content-length", [])
    if len(codings) + len(lengths) > 1 or len(fields.get(b"host", [])) > 1:
        raise _Unreadable
    if not codings:
        if lengths and re.fullmatch(rb"[0-9]+", lengths[0]) is None:
            raise _Unreadable
        return _take(int(lengths[0]) if lengths else 0, data, place)
    if codings[0].lower() != b"chunked":
        raise _Unreadable
    body = b""
    while True:
        chunk, place = _match(CHUNK, data, place)
        size = int(chunk[1], 16)
        if size == 0:
            return body, _fields(data, place)[1]
        piece, place = _take(size + 2, data, place)
        if not piece.endswith(b"\r\n"):
            raise _Unreadable
        body += piece[:-2]


def _take(size: int, data: bytes, place: int) -> tuple[bytes, int]:
    if size > len(data) - place:
        raise _Unreadable
    return data[place : place + size], place + size
