"""Where deliveries may go: URLs in one form that every parser reads alike, and addresses that are public."""

import re
import socket
import string
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote, urlsplit

import idna

from fields import UNPRINTABLE, wrong

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 500
AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::([0-9]{0,5}))?")
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# No top-level domain is a number: what ends in one is meant as an address.
NAME = re.compile(rf"(?=.{{1,253}}$)(?:{LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$){LABEL}")
NAT64 = IPv6Network("64:ff9b::/96")
# Public IPv6 addresses are given out of this network only (IANA, IPv6 Global Unicast Address Assignments).
GLOBAL_UNICAST = IPv6Network("2000::/3")
# What Python's is_global lets through, in some versions: protocol assignments, Teredo among them; 6to4 and its relays;
# documentation.
NOT_PUBLIC = [ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")]


def check_url(url: str, *, development: bool, networks: Sequence[Network] = ()) -> str:
    """Return the URL in its normal form: lower case, IDN encoded, an address as usually written, no default port.

    Names are resolved when something is sent. Raises an error of `fields.wrong`.
    """
    if len(url) > LONGEST_URL:
        raise wrong(f"A URL has at most {LONGEST_URL} characters")
    # Parsers differ in what they make of these.
    if UNPRINTABLE.search(url) or re.search(r"[\s\\]", url):
        raise wrong("Write the URL without spaces, control characters and backslashes")
    if "#" in url:
        raise wrong("Write the URL without a fragment: nothing from # on is ever sent")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise wrong("This is not a URL; write one such as https://hooks.example/savepoint") from None
    if parts.scheme != "https" and not (development and parts.scheme == "http"):
        raise wrong("Write a URL that begins with https://")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority = _normalise_authority(parts.netloc, parts.scheme)
    normal = f"{parts.scheme}://{authority}{quote(target, safe=string.punctuation)}"
    if len(normal) > LONGEST_URL:
        raise wrong(f"A URL has at most {LONGEST_URL} characters; this one has {len(normal)} once it is encoded")
    address = _parse_address(urlsplit(normal).hostname or "")
    if address and not development and not is_allowed(address, networks):
        raise wrong(f"The address {address} is not public; allow its network with WEBHOOK_NETWORKS")
    return normal


def is_allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Return True for a public address, and for one in these networks."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return is_allowed(address.ipv4_mapped, networks)
        # Where IPv6 alone is spoken, a gateway makes all of IPv4 reachable here (RFC 6052).
        if address in NAT64:
            return is_allowed(IPv4Address(int(address) & 0xFFFFFFFF), networks)
    if any(address in network for network in networks):
        return True
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)


def _normalise_authority(netloc: str, scheme: str) -> str:
    """Return host and port, without the scheme's own port."""
    if "@" in netloc:
        raise wrong("Write the URL without user and password; the signature shows who sends")
    parts = AUTHORITY.fullmatch(netloc)
    if parts is None:
        raise wrong("Write a host and, where it is not 443, a port: https://hooks.example:8443/savepoint")
    host, port = _normalise_host(parts[1] or parts[2]), parts[3]
    if ":" in host:
        host = f"[{host}]"
    if not port or int(port) == {"http": 80, "https": 443}[scheme]:
        return host
    if not 0 < int(port) < 65_536:
        raise wrong("A port is a number from 1 to 65535")
    return f"{host}:{int(port)}"


def _normalise_host(host: str) -> str:
    """Return a name in lower case and ASCII, or an address in its usual form: 127.0.0.1 for 0x7f.1 and 2130706433."""
    try:
        name = (host if host.isascii() else idna.encode(host, uts46=True).decode()).lower().removesuffix(".")
    except UnicodeError:
        name = ""
    address = _parse_address(name)
    if address is None and NAME.fullmatch(name) is None:
        raise wrong("This is not the name of a host; write one such as hooks.example")
    return str(address or name)


def _parse_address(host: str) -> Address | None:
    """Return the address that this is, in any form that the system's resolver takes for one."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None
