"""Rate limits by client address."""

import re
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from math import ceil

from starlette.requests import HTTPConnection

from refusals import TooManyRequests

SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
RATE = re.compile(rf"([1-9][0-9]{{0,8}})/({'|'.join(SECONDS)})")
NANOSECONDS = 10**9

MOST_ADDRESSES = 50_000
"""Addresses that a limit remembers, in 10 MB; those seen least recently are forgotten first."""


def parse_rate(text: str) -> tuple[int, int]:
    """The number and the seconds in "20/hour". Raises ValueError."""
    match = RATE.fullmatch(text)
    if match is None:
        raise ValueError("write a number and a time, as in 20/hour; the time is second, minute, hour or day")
    return int(match[1]), SECONDS[match[2]]


def client_network(connection: HTTPConnection) -> bytes:
    """The client's IPv4 address, or its IPv6 network of 64 bits, since a client has all addresses of such a network.

    Clients without a valid address (of a Unix socket, or from a proxy's header) share one: b"".
    """
    try:
        address = ip_address(connection.client.host if connection.client else "")
    except ValueError:
        return b""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]
    return address.packed


class AddressLimit:
    """A limit on the requests of each address: a leaky bucket (the generic cell rate algorithm).

    With "20/hour", an address makes 20 requests at once, and then one each 3 minutes. The state is in memory, so that
    each worker counts for itself.
    """

    def __init__(self, rate: str) -> None:
        count, seconds = parse_rate(rate)
        # In whole nanoseconds, so that `count` intervals are never more than the time.
        self.capacity = seconds * NANOSECONDS
        self.interval = self.capacity // count
        self.empty_at: OrderedDict[bytes, int] = OrderedDict()

    def count(self, connection: HTTPConnection) -> None:
        """Count a request of this client. Raises TooManyRequests without counting it."""
        network = client_network(connection)
        now = time.monotonic_ns()
        empty_at = max(self.empty_at.pop(network, 0), now)
        wait = empty_at + self.interval - self.capacity - now
        self.empty_at[network] = empty_at if wait > 0 else empty_at + self.interval
        if len(self.empty_at) > MOST_ADDRESSES:
            self.empty_at.popitem(last=False)
        if wait > 0:
            raise TooManyRequests(ceil(wait / NANOSECONDS))


def limit_of(rate: str) -> AddressLimit | None:
    """The limit of a setting; None if it is empty."""
    return AddressLimit(rate) if rate else None
