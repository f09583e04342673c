"""Every transaction. Knows nothing of HTTP.

A function that writes takes a session on which nothing has begun and a list of items. It opens its transaction itself
and answers a list of outcomes in the order of the items: what is true now, or a Refusal. Refusals are values, so
nothing is rolled back for them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from db.isolation import Write, all_or_nothing, begin, isolating_failures
from db.prepared import execute
from db.statements import among, dialect_of, insert_rows, update_rows
from fields import Status
from ledger import CONTENT, OPERATOR, Holding, Ledger, Order, Posted, Posting, content_of
from models import (
    AccessToken,
    Account,
    AccountPublic,
    Entry,
    EntryPublic,
    IssuedToken,
    KeyedRegistration,
    Profile,
    Registration,
    TokenPublic,
    Transfer,
    TransferPublic,
    User,
    UserFields,
    UserPublic,
    now,
)
from queries import (
    account_statement,
    entries_statement,
    holdings_statement,
    imported_statement,
    inactive_statement,
    newest_entry_statement,
    postings_statement,
    token_statement,
    without_token_statement,
)
from refusals import (
    AccountExists,
    AccountNotFound,
    BalanceNotZero,
    Conflict,
    IdempotencyKeyReused,
    Locked,
    OperatorTransfer,
    ReceiverOnly,
    Refusal,
    ReversalNotReversible,
    SameAccount,
    TokenNotFound,
    TransferNotFound,
    Unauthenticated,
    UsernameTaken,
    UserNotActive,
    UserNotFound,
)
from tokens import hash_secret, make_token

Shown = TypeVar("Shown", bound=SQLModel)

REPLAY_WINDOW = timedelta(minutes=15)
"""How long the idempotency key of a registration answers again what it answered first."""


# --- registration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """A user who is registered, with a token that was issued just now."""

    user: UserPublic
    access_token: str
    replayed: bool


async def insert_registrations(
    session: AsyncSession, registrations: Sequence[KeyedRegistration], currency: str
) -> list[Registered | Refusal]:
    """Create each user with its profile, a first access token and an account; who is refused leaves nothing behind.

    A name asked for twice goes to the first. A key that came with the same content within REPLAY_WINDOW answers the
    same user again, with a fresh token. Refusals: UsernameTaken, IdempotencyKeyReused, UserNotActive (a replay).
    """
    if not registrations:
        return []
    moment = now()
    key_hashes = [hash_key(registration) for registration in registrations]
    content_hashes = [hash_content(registration) for registration in registrations]
    created = await insert_users(session, registrations, key_hashes, moment, content_hashes)
    await insert_profiles_and_accounts(session, (user.id for user in created.values()), currency)
    # After the insert: whoever was first has committed by now, so this sees the row that was in the way.
    lost = {key_hash for index, key_hash in enumerate(key_hashes) if key_hash and index not in created}
    earlier = await find_registrations(session, lost) if lost else {}
    judged = [
        created.get(index) or judge_repeated(registration, content_hash, earlier.get(key_hash), moment)
        for index, (registration, key_hash, content_hash) in enumerate(
            zip(registrations, key_hashes, content_hashes, strict=True)
        )
    ]
    secrets = await insert_first_tokens(session, judged, moment)
    return [
        outcome if isinstance(outcome, Refusal) else Registered(outcome, secrets[index], replayed=index not in created)
        for index, outcome in enumerate(judged)
    ]


def hash_content(registration: KeyedRegistration) -> str | None:
    """Return what tells one request from another under its key, whatever becomes of the user; it tells nothing alone.

    128 bits are enough: whoever knows the key could as well ask for another name.
    """
    if registration.idempotency_key is None:
        return None
    content = (registration.idempotency_key, registration.username, registration.email, registration.phone_number)
    return hash_secret("\n".join(map(str, content)))[:32]


def hash_key(registration: KeyedRegistration) -> str | None:
    """The only form in which a registration's key is kept, since it is worth a token for a while."""
    return None if registration.idempotency_key is None else hash_secret(str(registration.idempotency_key))


async def insert_users(
    session: AsyncSession,
    registrations: Sequence[Registration],
    key_hashes: Sequence[str | None],
    moment: datetime,
    content_hashes: Sequence[str | None],
) -> dict[int, UserPublic]:
    """Insert the users whose name and key are free; answer them by their index in `registrations`."""
    rows = [
        {
            "username": registration.username,
            "email": registration.email,
            "phone_number": registration.phone_number,
            "registration_key_hash": key_hash,
            "registration_content_hash": content_hash,
        }
        for registration, key_hash, content_hash in zip(registrations, key_hashes, content_hashes, strict=True)
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


async def insert_profiles_and_accounts(session: AsyncSession, user_ids: Iterable[int], currency: str) -> None:
    """Insert the profile of each new user, and its account in the default currency."""
    rows = [{"user_id": user_id} for user_id in user_ids]
    if rows:
        await insert_rows(session, Profile, rows, status="active")
        await insert_rows(session, Account, rows, currency=currency)


async def find_registrations(
    session: AsyncSession, key_hashes: Iterable[str]
) -> dict[str | None, tuple[UserPublic, str | None]]:
    """The users who registered with these keys, and the hashes of what they sent, by key.

    They are locked, so that none is closed before its token is stored.
    """
    rows = await session.exec(
        select(User, Profile.status)
        .join(Profile)
        .where(col(User.registration_key_hash).in_(key_hashes))
        .order_by(col(User.id))
        .with_for_update(read=True)
    )
    return {
        user.registration_key_hash: (show_user(user, status), user.registration_content_hash) for user, status in rows
    }


def judge_repeated(
    registration: KeyedRegistration,
    content_hash: str | None,
    earlier: tuple[UserPublic, str | None] | None,
    moment: datetime,
) -> UserPublic | Refusal:
    """Answer a registration that found its name or key in use; `earlier` is who registered with the same key, if any.

    The user may have changed since, so it is the request that must be the same; where older code stored the user
    without its hash, what the user is now.
    """
    if earlier is None:
        return UsernameTaken()
    user, hash_then = earlier
    if hash_then is None:
        is_same = all(getattr(user, name) == getattr(registration, name) for name in UserFields.model_fields)
    else:
        is_same = hash_then == content_hash
    if not is_same:
        return IdempotencyKeyReused()
    if moment - user.created_at > REPLAY_WINDOW:
        return UsernameTaken()
    # The key proves who asks, so it may know that the user was suspended or closed since.
    return user if user.status == "active" else UserNotActive()


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


@isolating_failures
async def register_users(
    session: AsyncSession, registrations: Sequence[KeyedRegistration], currency: str
) -> list[Registered | Refusal]:
    """Register each user whose name is free, as insert_registrations says."""
    async with begin(session):
        return await insert_registrations(session, registrations, currency)


register_all_users = all_or_nothing(insert_registrations)


# --- import -----------------------------------------------------------------------------------------------------------

KeepTokens = Callable[[Sequence[tuple[str, str]]], None]
"""Keeps the secret of each username where it outlives this process."""


@isolating_failures
async def import_users(
    session: AsyncSession, registrations: Sequence[Registration], currency: str, keep_tokens: KeepTokens | None
) -> list[bool | Refusal]:
    """Register each user whose name is free, and who was not imported before: True, or False where it was.

    The same registration imported again, in this call or years later, finds its key in the database. So an import can
    be repeated from any point, whatever became of the one before. Only where `keep_tokens` takes them, before COMMIT,
    since one that was not kept would be lost, tokens are issued: to these users, as far as they are active and have
    never had one. Refusals: UsernameTaken, by any other user.
    """
    if not registrations:
        return []
    keys = [hash_import(registration) for registration in registrations]
    async with begin(session):
        moment = now()
        # Their keys are the hashes of their content.
        created = await insert_users(session, registrations, keys, moment, [None] * len(keys))
        await insert_profiles_and_accounts(session, (user.id for user in created.values()), currency)
        new = {keys[index] for index in created}
        before = await find_imported(session, keys) if len(new) < len(keys) else new
        if keep_tokens:
            owners = [(user.id, user.username) for user in created.values()]
            if len(new) < len(before):
                owners = await find_without_token(session, keys)
            secrets = [(id, username, make_token()) for id, username in owners]
            tokens = [{"user_id": id, "token_hash": hash_secret(secret)} for id, _, secret in secrets]
            if tokens:
                await insert_rows(session, AccessToken, tokens, created_at=moment)
                keep_tokens([(username, secret) for _, username, secret in secrets])
    outcomes: list[bool | Refusal] = []
    for key in keys:
        outcomes.append(key in new if key in before else UsernameTaken())
        new.discard(key)
    return outcomes


def hash_import(registration: Registration) -> str:
    """The key of an imported registration: its content, so that it needs no file, line or checkpoint to be known.

    No registration over HTTP can have it: theirs are twice as long. 128 bits are enough to tell users apart, and the
    index, which grows at random places, is what a large import writes most.
    """
    return hash_secret(f"import\n{registration.username}\n{registration.email}\n{registration.phone_number}")[:32]


async def find_imported(session: AsyncSession, keys: Sequence[str]) -> set[str | None]:
    """Those of the keys with which somebody registered."""
    return {key for (key,) in await execute(session, imported_statement(dialect_of(session)), keys=keys)}


async def find_without_token(session: AsyncSession, keys: Sequence[str]) -> list[tuple[int, str]]:
    """Id and name of the active users with these keys who have never had a token."""
    rows = await execute(session, without_token_statement(dialect_of(session)), keys=keys)
    return [(id, username) for id, username in rows]


# --- users ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserChange:
    """New values for some fields of a user: email and phone_number, or status; by the user itself or the operator."""

    user_id: int
    fields: dict[str, Any]
    by_operator: bool = False


@isolating_failures
async def update_users(session: AsyncSession, changes: Sequence[UserChange]) -> list[UserPublic | Refusal]:
    """Apply the changes in order.

    Closing a user revokes its tokens, for good; suspending revokes none. Refusals: UserNotFound, and where the change
    is the user's own, UserNotActive and BalanceNotZero (to close).
    """
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
        holders = await lock_holders(session, {change.user_id for change in changes if "status" in change.fields})
        outcomes = [update_user(change, holders, *found.get(change.user_id, (None, None))) for change in changes]
        closed = {
            outcome.id
            for change, outcome in zip(changes, outcomes, strict=True)
            if isinstance(outcome, UserPublic) and change.fields.get("status") == "closed"
        }
        if closed:
            await revoke_all_tokens(session, closed)
        return outcomes


async def lock_holders(session: AsyncSession, user_ids: set[int]) -> set[int | None]:
    """Lock all accounts of these users; answer those users who hold money.

    A transfer looks at the status after it has locked its accounts. So none that saw the old status ends after this.
    """
    if not user_ids:
        return set()
    accounts = await session.exec(
        select(Account.user_id, Account.balance)
        .where(col(Account.user_id).in_(user_ids))
        .order_by(col(Account.id))
        .with_for_update()
    )
    return {user_id for user_id, balance in accounts if balance != 0}


def update_user(
    change: UserChange, holders: Collection[int | None], user: User | None, profile: Profile | None
) -> UserPublic | Refusal:
    """Apply one change to the locked rows of its user; the session writes them at COMMIT."""
    if user is None or profile is None:
        return UserNotFound()
    if profile.status != "active" and not change.by_operator:
        return UserNotActive()
    if change.fields.get("status") == "closed" and user.id in holders and not change.by_operator:
        return BalanceNotZero()
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
    rows = await execute(session, token_statement(dialect_of(session)), hashes=[*set(token_hashes)])
    moment = now()
    owners = {row[0]: admit(row, moment) for row in rows}
    return [owners.get(token_hash) or Unauthenticated() for token_hash in token_hashes]


def admit(row: Sequence[Any], moment: datetime) -> UserPublic | Refusal:
    """The user whom this token lets in at this moment, or why not."""
    _, revoked_at, expires_at, *values = row
    user = construct(UserPublic, values)
    # That the user was closed says more than that its tokens were revoked with it.
    if user.status != "closed" and (revoked_at is not None or (expires_at is not None and expires_at <= moment)):
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
    """Issue the tokens; only the answer holds their secrets. Refusals: UserNotFound, UserNotActive."""
    moment = now()
    async with begin(session):
        statuses = await lock_statuses(session, {issue.user_id for issue in issues})
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
        session.add_all(token for token in tokens if statuses.get(token.user_id) == "active")
        await session.flush()
        return [show_issued(token, secret, statuses) for token, secret in zip(tokens, secrets, strict=True)]


async def lock_statuses(session: AsyncSession, user_ids: set[int]) -> dict[int, str]:
    """The status of each of these users, which stays what it is until this transaction ends."""
    rows = await session.exec(
        select(Profile.user_id, Profile.status)
        # The users' rows, too, and in id order: as update_users locks them, so that the two cannot deadlock.
        .join(User)
        .where(col(Profile.user_id).in_(user_ids))
        .order_by(col(User.id))
        .with_for_update(read=True)
    )
    return dict(rows.all())


def show_issued(token: AccessToken, secret: str, statuses: Mapping[int, str]) -> IssuedToken | Refusal:
    """The token that was stored, with its secret, or why it was not."""
    if token.user_id not in statuses:
        return UserNotFound()
    if statuses[token.user_id] != "active":
        return UserNotActive()
    return IssuedToken.model_construct(**show_token(token).model_dump(), access_token=secret)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A token to revoke."""

    user_id: int
    token_id: int


@isolating_failures
async def revoke_tokens(session: AsyncSession, revocations: Sequence[Revocation]) -> list[TokenPublic | Refusal]:
    """Revoke the tokens; one that is revoked stays as it is.

    Refusals: UserNotFound, and TokenNotFound, also where the token is another user's.
    """
    async with begin(session):
        # In id order, so that two batches that share tokens cannot deadlock.
        rows = await session.exec(
            select(AccessToken)
            .where(
                # Nobody waits, or makes others wait, for a token that is not the user's.
                sa.tuple_(col(AccessToken.user_id), col(AccessToken.id)).in_(
                    {(revocation.user_id, revocation.token_id) for revocation in revocations}
                )
            )
            .order_by(col(AccessToken.id))
            .with_for_update()
        )
        found = {(token.user_id, token.id): token for token in rows}
        there = await find_users(session, {revocation.user_id for revocation in revocations})
        return [
            revoke(found.get((revocation.user_id, revocation.token_id)))
            if revocation.user_id in there
            else UserNotFound()
            for revocation in revocations
        ]


@isolating_failures
async def revoke_users_tokens(session: AsyncSession, user_ids: Sequence[int]) -> list[Refusal | None]:
    """Revoke all tokens of these users. Refusal: UserNotFound."""
    async with begin(session):
        there = await find_users(session, set(user_ids))
        await revoke_all_tokens(session, there)
        return [None if user_id in there else UserNotFound() for user_id in user_ids]


async def find_users(session: AsyncSession, user_ids: set[int]) -> set[int | None]:
    """Those of these ids that users have."""
    return {*await session.exec(select(User.id).where(col(User.id).in_(user_ids)))}


async def revoke_all_tokens(session: AsyncSession, user_ids: Collection[int | None]) -> None:
    """Revoke the tokens of these users that are not revoked."""
    # Locked in id order, as in revoke_tokens.
    tokens = await session.exec(
        select(AccessToken)
        .where(col(AccessToken.user_id).in_(user_ids), col(AccessToken.revoked_at).is_(None))
        .order_by(col(AccessToken.id))
        .with_for_update()
    )
    for token in tokens:
        revoke(token)


def revoke(token: AccessToken | None) -> TokenPublic | Refusal:
    """Mark a locked token as revoked; the session writes it at COMMIT."""
    if token is None:
        return TokenNotFound()
    token.revoked_at = token.revoked_at or now()
    return show_token(token)


def show_token(token: AccessToken) -> TokenPublic:
    """The token as the API lists it."""
    return TokenPublic.model_construct(**token.model_dump(exclude={"user_id", "token_hash"}))


async def list_users_tokens(session: AsyncSession, *, user_id: int, after: int, limit: int) -> list[TokenPublic]:
    """As list_tokens. Raises UserNotFound."""
    await get_user(session, user_id)
    return await list_tokens(session, user_id=user_id, after=after, limit=limit)


async def list_tokens(session: AsyncSession, *, user_id: int, after: int, limit: int) -> list[TokenPublic]:
    """Up to `limit` tokens of a user in order of id, from the first id greater than `after`."""
    rows = await session.exec(
        select(AccessToken)
        .where(AccessToken.user_id == user_id, col(AccessToken.id) > after)
        .order_by(col(AccessToken.id))
        .limit(limit)
    )
    return [show_token(token) for token in rows]


# --- accounts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AccountOpening:
    """An account that a user wants to open."""

    user_id: int
    currency: str


@isolating_failures
async def open_accounts(session: AsyncSession, openings: Sequence[AccountOpening]) -> list[AccountPublic | Refusal]:
    """Open the accounts. Refusal: AccountExists, where the user has one in this currency."""
    rows = [{"user_id": opening.user_id, "currency": opening.currency} for opening in openings]
    async with begin(session):
        # In one order, so that two batches that open the same accounts cannot deadlock.
        rows.sort(key=lambda row: (row["user_id"], row["currency"]))
        inserted = await insert_rows(session, Account, rows, returning=("id", "user_id", "currency"))
    ids = {(user_id, currency): id for id, user_id, currency in inserted}
    # Of several alike, the first one opened it.
    opened = [ids.pop((opening.user_id, opening.currency), None) for opening in openings]
    return [
        AccountExists()
        if id is None
        else AccountPublic.model_construct(id=id, user_id=opening.user_id, currency=opening.currency)
        for id, opening in zip(opened, openings, strict=True)
    ]


async def list_accounts(session: AsyncSession, *, user_id: int | None, after: int, limit: int) -> list[AccountPublic]:
    """Up to `limit` accounts in order of id, of one user or all, from the first id greater than `after`."""
    query = select(Account).where(col(Account.id) > after).order_by(col(Account.id)).limit(limit)
    if user_id is not None:
        query = query.where(Account.user_id == user_id)
    return [
        AccountPublic.model_construct(**account.model_dump(exclude={"updated_at"}))
        for account in await session.exec(query)
    ]


async def get_account(session: AsyncSession, id: int, caller: int) -> AccountPublic:
    """The account as it is now. Raises AccountNotFound, also where it is neither the caller's nor the operator asks."""
    for row in await execute(session, account_statement(dialect_of(session)), id=id):
        account = construct(AccountPublic, row)
        if caller in (OPERATOR, account.user_id):
            return account
    raise AccountNotFound


async def get_account_at(session: AsyncSession, id: int, caller: int, at: datetime) -> AccountPublic:
    """The account as it was at an instant. Raises AccountNotFound as get_account does."""
    account = await get_account(session, id, caller)
    account.balance, account.version = 0, 0
    for row in await execute(session, newest_entry_statement(dialect_of(session)), id=id, at=at):
        account.balance, account.version = row
    return account


def construct(model: type[Shown], row: Sequence[Any]) -> Shown:
    """What the API shows of a row that has the model's fields in their order; they were validated when they came in."""
    return model.model_construct(**dict(zip(model.model_fields, row, strict=True)))


async def list_entries(session: AsyncSession, id: int, caller: int, *, before: int, limit: int) -> list[EntryPublic]:
    """Up to `limit` entries of an account, newest first, from the first seq less than `before`.

    Raises AccountNotFound as get_account does.
    """
    await get_account(session, id, caller)
    statement = entries_statement(dialect_of(session))
    rows = await execute(session, statement, id=id, before=before, limit=limit)
    return [construct(EntryPublic, row) for row in rows]


# --- transfers --------------------------------------------------------------------------------------------------------


async def post_orders(
    session: AsyncSession, orders: Sequence[Order | Refusal], *, wait: bool = True
) -> list[Posted | Refusal]:
    """Make the transfers in order, each as if it came alone: one may spend what another before it brought.

    A key that its caller used before, here or earlier, answers what it did then. What is refused already stays so.
    Where another transaction holds an account for long, Locked is raised; without `wait`, it is at once the outcome of
    the orders that need this account. Other refusals: AccountNotFound, SameAccount, AccountNotActive, AlreadyReversed,
    InsufficientFunds, CurrencyMismatch, BalanceLimit, IdempotencyKeyReused.
    """
    ledger = await open_ledger(session, [order for order in orders if isinstance(order, Order)], wait=wait)
    outcomes = [order if isinstance(order, Refusal) else ledger.post(order) for order in orders]
    if wait and ledger.locked and any(isinstance(outcome, Locked) for outcome in outcomes):
        raise Locked
    if ledger.postings:
        await store_postings(session, ledger)
    return outcomes


async def open_ledger(session: AsyncSession, orders: Sequence[Order], *, wait: bool) -> Ledger:
    """Lock the accounts, then read what the transfers depend on."""
    holdings, locked = await lock_holdings(session, orders, wait=wait)
    funded = find_funded(orders, holdings, locked)
    if funded:
        # The operator's orders are locked whatever their debit accounts hold. To wait now could deadlock.
        more, more_locked = await lock_holdings(
            session, [replace(order, initiator=OPERATOR) for order in funded], wait=False
        )
        holdings, locked = holdings | more, locked | more_locked
    # After the locks: whoever held them has committed by now, so this sees what it wrote.
    return Ledger(
        holdings.values(),
        await find_inactive(session, {each.user_id for each in holdings.values() if each.user_id is not None}),
        await find_postings(session, [order for order in orders if order.idempotency_key is not None]),
        await find_reversed(session, [order.reverses_id for order in orders if order.reverses_id is not None]),
        locked,
    )


async def lock_holdings(
    session: AsyncSession, orders: Sequence[Order], *, wait: bool
) -> tuple[dict[int, Holding], Set[int]]:
    """Lock the accounts of these orders, by id; without `wait`, name those that other transactions hold.

    Of a user's order, the debit account is locked where it is the user's, and then the credit account where the debit
    account holds enough for it and the orders before it: nobody makes others wait who has nothing to send. Raises
    Locked.
    """
    parameters = {
        "debits": [order.debit_account_id for order in orders],
        "credits": [order.credit_account_id for order in orders],
        "callers": [order.initiator for order in orders],
        "amounts": [order.amount for order in orders],
    }
    dialect = dialect_of(session)
    rows = await execute(session, holdings_statement(dialect, "wait" if wait else "skip"), **parameters)
    holdings = {row[0]: Holding(*row) for row in rows}
    if wait:
        return holdings, frozenset()
    there = await execute(session, holdings_statement(dialect, "read"), **parameters)
    return holdings, {id for id, *_ in there} - holdings.keys()


def find_funded(orders: Sequence[Order], holdings: Mapping[int, Holding], locked: Set[int]) -> list[Order]:
    """Return the orders that can be paid, though their credit accounts were not locked.

    An order before them brings the money, or it came while the locks were waited for.
    """
    if all(order.credit_account_id in holdings for order in orders):
        return []
    most = {id: holding.balance for id, holding in holdings.items()}
    funded = []
    for order in orders:
        debit = holdings.get(order.debit_account_id)
        if debit is None or order.initiator not in (OPERATOR, debit.user_id):
            continue
        if debit.user_id is None or most[debit.id] >= order.amount:
            most[order.credit_account_id] = most.get(order.credit_account_id, 0) + order.amount
            if order.credit_account_id not in holdings and order.credit_account_id not in locked:
                funded.append(order)
    return funded


async def find_inactive(session: AsyncSession, user_ids: Collection[int]) -> set[int]:
    """Those of these users who are suspended or closed."""
    rows = await execute(session, inactive_statement(dialect_of(session)), ids=sorted(user_ids))
    return {user_id for (user_id,) in rows}


async def find_postings(session: AsyncSession, orders: Sequence[Order]) -> list[Posting]:
    """What the callers of these orders did under the same keys before."""
    if not orders:
        return []
    keys = sorted({order.idempotency_key for order in orders if order.idempotency_key is not None})
    callers = sorted({order.initiator for order in orders})
    rows = await execute(session, postings_statement(dialect_of(session)), callers=callers, keys=keys)
    return [read_posting(*row) for row in rows]


def read_posting(
    id: int, currency: str, created_at: datetime, debit_balance_after: int, credit_balance_after: int, *content: Any
) -> Posting:
    """A transfer that was stored, as the ledger knows it."""
    return Posting(Order(*content), currency, debit_balance_after, credit_balance_after, created_at, id=id)


async def find_reversed(session: AsyncSession, transfer_ids: Collection[int]) -> list[int | None]:
    """Those of these transfers that were reversed."""
    if not transfer_ids:
        return []
    statement = select(Transfer.reverses_id).where(among(dialect_of(session), col(Transfer.reverses_id), "ids"))
    return [*await session.exec(statement, params={"ids": sorted(transfer_ids)})]


async def store_postings(session: AsyncSession, ledger: Ledger) -> None:
    """Write balances, transfers and entries, with one statement each; give each posting its id."""
    await insert_transfers(session, ledger)
    entries = []
    for posting in ledger.postings:
        order = posting.order
        sides = (
            (order.debit_account_id, posting.debit_seq, -order.amount, posting.debit_balance_after),
            (order.credit_account_id, posting.credit_seq, order.amount, posting.credit_balance_after),
        )
        for account_id, seq, amount, balance_after in sides:
            entries.append(
                {
                    "account_id": account_id,
                    "seq": seq,
                    "transfer_id": posting.id,
                    "amount": amount,
                    "balance_after": balance_after,
                }
            )
    await insert_rows(session, Entry, entries, created_at=ledger.moment)
    # Last: while an account is still the row that was locked, foreign keys that refer to it need no lock of their own.
    await update_rows(
        session,
        Account,
        [{"id": each.id, "balance": each.balance, "version": each.version} for each in ledger.changed],
        updated_at=ledger.moment,
    )


async def insert_transfers(session: AsyncSession, ledger: Ledger) -> None:
    """Insert the transfers, and give each posting the id of its own."""
    rows = [
        {**dict(zip(CONTENT, content_of(posting.order), strict=True)), "currency": posting.currency}
        for posting in ledger.postings
    ]
    inserted = await insert_rows(session, Transfer, rows, returning=("id", *CONTENT), created_at=ledger.moment)
    if len(inserted) < len(rows):
        # Another transaction used one of the keys with other accounts, just now. Run again, this one sees it.
        raise Conflict
    ids: dict[tuple[Any, ...], list[int]] = {}
    for id, *content in sorted(inserted, key=itemgetter(0), reverse=True):
        ids.setdefault(tuple(content), []).append(id)
    for posting in ledger.postings:
        posting.id = ids[content_of(posting.order)].pop()


@isolating_failures
async def make_transfers(
    session: AsyncSession, orders: Sequence[Order], *, wait: bool = True
) -> list[Posted | Refusal]:
    """Make each transfer that is not refused, as post_orders says."""
    async with begin(session):
        return await post_orders(session, orders, wait=wait)


make_all_transfers: Write[Order, [], Posted] = all_or_nothing(post_orders)


async def get_transfer(session: AsyncSession, id: int, caller: int) -> TransferPublic:
    """The transfer. Raises TransferNotFound, also where the caller is no party to it."""
    found = (await find_transfers(session, [id])).get(id)
    if found is None or caller not in (OPERATOR, found.sender, found.receiver):
        raise TransferNotFound
    return TransferPublic.model_construct(**found.transfer.model_dump(exclude={"initiator", "idempotency_key"}))


@dataclass(frozen=True, slots=True)
class FoundTransfer:
    """A transfer and its parties: the users of the debit and of the credit account, None for a system account."""

    transfer: Transfer
    sender: int | None
    receiver: int | None


async def find_transfers(session: AsyncSession, ids: Collection[int]) -> dict[int | None, FoundTransfer]:
    """The transfers with these ids."""
    debit, credit = aliased(Account), aliased(Account)
    rows = await session.exec(
        select(Transfer, debit.user_id, credit.user_id)
        .join(debit, col(debit.id) == Transfer.debit_account_id)
        .join(credit, col(credit.id) == Transfer.credit_account_id)
        .where(col(Transfer.id).in_(ids))
    )
    return {transfer.id: FoundTransfer(transfer, sender, receiver) for transfer, sender, receiver in rows}


@dataclass(frozen=True, slots=True)
class Reversal:
    """A transfer whose money its recipient, or the operator, wants to send back."""

    transfer_id: int
    caller: int
    idempotency_key: str | None = None


@isolating_failures
async def reverse_transfers(
    session: AsyncSession, reversals: Sequence[Reversal], *, wait: bool = True
) -> list[Posted | Refusal]:
    """Send the money of each transfer back, once.

    Refusals: TransferNotFound, ReceiverOnly, OperatorTransfer, ReversalNotReversible, and those of post_orders.
    """
    async with begin(session):
        found = await find_transfers(session, {reversal.transfer_id for reversal in reversals})
        orders = [reverse(each, found.get(each.transfer_id)) for each in reversals]
        return await post_orders(session, orders, wait=wait)


def reverse(reversal: Reversal, found: FoundTransfer | None) -> Order | Refusal:
    """The transfer that sends the money back, or why this caller cannot have it."""
    if found is None or reversal.caller not in (OPERATOR, found.sender, found.receiver):
        return TransferNotFound()
    if reversal.caller not in (OPERATOR, found.receiver):
        return ReceiverOnly()
    transfer = found.transfer
    # Deposits above all: a user who sent one back would take money out, past the operator's own books.
    if transfer.initiator == OPERATOR and reversal.caller != OPERATOR:
        return OperatorTransfer()
    if transfer.reverses_id is not None:
        return ReversalNotReversible()
    return Order(
        initiator=reversal.caller,
        debit_account_id=transfer.credit_account_id,
        credit_account_id=transfer.debit_account_id,
        amount=transfer.amount,
        idempotency_key=reversal.idempotency_key,
        reverses_id=transfer.id,
    )


@dataclass(frozen=True, slots=True)
class Payment:
    """Money that comes to an account from outside, or with is_payout leaves it, as the operator says."""

    account_id: int
    amount: int
    memo: str | None
    idempotency_key: str | None
    is_payout: bool


@isolating_failures
async def make_payments(
    session: AsyncSession, payments: Sequence[Payment], *, wait: bool = True
) -> list[Posted | Refusal]:
    """Transfer each amount from or to the system account of its currency. Refusals: as post_orders."""
    async with begin(session):
        system = await find_system_accounts(session, {payment.account_id for payment in payments})
        orders = [order_payment(each, system.get(each.account_id)) for each in payments]
        return await post_orders(session, orders, wait=wait)


def order_payment(payment: Payment, system_account_id: int | None) -> Order | Refusal:
    """The transfer that a payment is."""
    if system_account_id is None:
        return AccountNotFound()
    if system_account_id == payment.account_id:
        return SameAccount("account_id")
    debit, credit = system_account_id, payment.account_id
    if payment.is_payout:
        debit, credit = credit, debit
    return Order(OPERATOR, debit, credit, payment.amount, payment.memo, payment.idempotency_key)


async def find_system_accounts(session: AsyncSession, account_ids: Collection[int]) -> dict[int, int]:
    """The id of the system account in the currency of each account; one that is missing is opened."""
    system = aliased(Account)
    query = (
        select(Account.id, Account.currency, system.id)
        .outerjoin(system, (col(system.currency) == Account.currency) & col(system.user_id).is_(None))
        .where(col(Account.id).in_(account_ids))
    )
    found = (await session.exec(query)).all()
    missing = sorted({currency for _, currency, system_id in found if system_id is None})
    if missing:
        # In order of currency, against deadlocks. Where another transaction was first, its account is found then.
        await insert_rows(session, Account, [{"currency": each} for each in missing], returning=("id",))
        found = (await session.exec(query)).all()
    return {id: system_id for id, _, system_id in found if id is not None and system_id is not None}
