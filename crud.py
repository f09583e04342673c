"""Every transaction. Knows nothing of HTTP.

A function that writes takes a session on which nothing has begun and a list of items. It opens its transaction itself
and answers a list of outcomes in the order of the items: what is true now, or a Refusal. Refusals are values, so
nothing is rolled back for them.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, wraps
from typing import Any, TypeVar

from sqlalchemy import JSON, bindparam, cast, column, func, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSessionTransaction
from sqlalchemy.types import String
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

import metrics
from models import (
    AccessToken,
    IssuedToken,
    KeyedRegistration,
    Profile,
    Status,
    TokenPublic,
    User,
    UserPublic,
    now,
)
from refusals import (
    IdempotencyKeyReused,
    Interruption,
    Refusal,
    TokenNotFound,
    Unauthenticated,
    UsernameTaken,
    UserNotActive,
    UserNotFound,
)
from tokens import hash_secret, make_token

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Write = Callable[[AsyncSession, Sequence[Item]], Awaitable[list[Outcome | Refusal]]]
IsolatedWrite = Callable[[AsyncSession, Sequence[Item]], Awaitable[list[Outcome | Exception]]]

REPLAY_WINDOW = timedelta(minutes=15)
"""How long the idempotency key of a registration answers again what it answered first."""


# --- transactions -----------------------------------------------------------------------------------------------------


def begin(session: AsyncSession) -> AsyncSessionTransaction:
    """A transaction, or a savepoint within the one that replays a batch."""
    return session.begin_nested() if session.in_transaction() else session.begin()


def isolating_failures(write: Write[Item, Outcome]) -> IsolatedWrite[Item, Outcome]:
    """Let an item that fails unforeseen fail alone, as the exception that is its outcome.

    When `write` raises, its transaction is rolled back ("load the save") and the items are replayed in halves, each
    half behind its own savepoint and halved again where it fails: n items with one bad one cost 2 log2(n) writes.
    """

    @wraps(write)
    async def isolated(session: AsyncSession, items: Sequence[Item]) -> list[Outcome | Exception]:
        try:
            return [*await write(session, items)]
        except Interruption:
            raise
        except Exception as error:
            if len(items) == 1:
                return [error]
        metrics.BATCHES_HALVED.inc()
        middle = len(items) // 2
        async with begin(session):
            return [*await isolated(session, items[:middle]), *await isolated(session, items[middle:])]

    return isolated


# --- registration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """A user who is registered, with a token that was issued just now."""

    user: UserPublic
    access_token: str
    replayed: bool


@isolating_failures
async def register_users(
    session: AsyncSession, registrations: Sequence[KeyedRegistration]
) -> list[Registered | Refusal]:
    """Create each user with its profile and a first access token; those that are refused leave nothing behind.

    A name asked for twice goes to the first. A key that came with the same content within REPLAY_WINDOW answers the
    same user again, with a fresh token. Refusals: UsernameTaken, IdempotencyKeyReused.
    """
    async with begin(session):
        return await insert_registrations(session, registrations)


async def register_all_users(
    session: AsyncSession, registrations: Sequence[KeyedRegistration]
) -> list[Registered | Refusal]:
    """Create every user as register_users does, or none at all where one of them is refused."""
    async with session.begin() as transaction:
        outcomes = await insert_registrations(session, registrations)
        if any(isinstance(outcome, Refusal) for outcome in outcomes):
            await transaction.rollback()
    return outcomes


async def insert_registrations(
    session: AsyncSession, registrations: Sequence[KeyedRegistration]
) -> list[Registered | Refusal]:
    """Insert what is new, set-based, and judge the rest by what was there first."""
    if not registrations:
        return []
    moment = now()
    key_hashes = [hash_key(registration) for registration in registrations]
    created = await insert_users(session, registrations, key_hashes, moment)
    await insert_profiles(session, created.values())
    # After the insert: whoever was first has committed by now, so this sees the row that was in the way.
    lost = {key_hash for index, key_hash in enumerate(key_hashes) if key_hash and index not in created}
    earlier = await find_registrations(session, lost) if lost else {}
    judged = [
        created.get(index) or judge_repeated(registration, earlier.get(key_hash), moment)
        for index, (registration, key_hash) in enumerate(zip(registrations, key_hashes, strict=True))
    ]
    secrets = await insert_first_tokens(session, judged, moment)
    return [
        outcome if isinstance(outcome, Refusal) else Registered(outcome, secrets[index], replayed=index not in created)
        for index, outcome in enumerate(judged)
    ]


def hash_key(registration: KeyedRegistration) -> str | None:
    """The only form in which a registration's key is kept, since it is worth a token for a while."""
    return None if registration.idempotency_key is None else hash_secret(str(registration.idempotency_key))


async def insert_users(
    session: AsyncSession,
    registrations: Sequence[KeyedRegistration],
    key_hashes: Sequence[str | None],
    moment: datetime,
) -> dict[int, UserPublic]:
    """Insert the users whose name and key are free; answer them by their index in `registrations`."""
    rows = [
        {
            "username": registration.username,
            "email": registration.email,
            "phone_number": registration.phone_number,
            "registration_key_hash": key_hash,
        }
        for registration, key_hash in zip(registrations, key_hashes, strict=True)
    ]
    # In order of name, so that two batches that share names cannot deadlock. Sorting keeps the order of equals.
    inserted = await insert_rows(
        session,
        User,
        sorted(rows, key=lambda row: str(row["username"])),
        created_at=moment,
        returning=("id", "username", "registration_key_hash"),
    )
    ids = {(username, key_hash): id for id, username, key_hash in inserted}
    created = {}
    for index, (registration, key_hash) in enumerate(zip(registrations, key_hashes, strict=True)):
        # Of several with the same name and key, the first was inserted.
        id = ids.pop((registration.username, key_hash), None)
        if id is not None:
            created[index] = UserPublic.model_construct(
                id=id,
                username=registration.username,
                email=registration.email,
                phone_number=registration.phone_number,
                status="active",
                created_at=moment,
            )
    return created


async def insert_profiles(session: AsyncSession, users: Iterable[UserPublic]) -> None:
    """Insert the profile of each new user."""
    rows = [{"user_id": user.id, "status": user.status} for user in users]
    if rows:
        await insert_rows(session, Profile, rows)


async def find_registrations(session: AsyncSession, key_hashes: Iterable[str]) -> dict[str | None, UserPublic]:
    """The users who registered with these keys, by key."""
    rows = await session.exec(
        select(User, Profile.status).join(Profile).where(col(User.registration_key_hash).in_(key_hashes))
    )
    return {user.registration_key_hash: show_user(user, status) for user, status in rows}


def judge_repeated(
    registration: KeyedRegistration, earlier: UserPublic | None, moment: datetime
) -> UserPublic | Refusal:
    """Answer a registration that found its name or key in use; `earlier` is who registered with the same key."""
    if earlier is None:
        return UsernameTaken()
    if any(getattr(earlier, name) != getattr(registration, name) for name in ("username", "email", "phone_number")):
        return IdempotencyKeyReused()
    return earlier if moment - earlier.created_at <= REPLAY_WINDOW else UsernameTaken()


async def insert_first_tokens(
    session: AsyncSession, outcomes: Sequence[UserPublic | Refusal], moment: datetime
) -> dict[int, str]:
    """Issue a token to each user among `outcomes`; answer the secrets by index."""
    users = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, UserPublic)}
    secrets = {index: make_token() for index in users}
    rows = [{"user_id": user.id, "token_hash": hash_secret(secrets[index])} for index, user in users.items()]
    if rows:
        await insert_rows(session, AccessToken, rows, created_at=moment)
    return secrets


# --- users ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserChange:
    """New values for some fields of a user: email and phone_number, or status; by the user itself or the operator."""

    user_id: int
    fields: dict[str, Any]
    by_operator: bool = False


@isolating_failures
async def update_users(session: AsyncSession, changes: Sequence[UserChange]) -> list[UserPublic | Refusal]:
    """Apply the changes in order. Refusals: UserNotFound, and UserNotActive where the change is the user's own."""
    async with begin(session):
        # In id order, so that two batches that share users cannot deadlock.
        rows = await session.exec(
            select(User, Profile)
            .join(Profile)
            .where(col(User.id).in_({change.user_id for change in changes}))
            .order_by(col(User.id))
            .with_for_update()
        )
        found = {user.id: (user, profile) for user, profile in rows}
        return [update_user(change, *found.get(change.user_id, (None, None))) for change in changes]


def update_user(change: UserChange, user: User | None, profile: Profile | None) -> UserPublic | Refusal:
    """Apply one change to the locked rows of its user; the session writes them at COMMIT."""
    if user is None or profile is None:
        return UserNotFound()
    if profile.status != "active" and not change.by_operator:
        return UserNotActive()
    for name, value in change.fields.items():
        setattr(profile if name == "status" else user, name, value)
    return show_user(user, profile.status)


def show_user(user: User, status: str) -> UserPublic:
    """The user as the API shows it; it was validated when it came in."""
    return UserPublic.model_construct(
        id=user.id,
        username=user.username,
        email=user.email,
        phone_number=user.phone_number,
        status=status,
        created_at=user.created_at,
    )


async def get_user(session: AsyncSession, user_id: int) -> UserPublic:
    """The user with this id. Raises UserNotFound."""
    row = (await session.exec(select(User, Profile.status).join(Profile).where(User.id == user_id))).one_or_none()
    if row is None:
        raise UserNotFound
    return show_user(*row)


async def list_users(
    session: AsyncSession, *, status: Status | None, username_prefix: str | None, after: int, limit: int
) -> list[UserPublic]:
    """Up to `limit` users in order of id, from the first id greater than `after`."""
    query = select(User, Profile.status).join(Profile).where(col(User.id) > after).order_by(col(User.id)).limit(limit)
    if status is not None:
        query = query.where(Profile.status == status)
    if username_prefix is not None:
        query = query.where(col(User.username).startswith(username_prefix, autoescape=True))
    return [show_user(*row) for row in await session.exec(query)]


# --- access tokens ----------------------------------------------------------------------------------------------------


async def authenticate(session: AsyncSession, token_hashes: Sequence[str]) -> list[UserPublic | Refusal]:
    """The user of each token. Refusals: Unauthenticated, UserNotActive."""
    rows = await session.exec(
        select(AccessToken, User, Profile.status)
        .join(User, col(AccessToken.user_id) == col(User.id))
        .join(Profile)
        .where(col(AccessToken.token_hash).in_(set(token_hashes)))
    )
    moment = now()
    owners = {token.token_hash: admit(token, show_user(user, status), moment) for token, user, status in rows}
    return [owners.get(token_hash) or Unauthenticated() for token_hash in token_hashes]


def admit(token: AccessToken, user: UserPublic, moment: datetime) -> UserPublic | Refusal:
    """The user whom this token lets in at this moment, or why not."""
    if token.revoked_at is not None or (token.expires_at is not None and token.expires_at <= moment):
        return Unauthenticated()
    return user if user.status == "active" else UserNotActive()


@dataclass(frozen=True, slots=True)
class TokenIssue:
    """A token to issue to a user."""

    user_id: int
    name: str | None
    expires_in_days: int | None


@isolating_failures
async def issue_tokens(session: AsyncSession, issues: Sequence[TokenIssue]) -> list[IssuedToken | Refusal]:
    """Issue the tokens; only the answer holds their secrets."""
    moment = now()
    secrets = [make_token() for _ in issues]
    tokens = [
        AccessToken(
            user_id=issue.user_id,
            name=issue.name,
            token_hash=hash_secret(secret),
            created_at=moment,
            expires_at=None if issue.expires_in_days is None else moment + timedelta(days=issue.expires_in_days),
        )
        for issue, secret in zip(issues, secrets, strict=True)
    ]
    async with begin(session):
        session.add_all(tokens)
        await session.flush()
        return [
            IssuedToken.model_construct(**show_token(token).model_dump(), access_token=secret)
            for token, secret in zip(tokens, secrets, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Revocation:
    """A token that its owner wants revoked."""

    user_id: int
    token_id: int


@isolating_failures
async def revoke_tokens(session: AsyncSession, revocations: Sequence[Revocation]) -> list[TokenPublic | Refusal]:
    """Revoke the tokens; one that is revoked stays as it is. Refusal: TokenNotFound, also for someone else's."""
    async with begin(session):
        # In id order, so that two batches that share tokens cannot deadlock.
        rows = await session.exec(
            select(AccessToken)
            .where(col(AccessToken.id).in_({revocation.token_id for revocation in revocations}))
            .order_by(col(AccessToken.id))
            .with_for_update()
        )
        found = {(token.user_id, token.id): token for token in rows}
        return [revoke(found.get((revocation.user_id, revocation.token_id))) for revocation in revocations]


def revoke(token: AccessToken | None) -> TokenPublic | Refusal:
    """Mark a locked token as revoked; the session writes it at COMMIT."""
    if token is None:
        return TokenNotFound()
    token.revoked_at = token.revoked_at or now()
    return show_token(token)


def show_token(token: AccessToken) -> TokenPublic:
    """The token as the API lists it."""
    return TokenPublic.model_construct(**token.model_dump(exclude={"user_id", "token_hash"}))


async def list_tokens(session: AsyncSession, *, user_id: int, after: int, limit: int) -> list[TokenPublic]:
    """Up to `limit` tokens of a user in order of id, from the first id greater than `after`."""
    rows = await session.exec(
        select(AccessToken)
        .where(AccessToken.user_id == user_id, col(AccessToken.id) > after)
        .order_by(col(AccessToken.id))
        .limit(limit)
    )
    return [show_token(token) for token in rows]


# --- statements -------------------------------------------------------------------------------------------------------


async def insert_rows(
    session: AsyncSession,
    model: type[SQLModel],
    rows: Sequence[dict[str, Any]],
    *,
    returning: tuple[str, ...] = (),
    **same: Any,
) -> Sequence[Any]:
    """Insert all rows (each with the same keys), with the values that are the `same` in all of them.

    With `returning`, rows whose unique values are taken are skipped, and these columns of the others are answered.
    """
    dialect = session.get_bind().dialect.name
    statement = insert_statement(dialect, model, tuple(rows[0]), tuple(same), returning)
    result = await session.exec(statement, params={"rows": rows, **{f"same_{name}": same[name] for name in same}})
    return result.all() if returning else ()


@cache
def insert_statement(
    dialect: str, model: type[SQLModel], names: tuple[str, ...], same: tuple[str, ...], returning: tuple[str, ...]
) -> Any:
    """INSERT … SELECT for insert_rows.

    The rows travel as one JSON parameter. So the statement is the same for any number of rows: it is built, compiled
    and prepared once, and no limit on the number of parameters applies.
    """
    elements = func.json_each if dialect == "sqlite" else func.json_array_elements
    row = elements(bindparam("rows", type_=JSON)).table_valued(column("value", JSON), name="item").c.value
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    texts = [row[name].as_string() for name in names]
    # A cast to String(n) would cut what is too long, where it has to fail.
    types = [table.c[name].type for name in names]
    values = [text if isinstance(type, String) else cast(text, type) for text, type in zip(texts, types, strict=True)]
    values += [bindparam(f"same_{name}", type_=table.c[name].type) for name in same]
    # Without a WHERE, SQLite would take ON CONFLICT for the beginning of a join.
    source = select(*values).where(true())
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    statement = insert.from_select([*names, *same], source)
    if not returning:
        return statement
    return statement.on_conflict_do_nothing().returning(*(table.c[name] for name in returning))
