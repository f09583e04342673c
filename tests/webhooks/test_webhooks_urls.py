"""Where webhooks may be sent: URLs and addresses, without the network."""

from ipaddress import ip_address, ip_network

import pytest
from pydantic_core import PydanticCustomError

from webhooks.urls import check_url, is_allowed


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://hooks.example", "https://hooks.example/"),
        ("HTTPS://Hooks.Example:443/A?b=C", "https://hooks.example/A?b=C"),
        ("https://hooks.example.:8443/", "https://hooks.example:8443/"),
        ("https://hooks.example:/a;b/c;d?e;f", "https://hooks.example/a;b/c;d?e;f"),
        ("https://hooks.example//a?", "https://hooks.example//a"),
        ("https://straße.example/ä?ö=%C3%BC", "https://xn--strae-oqa.example/%C3%A4?%C3%B6=%C3%BC"),
        ("https://a_b/", "https://a_b/"),
        ("https://1.1.1.1:00443/", "https://1.1.1.1/"),
        ("https://16843009/", "https://1.1.1.1/"),
        ("https://[2606:4700:4700:0::1111]:8443/", "https://[2606:4700:4700::1111]:8443/"),
    ],
)
def test_a_url_has_one_form(url: str, normal: str) -> None:
    assert check_url(url, development=False) == normal
    assert check_url(normal, development=False) == normal


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://hooks.example/", "begins with https"),
        ("ftp://hooks.example/", "begins with https"),
        ("//hooks.example/", "begins with https"),
        ("https:hooks.example", "Write a host"),
        ("https:///a", "Write a host"),
        ("https://:443/", "Write a host"),
        ("https://user:password@hooks.example/", "without user and password"),
        ("https://@hooks.example/", "without user and password"),
        ("https://hooks.example/#", "without a fragment"),
        ("https://hooks.example/a b", "without spaces"),
        (" https://hooks.example/", "without spaces"),
        ("https://hooks.example/\n", "without spaces"),
        ("https://hooks\t.example/", "without spaces"),
        ("https://hooks.example\\@10.0.0.1/", "backslashes"),
        ("https://hooks.example/\ud800", "control characters"),
        ("https://hooks.example/\u202e", "control characters"),
        ("https://hooks.example:0/", "1 to 65535"),
        ("https://hooks.example:65536/", "1 to 65535"),
        ("https://hooks.example:1a/", "Write a host"),
        ("https://hooks.example:１/", "Write a host|not a URL"),
        ("https://[::1/", "not a URL|Write a host"),
        ("https://[::1]a/", "not a URL|Write a host"),
        ("https://[fe80::1%25eth0]/", "not a URL|Write a host"),
        ("https://hooks..example/", "name of a host"),
        ("https://-hooks.example/", "name of a host"),
        ("https://%31%30.0.0.1/", "name of a host"),
        ("https://1.2.3.4.5/", "name of a host"),
        ("https://1.2.3.256/", "name of a host"),
        ("https://hooks.0x/", "name of a host"),
        (f"https://{'a' * 64}.example/", "name of a host"),
        (f"https://{'a.' * 127}example/", "name of a host"),
        ("https://\u0600.example/", "name of a host"),
        ("https://hooks.example/" + 500 * "a", "at most 500"),
        ("https://hooks.example/" + 160 * "ä", "at most 500"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_what_to_do(url: str, message: str) -> None:
    with pytest.raises(PydanticCustomError, match=message):
        check_url(url, development=False)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "0X7F.0.0.1", "0"),
        *("017700000001", "0177.0.0.1", "10.1.2.3", "169.254.169.254", "0xa9fea9fe"),
        *("１２７.０.０.１", "127。0。0。1", "①②⑦.⓪.⓪.①"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[fe80::1]", "[64:ff9b::10.0.0.1]"),
    ],
)
def test_no_form_of_a_forbidden_address_is_taken(host: str) -> None:
    with pytest.raises(PydanticCustomError, match=r"is not public; allow its network with WEBHOOK_NETWORKS|not a URL"):
        check_url(f"https://{host}/", development=False)

    assert check_url(f"http://{host}/", development=True)


def test_an_address_in_an_allowed_network_is_taken() -> None:
    networks = [ip_network("10.1.0.0/16")]

    assert check_url("https://10.1.0.5/", development=False, networks=networks) == "https://10.1.0.5/"
    with pytest.raises(PydanticCustomError, match="not public"):
        check_url("https://10.2.0.5/", development=False, networks=networks)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.1", "0.1.2.3", "10.0.0.5", "100.64.0.1", "127.0.0.1", "127.255.0.1", "169.254.169.254", "172.16.0.1"),
        *("192.0.0.1", "192.0.0.9", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1"),
        *("203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:10.0.0.5", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("100::1", "2001::1", "2001:0:4136:e378:8000:63bf:f5ff:fffa", "2001:2::1", "2001:10::1", "2001:db8::1"),
        *("2002:7f00:1::1", "2002:808:808::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%2", "fec0::1", "ff02::1", "ff0e::1"),
    ],
)
def test_an_address_that_is_not_public_is_not_allowed(address: str) -> None:
    assert not is_allowed(ip_address(address), [])
    # Nor does a network of another version allow it.
    assert not is_allowed(ip_address(address), [ip_network("8.8.8.0/24"), ip_network("2001:4860::/32")])


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "192.0.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(ip_address(address), [])


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.0.0/16"),
        ("::ffff:10.1.2.3", "10.1.0.0/16"),
        ("64:ff9b::10.1.2.3", "10.1.0.0/16"),
        ("fd00::1", "fd00::/8"),
        ("127.0.0.1", "127.0.0.1/32"),
    ],
)
def test_a_network_of_the_operator_is_allowed(address: str, network: str) -> None:
    assert is_allowed(ip_address(address), [ip_network("192.168.0.0/16"), ip_network(network)])
