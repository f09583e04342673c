"""The settings, from the environment or a .env file in the working directory."""

import os
import re
import unicodedata
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from dotenv.parser import parse_stream
from psycopg.pq import Conninfo
from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from api.address_limits import parse_rate
from currencies import ISO_4217, parse_custom_currencies


def check_database_url(url: str) -> str:
    """Refuse a database that Savepoint cannot use; the error says which it can."""
    if not url:
        raise ValueError(
            "not set; in production it must name the database: postgresql://user:password@host/name, or a file by its "
            "full path: sqlite:////var/lib/savepoint/savepoint.db"
        )
    # Hosting providers still use the scheme that SQLAlchemy dropped.
    url = url.replace("postgres://", "postgresql://", 1)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause, whose text repeats the URL with its password.
        raise ValueError(
            "not a database URL; write sqlite:///./file.db or postgresql://user:password@host/name"
        ) from None
    if any(unicodedata.category(each) in ("Cc", "Cs") for each in unquote(url, errors="surrogateescape")):
        raise ValueError("has a control character, or bytes that are not UTF-8; neither a path nor a name may have one")
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(f"{backend} is not supported; use sqlite:///./file.db or postgresql://user:password@host/name")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("an in-memory SQLite database is lost between connections; name a file: sqlite:///./file.db")
    if backend == "sqlite" and (parsed.host or "?" in url):
        raise ValueError(
            "a SQLite URL has three slashes, the file, and no options: sqlite:///./file.db; write a ? in a file's "
            "name as %3F"
        )
    if backend == "postgresql":
        check_server(url, parsed.port)
        check_url_parameters(url, parsed.query)
    return url


def check_server(url: str, port: int | None) -> None:
    """Refuse an invalid address of a server."""
    # The driver's messages name server and database, which may be the part of a password after an @.
    if "@" in without_user(url):
        raise ValueError("has an @ too many; write an @ in a user, password, name or parameter as %40")
    if port is not None and not 0 < port < 65_536:
        raise ValueError("has a port that is not 1 to 65535")


def without_user(url: str) -> str:
    """Return the URL from its server on, as SQLAlchemy splits it."""
    return re.sub(r"^[^:]+://([^:/]*(:[^@]*)?@)?", "", url)


def check_url_parameters(url: str, parameters: Iterable[str]) -> None:
    """Refuse parameters of a URL that PostgreSQL's client library does not know, or that have no value."""
    written = without_user(url).partition("?")[2].split("&")
    if any(each and "=" not in each for each in written):
        raise ValueError("has a parameter without a value; write ?name=value&name=value, a & in a value as %26")
    unknown = set(parameters) - {option.keyword.decode() for option in Conninfo.get_defaults()}
    if unknown:
        # The unknown name may be the part of a password after an &.
        named = "a name after its ?" if "password" in url else min(unknown)
        raise ValueError(
            f"{named} is not a parameter of a PostgreSQL URL; see the PostgreSQL manual, 34.1.2. "
            "To turn prepared statements off, set PREPARED_STATEMENTS=false"
        )


def check_token(token: SecretStr) -> SecretStr:
    """Refuse a token that can be guessed, or that no header "Authorization: Bearer …" can carry (RFC 6750, 2.1)."""
    if len(token) < MINIMUM_TOKEN_LENGTH:
        raise ValueError(
            f"must have at least {MINIMUM_TOKEN_LENGTH} characters, so that nobody can guess it; make one: "
            "openssl rand -base64 32"
        )
    if re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token.get_secret_value()) is None:
        raise ValueError(
            "may have letters (A to Z, a to z), digits and - . _ ~ + / = only, and no space or line end: no call could "
            "send it. A file with Windows line ends (CRLF) adds a character that is not seen. Make one: "
            "openssl rand -base64 32"
        )
    return token


def check_custom_currencies(text: str) -> str:
    """Refuse an invalid list of currencies."""
    parse_custom_currencies(text)
    return text


def check_default_currency(code: str, info: ValidationInfo) -> str:
    """Refuse a currency that no account can have."""
    if "custom_currencies" not in info.data:
        return code  # That list is invalid, and is reported.
    if code not in ISO_4217 | parse_custom_currencies(info.data["custom_currencies"]):
        raise ValueError(f"{code!r} is not a currency; use a code of ISO 4217, or list it in CUSTOM_CURRENCIES")
    return code


def check_rate(text: str) -> str:
    """Refuse an invalid rate; an empty one means no limit."""
    if text:
        parse_rate(text)
    return text


def check_networks(text: str) -> str:
    """Refuse an invalid list of networks."""
    parse_networks(text)
    return text


def parse_networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Return the networks of a list with commas between them. Raises ValueError."""
    try:
        return [ip_network(each.strip()) for each in text.split(",") if each.strip()]
    except ValueError as error:
        raise ValueError(f"{error}; write networks with a comma between them: 10.1.0.0/16,fd00::/8") from None


MINIMUM_TOKEN_LENGTH = 16

Token = Annotated[SecretStr, AfterValidator(check_token)]
DatabaseUrl = Annotated[str, AfterValidator(check_database_url)]
Networks = Annotated[str, AfterValidator(check_networks)]
OptionalRate = Annotated[str, AfterValidator(check_rate)]
# At least a millisecond, since PostgreSQL takes 0 for no limit, and at most a day.
Seconds = Annotated[float, Field(ge=0.001, le=86_400, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The settings, each read from the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True)

    database_url: DatabaseUrl = Field(
        default="sqlite:///./savepoint.db",
        description="Where the data lives: sqlite:///… or postgresql://…; must be set in production",
    )
    prod_database_url: DatabaseUrl | None = Field(
        default=None, description="The only URL that prod_alembic.ini migrates"
    )
    environment: Literal["development", "production"] = Field(
        default="development",
        description="development or production; in development an operator token is made and printed at start-up",
    )
    operator_token: Token | None = Field(
        default=None,
        description="The operator's bearer token, at least 16 characters; unset in production, its calls are refused",
    )
    console: bool = Field(
        default=True, description="The operator's screens at /console, where there is an operator token; false: none"
    )
    metrics_token: Token | None = Field(
        default=None, description="A bearer token that may read /metrics and nothing else; the operator's may too"
    )
    registration: Literal["anyone", "operator"] = Field(
        default="anyone", description="Who may register a user: anyone, or only the operator"
    )
    registrations_per_address: OptionalRate = Field(
        default="", description="Calls of POST /register by each client address, per worker: 20/hour; unset, no limit"
    )
    failed_tokens_per_address: OptionalRate = Field(
        default="", description="Invalid tokens sent by each client address, per worker: 30/minute; unset, no limit"
    )
    custom_currencies: Annotated[str, AfterValidator(check_custom_currencies)] = Field(
        default="", description="Your own currencies besides ISO 4217's, with their decimals: POINTS,CREDITS:2"
    )
    default_currency: Annotated[str, AfterValidator(check_default_currency)] = Field(
        default="EUR", description="The currency of the account that a registration opens"
    )
    events: bool = Field(
        default=False,
        description="Store what happens as events, for GET /events and webhooks: a row more a batch",
    )
    events_days: int = Field(
        default=30, ge=4, le=36_500, description="Days that `python manage.py prune` keeps events and deliveries"
    )
    deliverer: bool = Field(
        default=True, description="Send webhooks from the service; false: only `python manage.py deliver` does"
    )
    webhook_networks: Networks = Field(
        default="", description="Private networks that webhooks may reach in production: 10.1.0.0/16,fd00::/8"
    )
    database_pool_size: int = Field(default=10, ge=2, description="Connections to the database, per worker")
    queue_limit: int = Field(
        default=1000, ge=1, description="Calls of one kind that may wait, per worker; more are 503"
    )
    batch_limit: int = Field(default=256, ge=1, description="Calls that share one transaction, at most")
    request_timeout: Seconds = Field(default=30, description="Seconds after which a caller is answered 503")
    connection_limit: int = Field(default=4000, ge=1, description="Connections that clients may hold, per worker")
    call_limit: int = Field(
        default=1000, ge=1, description="Calls that may be under way, per worker; more are 503 at once"
    )
    head_timeout: Seconds = Field(default=10, description="Seconds that a client may take to send a request's head")
    body_timeout: Seconds = Field(
        default=30, description="Seconds that a client may take to send a request's body, for each MiB"
    )
    answer_timeout: Seconds = Field(default=30, description="Seconds that a client may leave an answer unread")
    statement_timeout: Seconds = Field(default=10, description="Seconds that a PostgreSQL statement may run")
    lock_timeout: Seconds = Field(default=5, description="Seconds to wait for a lock (SQLite: for the writer's turn)")
    prepared_statements: bool = Field(
        default=True, description="Let PostgreSQL prepare statements; through a connection pooler it never does"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="How lines of log look: text or json")
    log_requests: int = Field(
        default=100, ge=0, description="Requests in the log a second, of each status and worker; the others are counted"
    )
    saves_dir: Path = Field(default=Path("saves"), description="Where manage.py save keeps its copies")
    save_before_migrations: bool = Field(
        default=True, description="Save a copy before a migration that drops something or rebuilds a table on SQLite"
    )
    migration_lock_timeout: Seconds = Field(
        default=2, description="Seconds a migration on PostgreSQL waits for a lock before it lets others pass"
    )
    migration_timeout: Seconds = Field(
        default=60, description="Seconds a migration tries to get its locks, or waits for another migration"
    )


class NamedDatabase(Settings):
    """The settings of a process that uses DATABASE_URL: in production there is no default for it."""

    @model_validator(mode="before")
    @classmethod
    def require_database_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let check_database_url report a missing URL, together with all other errors."""
        return {"database_url": "", **values} if values.get("environment") == "production" else values


class SettingsError(Exception):
    """Settings are invalid or missing; the message has a line for each, which begins with its variable."""


def settings_from_environment(kind: type[Settings] = NamedDatabase) -> Settings:
    """Return the settings from the environment. Raises SettingsError."""
    # Pydantic silently ignores what is no regular file.
    if os.path.lexists(".env") and not (Path(".env").is_file() or Path(".env").is_fifo()):
        raise SettingsError(
            "The file .env cannot be read: it is not a regular file. Put a file of settings there, or remove it."
        )
    try:
        if Path(".env").is_file():
            check_file(Path(".env"))
        return kind()
    except ValidationError as error:
        raise SettingsError("\n".join(map(_message_of, error.errors()))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The file .env cannot be read: {error}") from None


def check_file(path: Path) -> None:
    """Refuse lines that set nothing, which would be ignored. Raises SettingsError, OSError, UnicodeDecodeError."""
    with path.open(encoding="utf-8") as file:
        for binding in parse_stream(file):
            written = binding.original.string
            is_setting = binding.key is None or (binding.value is not None and re.fullmatch(r"[\w.-]+", binding.key))
            if binding.error or not is_setting or "\0" in written:
                line = binding.original.line + written[: -len(written.lstrip())].count("\n")
                # Without the line itself, which may hold a secret.
                raise SettingsError(
                    f"The file {path}, line {line}: it cannot be read. Write NAME=value, and close each quote."
                )


def _message_of(error: Any) -> str:
    words = MESSAGES.get(error["type"], error["msg"].removeprefix("Value error, "))
    return f"{str(error['loc'][0]).upper()}: {words.format(**error.get('ctx', {}))}"


MESSAGES = {
    "bool_parsing": "must be true or false",
    "finite_number": "must be a number of seconds, such as 2.5",
    "float_parsing": "must be a number of seconds, such as 2.5",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
}
"""Texts for pydantic's errors that need no knowledge of Python."""
