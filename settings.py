"""Every setting, from the environment (or a .env file beside it)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from currencies import ISO_4217, parse_custom_currencies


def check_database_url(url: str) -> str:
    """Refuse what Savepoint cannot run on, in words that say what it can."""
    # Hosting providers still hand out the scheme that SQLAlchemy dropped.
    url = url.replace("postgres://", "postgresql://", 1)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: its text repeats the URL, password included.
        raise ValueError(
            "not a database URL; write sqlite:///./file.db or postgresql://user:password@host/name"
        ) from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(f"{backend} is not supported; use sqlite:///./file.db or postgresql://user:password@host/name")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("an in-memory SQLite database is lost between connections; name a file: sqlite:///./file.db")
    return url


def check_custom_currencies(text: str) -> str:
    """Refuse a list of currencies that cannot be read."""
    parse_custom_currencies(text)
    return text


def check_default_currency(code: str, info: ValidationInfo) -> str:
    """Refuse a currency that no account could be opened in."""
    if code not in ISO_4217 | parse_custom_currencies(info.data.get("custom_currencies", "")):
        raise ValueError(f"{code!r} is not a currency; use a code of ISO 4217, or list it in CUSTOM_CURRENCIES")
    return code


DatabaseUrl = Annotated[str, AfterValidator(check_database_url)]


class Settings(BaseSettings):
    """The settings, each read from the environment variable of its name in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True)

    database_url: DatabaseUrl = Field(
        default="sqlite:///./savepoint.db",
        description="Where the data lives: sqlite:///… or postgresql://…",
    )
    prod_database_url: DatabaseUrl | None = Field(
        default=None,
        description="The only URL that prod_alembic.ini migrates",
    )
    environment: Literal["development", "production"] = Field(
        default="development",
        description="In development an operator token is made and printed at start-up",
    )
    operator_token: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="The operator's bearer token; unset in production, operator calls are refused",
    )
    custom_currencies: Annotated[str, AfterValidator(check_custom_currencies)] = Field(
        default="", description="Your own currencies besides ISO 4217's, with their decimals: POINTS,CREDITS:2"
    )
    default_currency: Annotated[str, AfterValidator(check_default_currency)] = Field(
        default="EUR", description="The currency of the account that a registration opens"
    )
    database_pool_size: int = Field(default=10, ge=2, description="Connections to the database, per worker")
    queue_limit: int = Field(
        default=1000, ge=1, description="Calls of one kind that may wait, per worker; more are 503"
    )
    batch_limit: int = Field(default=256, ge=1, description="Calls that share one transaction, at most")
    request_timeout: float = Field(default=30, gt=0, description="Seconds after which a caller is answered 503")
    connection_limit: int = Field(default=4000, ge=1, description="Connections that clients may hold, per worker")
    call_limit: int = Field(
        default=1000, ge=1, description="Calls that may be under way, per worker; more are 503 at once"
    )
    head_timeout: float = Field(default=10, gt=0, description="Seconds that a client may take to send a request's head")
    body_timeout: float = Field(
        default=30, gt=0, description="Seconds that a client may take to send a request's body, for each MiB"
    )
    answer_timeout: float = Field(default=30, gt=0, description="Seconds that a client may leave an answer unread")
    statement_timeout: float = Field(default=10, gt=0, description="Seconds that a PostgreSQL statement may run")
    lock_timeout: float = Field(
        default=5, gt=0, description="Seconds to wait for a lock (SQLite: for the writer's turn)"
    )
    saves_dir: Path = Field(default=Path("saves"), description="Where manage.py save keeps its copies")
    save_before_migrations: bool = Field(
        default=True, description="Save a copy before a migration that drops something or rebuilds a table on SQLite"
    )
    migration_lock_timeout: float = Field(
        default=2, gt=0, description="Seconds a migration on PostgreSQL waits for a lock before it lets others pass"
    )
    migration_timeout: float = Field(
        default=60, gt=0, description="Seconds a migration tries to get its locks, or waits for another migration"
    )


def first_error(error: ValidationError) -> str:
    """What is wrong with the settings, in one line that names the variable."""
    first = error.errors()[0]
    return f"{str(first['loc'][0]).upper()}: {first['msg'].removeprefix('Value error, ')}"
