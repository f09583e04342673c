"""Canaries: what we use of libraries though they do not document it is as it was when we last looked.

One of these fails: read what the library changed since the version in CHECKED, make the file that is named right, run
the tests that docs/decisions/0008-private-interfaces.md names, and note the new version and fingerprint here.
"""

import inspect
import re
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httptools
import pytest
from sqlalchemy import Connection
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from main import app
from server.protocol import BoundedProtocol

ROOT = Path(__file__).parent.parent


PAGE = "docs/decisions/0008-private-interfaces.md"


CHECKED = {"uvicorn": "0.54.0", "httptools": "0.9.0", "sqlalchemy": "2.1.9"}
"""The versions with which each use was checked."""


FINGERPRINTS: dict[Any, tuple[str, str, str]] = {
    HttpToolsProtocol: ("uvicorn", "server/connection.py", "18fdf324b11bf160"),
    RequestResponseCycle: ("uvicorn", "server/connection.py", "e67d470d435dcc1c"),
    FlowControl: ("uvicorn", "server/connection.py", "126debcdaa894c83"),
    ServerState: ("uvicorn", "server/connection.py", "f2260fbf10154746"),
    Connection._handle_dbapi_exception: ("sqlalchemy", "db/trips.py", "9ff661c716209c2e"),
}
"""The source that we build on: its library, the file that does, and the beginning of its SHA-256."""


NAMES = {
    HttpToolsProtocol: (
        "connections cycle expect_100_continue flow headers loop parser pipeline scope server_state "
        "tasks timeout_keep_alive_task transport url ws_protocol_class connection_made connection_lost data_received "
        "eof_received on_body on_headers_complete on_message_begin on_message_complete on_response_complete "
        "pause_writing resume_writing shutdown"
    ),
    RequestResponseCycle: "disconnected keep_alive message_event response_complete response_started",
    FlowControl: "pause_reading read_paused resume_reading write_paused",
    ServerState: "connections default_headers tasks",
    Config: "encoded_headers",
}
"""What server/ uses of uvicorn's objects."""


def sentence(library: str, file: str, change: str) -> str:
    return f"{library} {version(library)} {change}; {file} was checked with {CHECKED[library]}. See {PAGE}."


@pytest.mark.parametrize("source", FINGERPRINTS, ids=lambda source: source.__qualname__)
def test_the_source_that_we_build_on_is_the_one_that_was_read(source: Any) -> None:
    library, file, fingerprint = FINGERPRINTS[source]
    found = sha256(inspect.getsource(source).encode()).hexdigest()[:16]

    assert found == fingerprint, sentence(library, file, f"changed {source.__qualname__} ({found})")


@pytest.mark.parametrize("owner", NAMES, ids=lambda owner: owner.__name__)
def test_each_name_of_uvicorns_that_we_use_is_there(owner: Any) -> None:
    source = inspect.getsource(owner)
    gone = [name for name in NAMES[owner].split() if not re.search(rf"self\.{name}\b|def {name}\(", source)]

    assert gone == [], sentence("uvicorn", "server/connection.py", f"has no {owner.__name__}.{', .'.join(gone)}")


def test_httptools_tells_where_what_follows_an_offer_to_upgrade_begins() -> None:
    offer = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        httptools.HttpRequestParser(object()).feed_data(offer + b"body")

    change = f"tells {upgrade.value.args} for an offer to upgrade"
    assert upgrade.value.args == (len(offer),), sentence("httptools", "server/connection.py", change)


async def test_uvicorn_as_typed_makes_our_protocol() -> None:
    config = Config(app, lifespan="off", log_config=None)
    config.load()
    protocol: Any = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]

    change = f"makes {type(protocol).__qualname__} as typed"
    assert isinstance(protocol, BoundedProtocol), sentence("uvicorn", "server/connection.py", change)


def private_uses(folder: str) -> set[tuple[str, str]]:
    """The names with an underscore that files use of what is not their own: file and name."""
    uses = re.compile(r"(?<!self)(?<!cls)\.(_[a-z]\w*)")
    return {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / folder).glob("*.py")
        for name in uses.findall(path.read_text())
    }


def test_names_with_an_underscore_are_used_in_one_place_each() -> None:
    assert private_uses("server") | private_uses("db") == {("db/trips.py", "_handle_dbapi_exception")}


def test_the_page_lists_every_name() -> None:
    page = (ROOT / PAGE).read_text()
    names = [name for names in NAMES.values() for name in names.split()]

    assert [name for name in (*names, "_handle_dbapi_exception", "__new__") if f"`{name}`" not in page] == []
    assert [name for name, checked in CHECKED.items() if f"{name} {checked}" not in page] == []
