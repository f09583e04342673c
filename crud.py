"""Every transaction. Knows nothing of HTTP.

A function that writes takes a session without a transaction and a list of items. It opens the transaction itself and
returns a list of outcomes in the order of the items: what is stored now, or a Refusal. Refusals are values, so nothing
is rolled back for them.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

import queries
from db.isolation import Write, all_or_nothing, begin, isolating_failures
from db.prepared import Prepared
from db.statements import dialect_of, insert_free, insert_rows, update_rows, write_rows
from db.trips import Call, Rows, call, execute, execute_together
from fields import ActionName, HoldStatus, KeyScope, Status
from ledger import (
    BALANCE_MAX,
    CONTENT,
    OPERATOR,
    PLAIN,
    Actor,
    AnyOrder,
    Holding,
    HoldOrder,
    HoldPosting,
    Ledger,
    LinkedOrders,
    LinkedPostings,
    Order,
    Posted,
    Posting,
    VoidOrder,
    content_of,
)
from models import (
    AccessToken,
    Account,
    AccountPublic,
    Entry,
    Event,
    Hold,
    HoldPublic,
    IssuedKey,
    IssuedToken,
    KeyedRegistration,
    KeyPublic,
    OperatorKey,
    Profile,
    Registration,
    TokenPublic,
    Transaction,
    Transfer,
    TransferPublic,
    User,
    UserFields,
    UserPublic,
    UserRecord,
    now,
)
from recording import (
    ACTION_OF_STATUS,
    EVENT_OF_STATUS,
    SUBJECTS_TOGETHER,
    Log,
    action,
    event,
    events_of,
    record,
    tell,
    tells,
)
from refusals import (
    AccountExists,
    AccountLimit,
    AccountNotFound,
    BalanceNotZero,
    CreditInUse,
    HoldNotFound,
    IdempotencyKeyReused,
    KeyExceeded,
    KeyNameTaken,
    KeyNotFound,
    Locked,
    OperatorTransfer,
    ReceiverOnly,
    ReferenceTaken,
    Refusal,
    ReversalNotReversible,
    SameAccount,
    SystemAccount,
    TokenNotFound,
    TransferNotFound,
    Unauthenticated,
    UserErased,
    UsernameTaken,
    UserNotActive,
    UserNotClosed,
    UserNotFound,
)
from tokens import hash_secret, make_operator_key, make_token

Shown = TypeVar("Shown", bound=SQLModel)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a list: the items as a JSON array, and the position of the last one if there are more."""

    items: str
    last: int | None


USER_FIELDS = tuple(UserFields.model_fields)
INSERTED = (*USER_FIELDS, "registration_key_hash", "registration_content_hash")
_values_of: Callable[[UserFields], tuple[Any, ...]] = attrgetter(*USER_FIELDS)

PART = 500
"""Items of a large batch that are worked on at a time."""

UNDESCRIBED = (None,) * len((*CONTENT[PLAIN:], "transaction_id", "operator_key_id"))
"""The values of the columns that most transfers leave out."""

LOOKED = 10_000
"""Transfers, or holds, that a page of their list looks at, at most, whatever the filters."""

CLOCKS = timedelta(minutes=1)
"""How far the clocks of servers may differ."""

EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC) + CLOCKS, datetime.max.replace(tzinfo=UTC) - CLOCKS

ACCOUNT_LIMIT = 100
"""Accounts that a user can have."""

REPLAY_WINDOW = timedelta(minutes=15)
"""How long a registration can be replayed with its idempotency key."""


# --- what the operator did --------------------------------------------------------------------------------------------


async def list_actions(session: AsyncSession, filters: Mapping[str, Any], *, after: int, limit: int) -> Part:
    """Return up to `limit` actions (ActionPublic), newest first, from the first id less than `after`.

    The filters, which are values by name, are action, request_id, and key_id, user_id, account_id and transfer_id; None
    is no filter. Where a part would need more than LOOKED actions, it is short.
    """
    values = {name: value for name, value in filters.items() if value is not None}
    query = queries.select_actions(dialect_of(session), tuple(sorted(values)))
    return await read_part(session, query, after=after, limit=limit, looked=LOOKED, **values)


@dataclass(frozen=True, slots=True)
class Named:
    """What actions name by id: the names of keys, the currencies of accounts, amount and currency of transfers."""

    keys: Mapping[int, str]
    currencies: Mapping[int, str]
    amounts: Mapping[int, tuple[int, str]]


async def find_named(session: AsyncSession, key_ids: set[int], account_ids: set[int], transfer_ids: set[int]) -> Named:
    """Return what these keys, accounts and transfers are; those that are not there are left out."""
    keys = select(OperatorKey.id, OperatorKey.name).where(col(OperatorKey.id).in_(key_ids))
    accounts = select(Account.id, Account.currency).where(col(Account.id).in_(account_ids))
    transfers = select(Transfer.id, Transfer.amount, Transfer.currency).where(col(Transfer.id).in_(transfer_ids))
    return Named(
        {id or 0: name for id, name in await session.exec(keys)},
        {id or 0: currency for id, currency in await session.exec(accounts)},
        {id or 0: (amount, currency) for id, amount, currency in await session.exec(transfers)},
    )


# --- registration -----------------------------------------------------------------------------------------------------


class OperatorRegistration(KeyedRegistration):
    """A registration that the operator makes."""

    actor: Actor


def with_actor(registration: KeyedRegistration, actor: Actor | None) -> KeyedRegistration:
    """Return the registration as this operator makes it, or as it is."""
    if actor is None:
        return registration
    return OperatorRegistration.model_construct(**registration.__dict__, actor=actor)


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered user, with a token that was just issued."""

    user: UserPublic
    access_token: str
    replayed: bool


async def insert_registrations(
    session: AsyncSession, registrations: Sequence[KeyedRegistration], currency: str
) -> list[Registered | Refusal]:
    """Create each user with a profile, an account and a first access token; for a refused one, nothing is stored.

    Of two registrations with the same name, the first gets it. A key that was used with the same content within
    REPLAY_WINDOW returns the same user, with a fresh token. Refusals: UsernameTaken, IdempotencyKeyReused,
    UserNotActive (a replay).
    """
    if not registrations:
        return []
    moment = now()
    outcomes: dict[int, Registered | Refusal] = {}
    # In order of name, so that two batches that share names cannot deadlock. Sorting keeps the order of equals.
    async for part in _in_parts(sorted(range(len(registrations)), key=lambda index: registrations[index].username)):
        found = await _insert_part(session, [registrations[index] for index in part], currency, moment)
        outcomes |= zip(part, found, strict=True)
    return [outcomes[index] for index in range(len(registrations))]


async def _insert_part(
    session: AsyncSession, registrations: Sequence[KeyedRegistration], currency: str, moment: datetime
) -> list[Registered | Refusal]:
    hashes = [_hash_key(registration) for registration in registrations]
    ids = await _insert_users(session, registrations, hashes, currency, moment)
    created = {
        index: show(UserPublic, registrations[index], id=id, status="active", created_at=moment)
        for index, id in ids.items()
    }
    # After the insert: the transaction that took a name or key has committed by now, so its row is visible.
    lost = {key_hash for index, (key_hash, _) in enumerate(hashes) if key_hash and index not in created}
    earlier = await _find_registrations(session, lost) if lost else {}
    judged = [
        created.get(index) or _judge_repeated(registration, content_hash, earlier.get(key_hash), moment)
        for index, (registration, (key_hash, content_hash)) in enumerate(zip(registrations, hashes, strict=True))
    ]
    issued = _insert_tokens(session, [each.id for each in judged if isinstance(each, UserPublic)], moment)
    _tell_registrations(session, [*ids.values()], issued, moment)
    secrets = iter(issued)
    by_operator = [
        # A replay issues another token.
        action(registration.actor, "user.register" if index in created else "token.issue", user.id)
        for index, (registration, user) in enumerate(zip(registrations, judged, strict=True))
        if isinstance(registration, OperatorRegistration) and isinstance(user, UserPublic)
    ]
    record(session, by_operator, moment)
    return [
        each if isinstance(each, Refusal) else Registered(each, next(secrets), replayed=index not in created)
        for index, each in enumerate(judged)
    ]


def _hash_key(registration: KeyedRegistration) -> tuple[str | None, str | None]:
    """Return the hash of the idempotency key, and that of the key with the content; None without a key.

    Only hashes are stored, since a key can be exchanged for a token for a while.
    """
    key = registration.idempotency_key
    if key is None:
        return None, None
    return hash_secret(str(key)), _hash_fields(key, registration)


def _hash_fields(key: object, registration: Registration) -> str:
    """Return what a repeated registration has in common with the first; a field that is added later changes it."""
    # 128 bits are enough: only a caller who knows the key could make use of a collision.
    return hash_secret("\n".join(map(str, (key, *_values_of(registration)))))[:32]


async def _insert_users(
    session: AsyncSession,
    registrations: Sequence[Registration],
    hashes: Sequence[tuple[str | None, str | None]],
    currency: str,
    moment: datetime,
) -> dict[int, int]:
    """Insert the users whose name and key are free, each with a profile and an account; return their ids by index.

    `hashes` are those of the key and of the content of each registration.
    """
    rows = [
        dict(zip(INSERTED, (*_values_of(registration), *pair), strict=True))
        for registration, pair in zip(registrations, hashes, strict=True)
    ]
    # In order of name, so that two batches that share names cannot deadlock. Sorting keeps the order of equals.
    inserted = await insert_free(
        session,
        User,
        sorted(rows, key=itemgetter("username")),
        created_at=moment,
        returning=("id", "username", "registration_key_hash"),
    )
    ids = {(username, key_hash): id for id, username, key_hash in inserted}
    # Of several with the same name and key, the first was inserted.
    found = ((index, ids.pop((row["username"], row["registration_key_hash"]), None)) for index, row in enumerate(rows))
    created = {index: id for index, id in found if id is not None}
    if created:
        owners = [{"user_id": id} for id in created.values()]
        insert_rows(session, Profile, owners, status="active")
        insert_rows(session, Account, owners, currency=currency)
    return created


async def _find_registrations(
    session: AsyncSession, key_hashes: Iterable[str]
) -> dict[str | None, tuple[UserPublic, str | None]]:
    """Return the users who registered with these keys, and their content hashes, by key.

    They are locked, so that none is closed before its token is stored.
    """
    rows = await session.exec(USERS.where(col(User.registration_key_hash).in_(key_hashes)).with_for_update(read=True))
    return {
        user.registration_key_hash: (show(UserPublic, user, status=status), user.registration_content_hash)
        for user, status in rows
    }


def _judge_repeated(
    registration: KeyedRegistration,
    content_hash: str | None,
    earlier: tuple[UserPublic, str | None] | None,
    moment: datetime,
) -> UserPublic | Refusal:
    """Return the outcome of a registration whose name or key is in use; `earlier` is the user with the same key."""
    if earlier is None:
        return UsernameTaken()
    user, earlier_hash = earlier
    # The user may have changed since, so the requests are compared. Older code stored no content hash.
    is_same = earlier_hash == content_hash if earlier_hash else _values_of(user) == _values_of(registration)
    if not is_same:
        return IdempotencyKeyReused()
    if moment - user.created_at > REPLAY_WINDOW:
        return UsernameTaken()
    # The key proves who asks, so the caller may learn that the user was suspended or closed.
    return user if user.status == "active" else UserNotActive()


def _insert_tokens(session: AsyncSession, user_ids: Sequence[int], moment: datetime) -> list[str]:
    """Issue a token to each of these users; return the secrets in the same order."""
    secrets = [make_token() for _ in user_ids]
    rows = [{"user_id": id, "token_hash": hash_secret(secret)} for id, secret in zip(user_ids, secrets, strict=True)]
    if rows:
        insert_rows(session, AccessToken, rows, created_at=moment)
    return secrets


def _tell_registrations(
    session: AsyncSession, user_ids: Sequence[int], secrets: Sequence[str], moment: datetime
) -> None:
    """Store the events of new users, each with an account, and of new tokens, whose ids are not known here."""
    if not tells(session):
        return
    statement = queries.insert_registration_events(dialect_of(session))
    for first in range(0, max(len(user_ids), len(secrets)), SUBJECTS_TOGETHER):
        ids = user_ids[first : first + SUBJECTS_TOGETHER]
        hashes = [hash_secret(secret) for secret in secrets[first : first + SUBJECTS_TOGETHER]]
        number = 2 * bool(ids) + bool(hashes)
        write_rows(session, Event, statement, number, ids=ids, hashes=hashes, moment=moment)


@isolating_failures
async def register_users(
    session: AsyncSession, registrations: Sequence[KeyedRegistration], currency: str
) -> list[Registered | Refusal]:
    """Register each user whose name is free, as insert_registrations does."""
    async with begin(session):
        return await insert_registrations(session, registrations, currency)


register_all_users = all_or_nothing(insert_registrations)


# --- import -----------------------------------------------------------------------------------------------------------

KeepTokens = Callable[[Sequence[tuple[str, str]]], None]
"""A callback that stores tokens, each with its username, outside this process."""


@isolating_failures
async def import_users(
    session: AsyncSession, registrations: Sequence[Registration], currency: str, keep_tokens: KeepTokens | None
) -> list[bool | Refusal]:
    """Register each user whose name is free: True, or False where the same registration was imported before.

    The key of a registration is a hash of its fields, stored in the database: so an import can be repeated at any time,
    whether the one before was finished or not. With `keep_tokens`, tokens are issued to those of these users who are
    active and have never had one; it is called before COMMIT, so that no token is lost. Refusal: UsernameTaken.
    """
    if not registrations:
        return []
    # Half as long as the hashes of idempotency keys, so that none is equal to one, and because their index, which grows
    # at random places, is what a large import writes most.
    keys = [_hash_fields("import", registration) for registration in registrations]
    async with begin(session):
        moment = now()
        created = await _insert_users(session, registrations, [(key, None) for key in keys], currency, moment)
        new = {keys[index] for index in created}
        imported = new
        if len(new) < len(keys):
            rows = await execute(session, queries.select_imported(dialect_of(session)), keys=keys)
            imported = {key for (key,) in rows}
        secrets: list[str] = []
        if keep_tokens:
            owners = [(id, registrations[index].username) for index, id in created.items()]
            if len(new) < len(imported):
                rows = await execute(session, queries.select_without_token(dialect_of(session)), keys=keys)
                owners = [(id, username) for id, username in rows]
            secrets = _insert_tokens(session, [id for id, _ in owners], moment)
            if owners:
                keep_tokens([(username, secret) for (_, username), secret in zip(owners, secrets, strict=True)])
        _tell_registrations(session, [*created.values()], secrets, moment)
    outcomes: list[bool | Refusal] = []
    for key in keys:
        outcomes.append(key in new if key in imported else UsernameTaken())
        new.discard(key)
    return outcomes


# --- users ------------------------------------------------------------------------------------------------------------

# In id order, so that two transactions that lock the same users cannot deadlock.
USERS = select(User, Profile.status).join(Profile).order_by(col(User.id))


@dataclass(frozen=True, slots=True)
class UserChange:
    """New values for some fields of a user, or a new status; from the user or the operator."""

    user_id: int
    fields: dict[str, Any]
    by_operator: bool = False
    actor: Actor | None = None


@isolating_failures
async def update_users(session: AsyncSession, changes: Sequence[UserChange]) -> list[UserPublic | Refusal]:
    """Apply the changes in order.

    Closing a user revokes its tokens permanently; suspending revokes none. The operator is shown UserRecords. Refusals:
    UserNotFound, ReferenceTaken, and where the change is the user's own, UserNotActive and BalanceNotZero (to close).
    """
    async with begin(session):
        users = select(User, Profile).join(Profile).where(col(User.id).in_({change.user_id for change in changes}))
        # In id order, as USERS.
        rows = await session.exec(users.order_by(col(User.id)).with_for_update())
        found = {user.id: (user, profile) for user, profile in rows}
        holders = await _lock_holders(session, {change.user_id for change in changes if "status" in change.fields})
        references = {change.fields["reference"] for change in changes if change.fields.get("reference")}
        owners: dict[str | None, int] = {}
        if references:
            # After the locks, so that what others have freed meanwhile is free.
            query = queries.select_references(dialect_of(session))
            owners = dict(await execute(session, query, references=[*references]))  # type: ignore[arg-type]
        before = {id: user.reference for id, (user, _) in found.items()}
        moment = now()
        log = Log()
        outcomes = [
            _update_user(change, holders, owners, *found.get(change.user_id, (None, None)), log=log)
            for change in changes
        ]
        freed = [
            {"id": id, "reference": None} for id, (user, _) in found.items() if before[id] not in (None, user.reference)
        ]
        if freed:
            # Before the session writes the new ones: the unique index knows no order of changes.
            update_rows(session, User, freed)
        closed = {
            outcome.id
            for change, outcome in zip(changes, outcomes, strict=True)
            if isinstance(outcome, UserPublic) and change.fields.get("status") == "closed"
        }
        if closed:
            log.happened("token.revoked", *(token.id for token in await _revoke_all_tokens(session, closed)))
        log.store(session, moment)
        return outcomes


async def _lock_holders(session: AsyncSession, user_ids: set[int]) -> set[int | None]:
    """Lock all accounts of these users; return the users who have money, debts or holds.

    A transfer reads the status after it has locked its accounts. So no transfer that read the old status ends later.
    """
    if not user_ids:
        return set()
    accounts = await _lock_accounts(session, col(Account.user_id).in_(user_ids))
    return {account.user_id for account in accounts if account.balance or account.held}


def _update_user(
    change: UserChange,
    holders: Collection[int | None],
    owners: dict[str | None, int],
    user: User | None,
    profile: Profile | None,
    *,
    log: Log,
) -> UserPublic | Refusal:
    """Apply one change to the locked rows of its user, and to the `owners` of references; add it to the `log`.

    The session writes the rows at COMMIT.
    """
    if user is None or profile is None:
        return UserNotFound()
    if profile.status != "active" and not change.by_operator:
        return UserNotActive()
    if is_erased(user):
        return UserErased()
    if change.fields.get("status") == "closed" and user.id in holders and not change.by_operator:
        return BalanceNotZero()
    if "reference" in change.fields:
        if owners.get(reference := change.fields["reference"], change.user_id) != change.user_id:
            return ReferenceTaken()
        owners.pop(user.reference, None)
        if reference is not None:
            owners[reference] = change.user_id
    _log_change(change, user, profile, log)
    for name, value in change.fields.items():
        setattr(profile if name == "status" else user, name, value)
    return show(UserRecord if change.by_operator else UserPublic, user, status=profile.status)


def _log_change(change: UserChange, user: User, profile: Profile, log: Log) -> None:
    """Add what this changes of a user, if it changes anything: the status, and the names of fields."""
    status = change.fields.get("status", profile.status)
    changed = sorted(
        "metadata" if name == "details" else name
        for name, value in change.fields.items()
        if name != "status" and getattr(user, name) != value
    )
    if status != profile.status:
        log.did(change.actor, ACTION_OF_STATUS[status], user.id, old=profile.status, new=status)
        log.happened(EVENT_OF_STATUS[status], user.id)
    if changed:
        log.did(change.actor, "user.update", user.id, fields=changed)
        log.happened("user.updated", user.id, status=status, changed=changed)


@dataclass(frozen=True, slots=True)
class Erasure:
    """A closed user whose personal data the operator erases."""

    user_id: int
    actor: Actor | None = None


@isolating_failures
async def erase_users(session: AsyncSession, erasures: Sequence[Erasure]) -> list[UserRecord | Refusal]:
    """Erase what is known of each closed user as a person, for good; accounts, transfers and entries stay.

    That is the name, which is free again, the email address, phone number, reference and metadata, the names of tokens,
    and the hashes of what it registered with. One who is erased stays so. Refusals: UserNotFound, UserNotClosed,
    BalanceNotZero.
    """
    ids = {erasure.user_id for erasure in erasures}
    async with begin(session):
        users = select(User, Profile.status).join(Profile).where(col(User.id).in_(ids)).order_by(col(User.id))
        found = {user.id: (user, status) for user, status in await session.exec(users.with_for_update())}
        holders = await _lock_holders(session, ids)
        log = Log()
        outcomes = [
            _erase_user(erasure, holders, *found.get(erasure.user_id, (None, None)), log=log) for erasure in erasures
        ]
        log.store(session, now())
        erased = [outcome.id for outcome in outcomes if isinstance(outcome, UserRecord)]
        tokens = TOKENS.where(col(AccessToken.user_id).in_(erased), col(AccessToken.name).is_not(None))
        for token in await session.exec(tokens.with_for_update()):
            token.name = None
        return outcomes


def _erase_user(
    erasure: Erasure,
    holders: Collection[int | None],
    user: User | None,
    status: Status | None,
    *,
    log: Log,
) -> UserRecord | Refusal:
    """Erase the locked row of a user; the session writes it at COMMIT."""
    if user is None or status is None:
        return UserNotFound()
    if status != "closed":
        return UserNotClosed()
    if user.id in holders:
        return BalanceNotZero()
    if not is_erased(user):
        user.username, user.email = _erased_name(user), f"erased-{user.id}@erased.invalid"
        user.phone_number = user.reference = user.details = None
        user.registration_key_hash = user.registration_content_hash = None
        log.did(erasure.actor, "user.erase", user.id)
        log.happened("user.erased", user.id)
    return show(UserRecord, user, status=status)


def _erased_name(user: User | UserPublic) -> str:
    # With a space, so that nobody can register it.
    return f"erased {user.id}"


def is_erased(user: User | UserPublic) -> bool:
    """Return True if the personal data of this user was erased."""
    return user.username == _erased_name(user)


async def get_user(session: AsyncSession, user_id: int) -> UserRecord:
    """Return the user with this id. Raises UserNotFound."""
    for user, status in await session.exec(USERS.where(User.id == user_id)):
        return show(UserRecord, user, status=status)
    raise UserNotFound


async def list_users(
    session: AsyncSession,
    *,
    status: Status | None = None,
    username_prefix: str | None = None,
    email: str | None = None,
    reference: str | None = None,
    after: int,
    limit: int,
) -> Part:
    """Return up to `limit` users (UserRecord) in order of id, from the first id greater than `after`."""
    pattern = username_prefix and _pattern_of(username_prefix)
    filters = {"status": status, "pattern": pattern, "email": email, "reference": reference}
    filters = {name: value for name, value in filters.items() if value is not None}
    query = queries.select_users(dialect_of(session), tuple(filters))
    return await read_part(session, query, after=after, limit=limit, **filters)


def _pattern_of(prefix: str) -> str:
    """Return the pattern, for LIKE with the escape character "/", of the texts that begin with the prefix."""
    return re.sub("[/%_]", r"/\g<0>", prefix) + "%"


# --- access tokens ----------------------------------------------------------------------------------------------------

# In id order, so that two transactions that revoke the same tokens cannot deadlock.
TOKENS = select(AccessToken).order_by(col(AccessToken.id))


async def authenticate(session: AsyncSession, token_hashes: Sequence[str]) -> list[UserPublic | Refusal]:
    """Return the user of each token. Refusals: Unauthenticated, UserNotActive."""
    rows = await execute(session, queries.select_token_owners(dialect_of(session)), hashes=[*set(token_hashes)])
    moment = now()
    owners = {row[0]: _admit(row, moment) for row in rows}
    return [owners.get(token_hash) or Unauthenticated() for token_hash in token_hashes]


def _admit(row: Sequence[Any], moment: datetime) -> UserPublic | Refusal:
    _, revoked_at, expires_at, *values = row
    user = _construct(UserPublic, values)
    # Closing a user revokes its tokens too; that it is closed is the better answer.
    if user.status != "closed" and not _is_valid(revoked_at, expires_at, moment):
        return Unauthenticated()
    return user if user.status == "active" else UserNotActive()


def _is_valid(revoked_at: datetime | None, expires_at: datetime | None, moment: datetime) -> bool:
    return revoked_at is None and (expires_at is None or expires_at > moment)


@dataclass(frozen=True, slots=True)
class TokenIssue:
    """A token to issue to a user, who asks with the token that has this hash; None if the operator asks."""

    user_id: int
    name: str | None
    expires_in_days: int | None
    asked_with: str | None = None
    actor: Actor | None = None


@isolating_failures
async def issue_tokens(session: AsyncSession, issues: Sequence[TokenIssue]) -> list[IssuedToken | Refusal]:
    """Issue the tokens; their secrets are only in what is returned.

    Refusals: UserNotFound, UserNotActive, Unauthenticated.
    """
    moment = now()
    async with begin(session):
        # Locked, so that the status stays what it is until this transaction ends, and that none of the user's tokens
        # is revoked meanwhile: who holds a stolen one would be left with another.
        users = USERS.where(col(User.id).in_({issue.user_id for issue in issues})).with_for_update(read=True)
        statuses = {user.id: status for user, status in await session.exec(users)}
        hashes = {issue.asked_with for issue in issues if issue.asked_with is not None}
        asking = await session.exec(TOKENS.where(col(AccessToken.token_hash).in_(hashes)).with_for_update(read=True))
        valid = {None, *(each.token_hash for each in asking if _is_valid(each.revoked_at, each.expires_at, moment))}
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
        refused = [_refuse_issue(statuses.get(issue.user_id), issue.asked_with in valid) for issue in issues]
        session.add_all(token for token, refusal in zip(tokens, refused, strict=True) if refusal is None)
        await session.flush()
        log = Log()
        for issue, token, refusal in zip(issues, tokens, refused, strict=True):
            if refusal is None:
                log.did(issue.actor, "token.issue", issue.user_id, token_id=token.id)
                log.happened("token.issued", token.id)
        log.store(session, moment)
        return [
            refusal or _show_issued(token, secret)
            for token, secret, refusal in zip(tokens, secrets, refused, strict=True)
        ]


def _refuse_issue(status: str | None, is_valid: bool) -> Refusal | None:
    if status != "active":
        return UserNotFound() if status is None else UserNotActive()
    return None if is_valid else Unauthenticated()


def _show_issued(token: AccessToken, secret: str) -> IssuedToken:
    return IssuedToken.model_construct(**show(TokenPublic, token).__dict__, access_token=secret)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A token to revoke."""

    user_id: int
    token_id: int
    actor: Actor | None = None


@dataclass(frozen=True, slots=True)
class RevocationOfAll:
    """A user whose tokens are all to be revoked."""

    user_id: int
    actor: Actor | None = None


@isolating_failures
async def revoke_tokens(session: AsyncSession, revocations: Sequence[Revocation]) -> list[TokenPublic | Refusal]:
    """Revoke the tokens; one that is already revoked stays as it is.

    Refusals: UserNotFound, and TokenNotFound, also where the token is another user's.
    """
    async with begin(session):
        pairs = [(revocation.user_id, revocation.token_id) for revocation in revocations]
        # Both ids, so that no token of another user is locked.
        is_asked = sa.tuple_(col(AccessToken.user_id), col(AccessToken.id)).in_({*pairs})
        rows = await session.exec(TOKENS.where(is_asked).with_for_update())
        found = {(token.user_id, token.id): token for token in rows}
        existing = await _find_users(session, {user_id for user_id, _ in pairs})
        log = Log()
        outcomes: list[TokenPublic | Refusal] = []
        for each, pair in zip(revocations, pairs, strict=True):
            token = found.get(pair)
            if token is not None and token.revoked_at is None:
                log.did(each.actor, "token.revoke", each.user_id, token_id=each.token_id)
                log.happened("token.revoked", token.id)
            outcomes.append(_revoke(token) if each.user_id in existing else UserNotFound())
        log.store(session, now())
        return outcomes


@isolating_failures
async def revoke_users_tokens(session: AsyncSession, revocations: Sequence[RevocationOfAll]) -> list[Refusal | None]:
    """Revoke all tokens of these users. Refusal: UserNotFound."""
    user_ids = [each.user_id for each in revocations]
    async with begin(session):
        # Locked, so that no token is issued meanwhile: their profiles, since who opens accounts locks users.
        users = select(Profile.user_id).where(col(Profile.user_id).in_(user_ids)).order_by(col(Profile.user_id))
        existing = {*await session.exec(users.with_for_update(key_share=True))}
        tokens = await _revoke_all_tokens(session, existing)
        counts = Counter(token.user_id for token in tokens)
        log = Log()
        log.happened("token.revoked", *(token.id for token in tokens))
        for each in revocations:
            # Of several that revoke the same tokens, the first one does.
            if count := counts.pop(each.user_id, 0):
                log.did(each.actor, "token.revoke", each.user_id, count=count)
        log.store(session, now())
        return [None if user_id in existing else UserNotFound() for user_id in user_ids]


async def _find_users(session: AsyncSession, user_ids: set[int]) -> set[int | None]:
    return {*await session.exec(select(User.id).where(col(User.id).in_(user_ids)))}


async def _revoke_all_tokens(session: AsyncSession, user_ids: Collection[int | None]) -> Sequence[AccessToken]:
    """Revoke all tokens of these users; return those that were valid."""
    tokens = TOKENS.where(col(AccessToken.user_id).in_(user_ids), col(AccessToken.revoked_at).is_(None))
    valid = (await session.exec(tokens.with_for_update())).all()
    for token in valid:
        _revoke(token)
    return valid


def _revoke(token: AccessToken | None) -> TokenPublic | Refusal:
    """Mark a locked token as revoked; the session writes it at COMMIT."""
    if token is None:
        return TokenNotFound()
    token.revoked_at = token.revoked_at or now()
    return show(TokenPublic, token)


async def list_users_tokens(session: AsyncSession, *, user_id: int, after: int, limit: int) -> Part:
    """Do as list_tokens does, but raise UserNotFound."""
    await get_user(session, user_id)
    return await list_tokens(session, user_id=user_id, after=after, limit=limit)


async def list_tokens(
    session: AsyncSession, *, user_id: int, after: int, limit: int, newest_first: bool = False
) -> Part:
    """Return up to `limit` tokens (TokenPublic) of a user in order of id, from the first id greater than `after`.

    With `newest_first`, in the opposite order, from the first id less than `after`.
    """
    query = queries.select_tokens(dialect_of(session), newest_first)
    return await read_part(session, query, user_id=user_id, after=after, limit=limit)


# --- the operator's keys ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AdmittedKey:
    """A key that is valid now."""

    id: int
    scopes: Sequence[KeyScope]
    name: str


async def authenticate_keys(session: AsyncSession, key_hashes: Sequence[str]) -> list[AdmittedKey | Refusal]:
    """Return the key with each hash. Refusal: Unauthenticated."""
    rows = await execute(session, queries.select_admitted_keys(dialect_of(session)), hashes=[*set(key_hashes)])
    moment = now()
    keys = {
        key_hash: AdmittedKey(id, scopes, name)
        for key_hash, revoked_at, expires_at, id, scopes, name in rows
        if _is_valid(revoked_at, expires_at, moment)
    }
    return [keys.get(key_hash) or Unauthenticated() for key_hash in key_hashes]


@dataclass(frozen=True, slots=True)
class KeyIssue:
    """A key to issue."""

    name: str
    scopes: Sequence[KeyScope]
    expires_in_days: int | None
    actor: Actor | None = None


@isolating_failures
async def issue_keys(session: AsyncSession, issues: Sequence[KeyIssue]) -> list[IssuedKey | Refusal]:
    """Issue the keys in order of name; their secrets are only in what is returned.

    Refusals: KeyNameTaken, and for a key that issues another, Unauthenticated and KeyExceeded.
    """
    outcomes: dict[int, IssuedKey | Refusal] = {}
    async with begin(session):
        # Locked, so that none of them is revoked meanwhile: who holds a stolen one would be left with another.
        ids = {issue.actor.key_id for issue in issues if issue.actor is not None}
        issuers = {
            key.id: key
            for key in await session.exec(KEYS.where(col(OperatorKey.id).in_(ids)).with_for_update(read=True))
        }
        moment = now()
        # In order of name, so that two batches that share names cannot deadlock.
        for index in sorted(range(len(issues)), key=lambda index: issues[index].name):
            outcomes[index] = await _issue_key(session, issues[index], issuers, moment)
        log = Log()
        for index, key in sorted(outcomes.items()):
            if isinstance(key, IssuedKey):
                log.did(issues[index].actor, "key.issue", key_id=key.id, scopes=key.scopes)
                log.happened("key.issued", key.id)
        log.store(session, moment)
    return [outcomes[index] for index in range(len(issues))]


# In id order, so that two transactions that lock the same keys cannot deadlock.
KEYS = select(OperatorKey).order_by(col(OperatorKey.id))


async def _issue_key(
    session: AsyncSession, issue: KeyIssue, issuers: Mapping[int | None, OperatorKey], moment: datetime
) -> IssuedKey | Refusal:
    expires_at = None if issue.expires_in_days is None else moment + timedelta(days=issue.expires_in_days)
    if issue.actor is not None and issue.actor.key_id is not None:
        issuer = issuers.get(issue.actor.key_id)
        if issuer is None or not _is_valid(issuer.revoked_at, issuer.expires_at, moment):
            return Unauthenticated()
        lasts = issuer.expires_at is None or (expires_at is not None and expires_at <= issuer.expires_at)
        if not lasts or not {*issue.scopes} <= {*issuer.scopes}:
            return KeyExceeded()
    secret = make_operator_key()
    fields: dict[str, Any] = {"name": issue.name, "scopes": issue.scopes}
    instants: dict[str, Any] = {"created_at": moment, "expires_at": expires_at}
    row = {**fields, "key_hash": hash_secret(secret)}
    for (id,) in await insert_free(session, OperatorKey, [row], returning=("id",), **instants):
        return IssuedKey.model_construct(id=id, **fields, **instants, revoked_at=None, secret=secret)
    return KeyNameTaken()


@dataclass(frozen=True, slots=True)
class KeyRevocation:
    """A key to revoke."""

    key_id: int
    actor: Actor | None = None


@isolating_failures
async def revoke_keys(session: AsyncSession, revocations: Sequence[KeyRevocation]) -> list[KeyPublic | Refusal]:
    """Revoke the keys; one that is already revoked stays as it is. Refusal: KeyNotFound."""
    log = Log()
    async with begin(session):
        keys = KEYS.where(col(OperatorKey.id).in_({each.key_id for each in revocations}))
        # Actions refer to keys, and do not wait for it.
        found = {key.id: key for key in await session.exec(keys.with_for_update(key_share=True))}
        moment = now()
        for each in revocations:
            key = found.get(each.key_id)
            if key is not None and key.revoked_at is None:
                key.revoked_at = moment
                log.did(each.actor, "key.revoke", key_id=key.id)
                log.happened("key.revoked", key.id)
        log.store(session, moment)
        return [show(KeyPublic, found[each.key_id]) if each.key_id in found else KeyNotFound() for each in revocations]


async def list_keys(session: AsyncSession, *, after: int, limit: int) -> Part:
    """Return up to `limit` keys (KeyPublic) in order of id, from the first id greater than `after`."""
    return await read_part(session, queries.select_keys(dialect_of(session)), after=after, limit=limit)


# --- accounts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AccountOpening:
    """An account to open for a user."""

    user_id: int
    currency: str
    label: str = "main"
    actor: Actor | None = field(default=None, compare=False)

    @property
    def columns(self) -> dict[str, Any]:
        """The values of the account's columns."""
        return {"user_id": self.user_id, "currency": self.currency, "label": self.label}


@isolating_failures
async def open_accounts(session: AsyncSession, openings: Sequence[AccountOpening]) -> list[AccountPublic | Refusal]:
    """Open the accounts in order. Refusals: UserNotFound, UserNotActive, AccountExists, AccountLimit."""
    ids = sorted({opening.user_id for opening in openings})
    dialect = dialect_of(session)
    async with begin(session):
        # Counted after the locks, so that nobody opens the last one twice.
        owners, accounts = await execute_together(
            session, call(queries.select_owners(dialect), ids=ids), call(queries.select_labels(dialect), ids=ids)
        )
        statuses: dict[int, str] = dict(owners)  # type: ignore[arg-type]
        taken: dict[int, set[AccountOpening]] = {id: set() for id in ids}
        for row in accounts:
            taken[row[0]].add(AccountOpening(*row))
        refusals = [_judge_opening(each, statuses.get(each.user_id), taken[each.user_id]) for each in openings]
        rows = [each.columns for each, refusal in zip(openings, refusals, strict=True) if refusal is None]
        returning = ("user_id", "currency", "label", "id")
        inserted = await insert_free(session, Account, rows, returning=returning) if rows else ()
        ids_of = {AccountOpening(*key): id for *key, id in inserted}
        log = Log()
        for each, refusal in zip(openings, refusals, strict=True):
            if refusal is None and each in ids_of:
                log.did(each.actor, "account.open", each.user_id, account_id=ids_of[each])
                log.happened("account.opened", ids_of[each])
        log.store(session, now())
    opened: dict[AccountOpening, AccountPublic | Refusal] = {
        each: AccountPublic.model_construct(id=id, available=0, **each.columns) for each, id in ids_of.items()
    }
    # What is in neither was opened meanwhile by a server that still runs older code, which locks no users.
    return [refusal or opened.get(each, AccountExists()) for each, refusal in zip(openings, refusals, strict=True)]


def _judge_opening(opening: AccountOpening, status: str | None, taken: set[AccountOpening]) -> Refusal | None:
    """Return why the account cannot be opened, or add it to those that its user has."""
    if status != "active":
        return UserNotFound() if status is None else UserNotActive()
    if opening in taken:
        return AccountExists()
    if len(taken) >= ACCOUNT_LIMIT:
        return AccountLimit()
    taken.add(opening)
    return None


@dataclass(frozen=True, slots=True)
class CreditChange:
    """A new credit limit of an account."""

    account_id: int
    credit_limit: int
    actor: Actor | None = None


@isolating_failures
async def change_credit(session: AsyncSession, changes: Sequence[CreditChange]) -> list[AccountPublic | Refusal]:
    """Set the limits in order. Refusals: AccountNotFound, SystemAccount, CreditInUse."""
    ids = {change.account_id for change in changes}
    async with begin(session):
        accounts = {account.id: account for account in await _lock_accounts(session, col(Account.id).in_(ids))}
        log = Log()
        outcomes = [_change_credit(change, accounts.get(change.account_id), log) for change in changes]
        log.store(session, now())
        return outcomes


async def _lock_accounts(session: AsyncSession, condition: Any) -> Sequence[Account]:
    """Lock accounts, in id order, as transfers do, and give free what holds that have expired still keep of them."""
    rows = await session.exec(select(Account).where(condition).order_by(col(Account.id)).with_for_update())
    accounts = rows.all()
    freed = await _free_expired(session, [account.id or 0 for account in accounts if account.held], now())
    for account in accounts:
        account.held -= freed[account.id or 0]
    return accounts


async def _free_expired(session: AsyncSession, account_ids: Sequence[int], moment: datetime) -> Counter[int]:
    """Mark the holds on these locked accounts that have expired; return their amounts in all, by account.

    The caller takes these from the accounts' held.
    """
    if not account_ids:
        return Counter()
    expired = await execute(session, queries.select_expired(dialect_of(session)), ids=account_ids, moment=moment)
    freed: Counter[int] = Counter()
    for _, account_id, amount in expired:
        freed[account_id] += amount
    if expired:
        update_rows(session, Hold, [{"id": id} for id, *_ in expired], status="expired")
        tell(session, [event("hold.expired", *(id for id, *_ in expired))], moment)
    return freed


async def expire_holds(session: AsyncSession, limit: int) -> int:
    """Mark holds that have expired, on up to `limit` accounts, so that it is told in time; return how many accounts.

    Nothing depends on it: what has expired counts nowhere.
    """
    query = queries.select_accounts_with_expired(dialect_of(session))
    async with begin(session):
        ids = [id for (id,) in await execute(session, query, moment=now(), limit=limit)]
        if ids:
            await _lock_accounts(session, col(Account.id).in_(ids))
    return len(ids)


def _change_credit(change: CreditChange, account: Account | None, log: Log) -> AccountPublic | Refusal:
    """Apply one change to the locked row of its account, and add it to the `log`. The session writes it at COMMIT."""
    if account is None:
        return AccountNotFound()
    if account.user_id is None:
        return SystemAccount()
    available = account.balance - account.held + change.credit_limit
    if available < 0:
        return CreditInUse()
    old, account.credit_limit = account.credit_limit, change.credit_limit
    if old != change.credit_limit:
        values = {"account_id": account.id, "old": old, "new": change.credit_limit}
        log.did(change.actor, "account.credit", account.user_id, **values)
        log.happened("account.updated", account.id, credit_limit=change.credit_limit)
    return show(AccountPublic, account, available=min(available, BALANCE_MAX))


async def list_accounts(session: AsyncSession, *, user_id: int | None, after: int, limit: int) -> Part:
    """Return up to `limit` accounts (AccountPublic) of one user or all, from the first id greater than `after`."""
    owner = {} if user_id is None else {"user_id": user_id}
    query = queries.select_accounts(dialect_of(session), tuple(owner))
    return await read_part(session, query, moment=now(), after=after, limit=limit, **owner)


async def get_account(session: AsyncSession, id: int, caller: int) -> AccountPublic:
    """Return the account as it is now. Raises AccountNotFound, also where it is another user's."""
    query = queries.select_account(dialect_of(session))
    for row in await execute(session, query, id=id, caller=caller, moment=now()):
        return _construct(AccountPublic, row)
    raise AccountNotFound


async def sum_balances_of_users(session: AsyncSession) -> Sequence[tuple[str, int]]:
    """Return each currency with the sum of its users' balances, in minor units, in order of code.

    The system account of a currency has it, since all balances add up to 0: one row of a small index each.
    """
    query = select(Account.currency, Account.balance).where(col(Account.user_id).is_(None))
    found = await session.exec(query.order_by(col(Account.currency)))
    return [(currency, -balance) for currency, balance in found]


async def get_account_at(session: AsyncSession, id: int, caller: int, at: datetime) -> AccountPublic:
    """Return the account as it was at an instant. Raises AccountNotFound as get_account does."""
    account = await get_account(session, id, caller)
    account.balance, account.version, account.held, account.available = 0, 0, None, None
    for row in await execute(session, queries.select_newest_entry(dialect_of(session)), id=id, at=at):
        account.balance, account.version = row
    return account


async def list_entries(session: AsyncSession, id: int, caller: int, *, after: int, limit: int) -> Part:
    """Return up to `limit` entries (EntryPublic) of an account, newest first, from the first seq less than `after`.

    Raises AccountNotFound as get_account does.
    """
    dialect = dialect_of(session)
    found, [entries] = await execute_together(
        session,
        call(queries.select_account(dialect), id=id, caller=caller, moment=now()),
        call(queries.select_entries(dialect), id=id, caller=caller, after=after, limit=limit),
    )
    if not found:
        raise AccountNotFound
    return Part(*entries)


# --- transfers --------------------------------------------------------------------------------------------------------


async def post_orders(
    session: AsyncSession,
    orders: Sequence[AnyOrder | Refusal],
    holds: Sequence[HoldPosting] = (),
    *,
    wait: bool = True,
) -> list[Posted[Any] | Refusal]:
    """Do what is ordered, one after the other, each as if it came alone: one may spend what an earlier one brought.

    A key that its caller used before, here or earlier, is replayed. A Refusal among the orders is its own outcome.
    Where another transaction holds an account for long, Locked is raised; without `wait`, Locked is at once the outcome
    of the orders that need this account. Other refusals: AccountNotFound, SameAccount, AccountNotActive,
    AlreadyReversed, VersionMismatch, InsufficientFunds, CurrencyMismatch, BalanceLimit, IdempotencyKeyReused; of those
    that end one of the `holds`, HoldResolved and HoldExceeded; of linked orders, TransactionRefused.
    """
    asked = [order for order in orders if not isinstance(order, Refusal)]
    if not asked:
        return [order for order in orders if isinstance(order, Refusal)]
    ledger = await _open_ledger(session, asked, holds, wait=wait)
    outcomes: list[Posted[Any] | Refusal] = []
    async for part in _in_parts(orders):
        outcomes += [order if isinstance(order, Refusal) else ledger.post(order) for order in part]
    if wait and ledger.locked and any(isinstance(outcome, Locked) for outcome in outcomes):
        raise Locked
    _store_holds(session, ledger)
    _store_transactions(session, ledger.transactions, ledger.moment)
    async for postings in _in_parts(ledger.postings):
        _store_postings(session, postings, ledger.moment)
        record(session, [*_actions_of(postings, ledger)], ledger.moment)
    record(session, [*_actions_of_holds(ledger)], ledger.moment)
    tell(session, events_of(ledger), ledger.moment)
    # Most batches have no holds.
    columns = ("id", "balance", "version", "held") if ledger.holds_changed else ("id", "balance", "version")
    values_of = attrgetter(*columns)
    accounts = [dict(zip(columns, values_of(each), strict=True)) for each in ledger.changed]
    if accounts:
        # Last: while an account is still the row that was locked, foreign keys that refer to it need no lock of theirs.
        update_rows(session, Account, accounts, updated_at=ledger.moment)
    return outcomes


async def _in_parts(items: Sequence[Item]) -> AsyncIterator[Sequence[Item]]:
    """Return the items in parts that take some milliseconds each; between these, other calls go on."""
    for first in range(0, len(items), PART):
        if first:
            await asyncio.sleep(0)
        yield items[first : first + PART]


async def _open_ledger(
    session: AsyncSession, orders: Sequence[AnyOrder], holds: Sequence[HoldPosting], *, wait: bool
) -> Ledger:
    """Lock the accounts, and read what the orders depend on, in one round trip; where money may be held, in two."""
    dialect = dialect_of(session)
    legs = [leg for order in orders for leg in _legs_of(order)]
    reverses = {leg.reverses_id for leg in legs if leg.reverses_id is not None}
    kinds = Counter(map(type, [*legs, *(order for order in orders if isinstance(order, LinkedOrders))]))
    # After the locks: the transactions that held them have committed by then, so their changes are visible.
    held, existing, inactive, reversed, statuses, earlier, earlier_holds, earlier_linked, *ids = await execute_together(
        session,
        *_locking(dialect, orders, wait=wait),
        call(queries.select_reversed(dialect), ids=sorted(reverses)) if reverses else None,
        call(queries.select_statuses(dialect), ids=[hold.id for hold in holds]) if holds else None,
        *(_finding_keys(dialect, find, orders, kind) for kind, find in EARLIER.items()),
        *_drawing_ids(dialect, kinds),
    )
    holdings = {row[0]: Holding(*row) for row in held}
    moment = max([now(), *(each.updated_at for each in holdings.values() if each.updated_at)])
    # What a capture moves is there, whatever else is held.
    spending = {leg.debit_account_id for leg in legs if leg.hold_id is None} & holdings.keys()
    freed = await _free_expired(session, sorted(id for id in spending if holdings[id].held), moment)
    for id, amount in freed.items():
        holdings[id].held -= amount
    status_of: dict[int, Any] = {row[0]: row[1] for row in statuses}
    for hold in holds:
        has_expired = status_of[hold.id] == "open" and hold.expires_at <= moment
        hold.status = "expired" if has_expired else status_of[hold.id]
    locked = {id for id, *_ in existing} - holdings.keys()
    funded = _find_funded(legs, holdings, locked)
    if funded:
        # The operator's orders are locked whatever their debit accounts hold. Waiting now could deadlock.
        as_operator = [replace(order, initiator=OPERATOR) for order in funded]
        # New ids, so that they ascend in each account: others may have posted there since the first ones were drawn.
        held, existing, more, *ids = await execute_together(
            session, *_locking(dialect, as_operator, wait=False), *_drawing_ids(dialect, kinds)
        )
        holdings = {row[0]: Holding(*row) for row in held} | holdings
        locked |= {id for id, *_ in existing} - holdings.keys()
        inactive = [*inactive, *more]
    return Ledger(
        holdings.values(),
        {user_id for (user_id,) in inactive},
        [
            *(_read_posting(*row) for row in earlier),
            *(_read_hold(*row) for row in earlier_holds),
            *_read_transactions(earlier_linked),
        ],
        (id for (id,) in reversed),
        locked,
        holds=holds,
        freed=freed.keys(),
        moment=moment,
        ids={kind: (id for (id,) in rows) for kind, rows in zip(kinds, ids, strict=True)},
    )


def _drawing_ids(dialect: str, kinds: Mapping[Any, int]) -> list[Call]:
    """Return what draws so many new ids for the rows of each kind of order."""
    return [
        call(queries.select_new_ids(dialect, ROWS_OF[kind]), places=[*range(1, number + 1)])
        for kind, number in kinds.items()
    ]


def _legs_of(order: AnyOrder) -> Sequence[Order]:
    """Return the transfers and holds of an order."""
    if isinstance(order, LinkedOrders):
        return order.legs
    return () if isinstance(order, VoidOrder) else (order,)


EARLIER: dict[type[Order] | type[LinkedOrders], Callable[[str], Prepared]] = {
    Order: queries.select_postings,
    HoldOrder: queries.select_holds_by_key,
    LinkedOrders: queries.select_transactions,
}
"""What finds that which was made with a key, by the kind of its order."""

ROWS_OF: dict[Any, type[SQLModel]] = {Order: Transfer, HoldOrder: Hold, LinkedOrders: Transaction}


def _locking(dialect: str, orders: Sequence[AnyOrder], *, wait: bool) -> tuple[Call, Call | None, Call]:
    """Return what locks the accounts of these orders, by id; reads them all, without `wait`; finds inactive users.

    Of a user's order, the debit account is locked where it is the user's, and then the credit account where the debit
    account holds enough for it and the orders before it: so an order that cannot be paid makes nobody wait.
    """
    debits, credits, callers, amounts = zip(*(need for order in orders for need in _needs_of(order)), strict=True)
    wanted = {"debits": debits, "credits": credits, "callers": callers, "amounts": amounts}
    ids = sorted({*debits, *credits})
    return (
        call(queries.select_holdings(dialect, "wait" if wait else "skip"), ids=ids, **wanted),
        None if wait else call(queries.select_holdings(dialect, "read"), ids=ids, **wanted),
        call(queries.select_inactive(dialect), ids=ids),
    )


def _needs_of(order: AnyOrder) -> Iterator[tuple[int, int, int, int]]:
    """Return debit account, credit account, caller and least amount of what an order needs locks for."""
    if isinstance(order, VoidOrder):
        yield order.debit_account_id, order.debit_account_id, OPERATOR, 0
    for leg in _legs_of(order):
        # Whether a hold's money is there, and the caller's to capture, needs no look at the accounts.
        caller = leg.initiator if leg.hold_id is None else OPERATOR
        # Of an amount that is cut to what is there, at least 1.
        yield leg.debit_account_id, leg.credit_account_id, caller, leg.amount if leg.asked_amount is None else 1


def _find_funded(orders: Sequence[Order], holdings: Mapping[int, Holding], locked: Set[int]) -> list[Order]:
    """Return the orders that can be paid, though their credit accounts were not locked.

    An earlier order brings the money, or it arrived while this transaction waited for its locks.
    """
    if all(order.credit_account_id in holdings for order in orders):
        return []
    most = {id: holding.available for id, holding in holdings.items()}
    funded = []
    for order in orders:
        debit = holdings.get(order.debit_account_id)
        if debit is None or order.initiator not in (OPERATOR, debit.user_id):
            continue
        if debit.user_id is None or most[debit.id] >= (order.amount if order.asked_amount is None else 1):
            most[order.credit_account_id] = most.get(order.credit_account_id, 0) + order.amount
            if order.credit_account_id not in holdings and order.credit_account_id not in locked:
                funded.append(order)
    return funded


def _finding_keys(
    dialect: str, find: Callable[[str], Prepared], orders: Sequence[AnyOrder], kind: type[Order] | type[LinkedOrders]
) -> Call | None:
    """Return what finds that which the callers of the orders of this kind made with the same keys before."""
    keyed = {
        (order.initiator, order.idempotency_key)
        for order in orders
        if type(order) is kind and order.idempotency_key is not None
    }
    if not keyed:
        return None
    return call(find(dialect), callers=sorted({caller for caller, _ in keyed}), keys=sorted({key for _, key in keyed}))


def _read_posting(
    id: int, currency: str, created_at: datetime, debit_balance_after: int, credit_balance_after: int, *content: Any
) -> Posting:
    return Posting(id, Order(*content), currency, debit_balance_after, credit_balance_after, created_at)


def _read_hold(id: int, currency: str, created_at: datetime, expires_at: datetime, *content: Any) -> HoldPosting:
    order = HoldOrder(**dict(zip(CONTENT, content, strict=True)), lifetime=expires_at - created_at)
    return HoldPosting(id, order, currency, created_at)


def _read_transactions(rows: Rows) -> Iterator[LinkedPostings]:
    """Return the transactions of these rows, each of which is one of a transaction's transfers, in order."""
    for (id, created_at, *content), legs in groupby(rows, key=itemgetter(slice(0, 6))):
        postings = [_read_posting(*leg[6:]) for leg in legs]
        initiator, key, reference, metadata = content
        for posting in postings:
            posting.transaction_id = id
        linked = LinkedOrders(initiator, [posting.order for posting in postings], key, reference, metadata)
        yield LinkedPostings(id, linked, postings, created_at)


def _store_holds(session: AsyncSession, ledger: Ledger) -> None:
    """Write the new holds, and those that ended, with what is sent with COMMIT."""
    # A column's values are the same in all rows, or simple: so there is one statement for each lifetime.
    by_lifetime: dict[timedelta, list[dict[str, Any]]] = {}
    for hold in ledger.new_holds:
        content = dict(zip(CONTENT, content_of(hold.order), strict=True))
        del content["reverses_id"], content["hold_id"]
        by_lifetime.setdefault(hold.order.lifetime, []).append({"id": hold.id, "currency": hold.currency, **content})
    for lifetime, rows in by_lifetime.items():
        insert_rows(session, Hold, rows, created_at=ledger.moment, expires_at=ledger.moment + lifetime)
    if ledger.resolved:
        ended = [{"id": hold.id, "status": hold.status} for hold in ledger.resolved]
        update_rows(session, Hold, ended, resolved_at=ledger.moment)


def _store_transactions(session: AsyncSession, transactions: Sequence[LinkedPostings], moment: datetime) -> None:
    rows = [
        {
            "id": each.id,
            "initiator": each.order.initiator,
            "idempotency_key": each.order.idempotency_key,
            "reference": each.order.reference,
            "metadata": each.order.metadata,
        }
        for each in transactions
    ]
    if rows:
        insert_rows(session, Transaction, rows, created_at=moment)


def _store_postings(session: AsyncSession, postings: Sequence[Posting], moment: datetime) -> None:
    """Write transfers and entries with one statement each, which are sent with COMMIT."""
    contents = [
        (*content_of(each.order), each.transaction_id, each.order.actor and each.order.actor.key_id)
        for each in postings
    ]
    # Where all are plain, as most are, without the columns that would be null.
    is_plain = all(content[PLAIN:] == UNDESCRIBED for content in contents)
    columns = CONTENT[:PLAIN] if is_plain else (*CONTENT, "transaction_id", "operator_key_id")
    transfers = [
        {"id": each.id, **dict(zip(columns, content, strict=False)), "currency": each.currency}
        for each, content in zip(postings, contents, strict=True)
    ]
    entries = [
        {"account_id": account_id, "seq": seq, "transfer_id": each.id, "amount": amount, "balance_after": balance_after}
        for each in postings
        for account_id, seq, amount, balance_after in (
            (each.order.debit_account_id, each.debit_seq, -each.order.amount, each.debit_balance_after),
            (each.order.credit_account_id, each.credit_seq, each.order.amount, each.credit_balance_after),
        )
    ]
    insert_rows(session, Transfer, transfers, created_at=moment)
    insert_rows(session, Entry, entries, created_at=moment)


def _actions_of(postings: Sequence[Posting], ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Return the transfers that the operator made, each as an action on one user's account."""
    for id, order in ((each.id, each.order) for each in postings if each.order.actor is not None):
        debit, credit = ledger.holdings[order.debit_account_id], ledger.holdings[order.credit_account_id]
        name: ActionName = "transfer.create"
        if order.reverses_id is not None:
            name = "transfer.reverse"
        elif order.hold_id is not None:
            name = "hold.capture"
        elif debit.user_id is None:
            name = "transfer.deposit"
        elif credit.user_id is None:
            name = "transfer.withdraw"
        account = credit if debit.user_id is None else debit
        assert order.actor is not None
        yield action(order.actor, name, account.user_id, account_id=account.id, transfer_id=id)


def _actions_of_holds(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Return the holds that the operator made, and those that it voided."""
    done: list[tuple[HoldPosting, Actor | None, ActionName]]
    done = [(hold, hold.order.actor, "hold.create") for hold in ledger.new_holds]
    done += [(hold, hold.voided_by, "hold.void") for hold in ledger.resolved]
    for hold, actor, name in done:
        if actor is not None:
            account = ledger.holdings[hold.order.debit_account_id]
            yield action(actor, name, account.user_id, account_id=account.id, hold_id=hold.id)


@isolating_failures
async def make_transfers(
    session: AsyncSession, orders: Sequence[AnyOrder], *, wait: bool = True
) -> list[Posted[Any] | Refusal]:
    """Make each transfer, hold and transaction that is not refused, as post_orders does."""
    async with begin(session):
        return await post_orders(session, orders, wait=wait)


make_all_transfers: Write[AnyOrder, [], Posted[Any]] = all_or_nothing(post_orders)


async def get_transfer(session: AsyncSession, id: int, caller: int) -> TransferPublic:
    """Return the transfer. Raises TransferNotFound, also where the caller is no party to it."""
    for transfer, *parties in await _find_transfers(session, [id]):
        if caller in (OPERATOR, *parties):
            return show(TransferPublic, transfer)
    raise TransferNotFound


@dataclass(frozen=True, slots=True)
class Sides:
    """What a transfer left on both accounts; who made it, as in Transfer; and the transfer that reversed it, if any."""

    initiator: int
    operator_key_id: int | None
    reversed_by: int | None
    debit_balance_after: int
    credit_balance_after: int


async def get_sides(session: AsyncSession, transfer_id: int) -> Sides:
    """Return both sides of a transfer, for the operator. Raises TransferNotFound."""
    for row in await execute(session, queries.select_sides(dialect_of(session)), id=transfer_id):
        return Sides(*row)
    raise TransferNotFound


async def list_transfers(
    session: AsyncSession, caller: int, filters: Mapping[str, Any], *, after: int, limit: int
) -> Part:
    """Return up to `limit` transfers (TransferPublic), newest first, from the first id less than `after`.

    The filters, which are values by name, are account_id, user_id, reference, transaction_id, hold_id, since
    (inclusive), before, and metadata, a dict; None is no filter. A user's list has only its own transfers. Where a part
    would need more than LOOKED transfers, it is short. Raises AccountNotFound as get_account does.
    """
    values = {name: value for name, value in filters.items() if value}
    user_id = values.pop("user_id", None)
    party = user_id if caller == OPERATOR else caller
    if "account_id" in values:
        await get_account(session, values["account_id"], caller)
    # All transfers of its own account are the caller's.
    if party and (caller == OPERATOR or "account_id" not in values):
        values["party"] = party
    query = queries.select_transfers(dialect_of(session), tuple(sorted(values)))
    values |= {"latest": min(values.get("before", LATEST), LATEST) + CLOCKS}
    values |= {"earliest": max(values.get("since", EARLIEST), EARLIEST) - CLOCKS}
    return await read_part(session, query, after=after, limit=limit, looked=LOOKED, **values)


FoundTransfer = tuple[Transfer, int | None, int | None]
"""A transfer, its sender and its recipient: the users of the two accounts, None for a system account."""


async def _find_transfers(session: AsyncSession, ids: Collection[int]) -> Sequence[FoundTransfer]:
    debit, credit = aliased(Account), aliased(Account)
    rows = await session.exec(
        select(Transfer, debit.user_id, credit.user_id)
        .join(debit, col(debit.id) == Transfer.debit_account_id)
        .join(credit, col(credit.id) == Transfer.credit_account_id)
        .where(col(Transfer.id).in_(ids))
    )
    return rows.all()


@dataclass(frozen=True, slots=True)
class Reversal:
    """A transfer that its recipient, or the operator, wants to reverse."""

    transfer_id: int
    caller: int
    idempotency_key: str | None = None
    actor: Actor | None = None


@isolating_failures
async def reverse_transfers(
    session: AsyncSession, reversals: Sequence[Reversal], *, wait: bool = True
) -> list[Posted[Any] | Refusal]:
    """Send the money of each transfer back, once.

    Refusals: TransferNotFound, ReceiverOnly, OperatorTransfer, ReversalNotReversible, and those of post_orders.
    """
    async with begin(session):
        rows = await _find_transfers(session, {reversal.transfer_id for reversal in reversals})
        found = {row[0].id: row for row in rows}
        orders = [_order_reversal(each, found.get(each.transfer_id)) for each in reversals]
        return await post_orders(session, orders, wait=wait)


def _order_reversal(reversal: Reversal, found: FoundTransfer | None) -> Order | Refusal:
    """Return the transfer that sends the money back, or why this caller cannot have it."""
    if found is None or reversal.caller not in (OPERATOR, *found[1:]):
        return TransferNotFound()
    transfer, _, recipient = found
    if reversal.caller not in (OPERATOR, recipient):
        return ReceiverOnly()
    # Deposits above all: a user who reversed one would withdraw money without the operator.
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
        actor=reversal.actor,
    )


@dataclass(frozen=True, slots=True)
class HoldEnd:
    """A hold to capture, the amount or all, or to void."""

    hold_id: int
    caller: int
    is_void: bool = False
    amount: int | None = None
    idempotency_key: str | None = None
    actor: Actor | None = None


@isolating_failures
async def end_holds(
    session: AsyncSession, ends: Sequence[HoldEnd], *, wait: bool = True
) -> list[Posted[Any] | Refusal]:
    """Capture or void each hold, once. Refusals: HoldNotFound, ReceiverOnly, and those of post_orders."""
    async with begin(session):
        rows = await execute(session, queries.select_holds(dialect_of(session)), ids=[*{end.hold_id for end in ends}])
        holds = {row[2]: _read_hold(*row[2:]) for row in rows}
        parties = {row[2]: row[:2] for row in rows}
        orders = [_order_end(each, holds.get(each.hold_id), parties.get(each.hold_id, ())) for each in ends]
        return await post_orders(session, orders, [*holds.values()], wait=wait)


def _order_end(end: HoldEnd, hold: HoldPosting | None, parties: Sequence[int | None]) -> AnyOrder | Refusal:
    """Return what ends a hold between these parties, sender and recipient, or why this caller cannot have it."""
    if hold is None or end.caller not in (OPERATOR, *parties):
        return HoldNotFound()
    if end.caller not in (OPERATOR, parties[1]):
        return ReceiverOnly()
    if end.is_void:
        return VoidOrder(hold.id, hold.order.debit_account_id, end.actor)
    return Order(
        end.caller,
        hold.order.debit_account_id,
        hold.order.credit_account_id,
        end.amount or hold.order.amount,
        hold.order.memo,
        end.idempotency_key,
        reference=hold.order.reference,
        metadata=hold.order.metadata,
        hold_id=hold.id,
        actor=end.actor,
    )


async def get_hold(session: AsyncSession, id: int, caller: int) -> HoldPublic:
    """Return the hold. Raises HoldNotFound, also where the caller is no party to it."""
    for row in await execute(session, queries.select_hold(dialect_of(session)), id=id, caller=caller, moment=now()):
        return _construct(HoldPublic, row)
    raise HoldNotFound


async def list_holds(
    session: AsyncSession, caller: int, account_id: int | None, status: HoldStatus | None, *, after: int, limit: int
) -> Part:
    """Return up to `limit` holds (HoldPublic), newest first, from the first id less than `after`.

    Those of an account, or of all that the caller has; the operator's list has all. A part is short where it would
    need more than LOOKED. Raises AccountNotFound as get_account does.
    """
    ids: Sequence[int] | None = None
    if account_id is not None:
        ids = [(await get_account(session, account_id, caller)).id]
    elif caller != OPERATOR:
        ids = [id or 0 for id in await session.exec(select(Account.id).where(Account.user_id == caller))]
    query = queries.select_holds_list(dialect_of(session), None if ids is None else len(ids), status)
    values: dict[str, Any] = {f"account_{number}": id for number, id in enumerate(ids or ())}
    if status:
        values["status"] = status
    sides = 2 * len(ids or ()) or 1
    share = min(LOOKED if status else limit + 1, max(1, LOOKED // sides))
    return await read_part(session, query, moment=now(), after=after, limit=limit, share=share, **values)


@dataclass(frozen=True, slots=True)
class Payment:
    """A deposit to an account or, with is_payout, a withdrawal from it, by the operator."""

    account_id: int
    amount: int
    memo: str | None
    idempotency_key: str | None
    is_payout: bool
    reference: str | None = None
    metadata: dict[str, str] | None = None
    actor: Actor | None = None


@isolating_failures
async def make_payments(
    session: AsyncSession, payments: Sequence[Payment], *, wait: bool = True
) -> list[Posted[Any] | Refusal]:
    """Transfer each amount from or to the system account of its currency. Refusals: those of post_orders."""
    async with begin(session):
        system = await _find_system_accounts(session, {payment.account_id for payment in payments})
        orders = [_order_payment(each, system.get(each.account_id)) for each in payments]
        return await post_orders(session, orders, wait=wait)


def _order_payment(payment: Payment, system_account_id: int | None) -> Order | Refusal:
    if system_account_id is None:
        return AccountNotFound()
    if system_account_id == payment.account_id:
        return SameAccount("account_id")
    debit, credit = system_account_id, payment.account_id
    if payment.is_payout:
        debit, credit = credit, debit
    return Order(
        OPERATOR,
        debit,
        credit,
        payment.amount,
        payment.memo,
        payment.idempotency_key,
        reference=payment.reference,
        metadata=payment.metadata,
        actor=payment.actor,
    )


async def _find_system_accounts(session: AsyncSession, account_ids: Collection[int]) -> dict[int, int]:
    """Return the id of the system account in the currency of each account; a missing one is opened."""
    system = aliased(Account)
    query = (
        select(Account.id, Account.currency, system.id)
        .outerjoin(system, (col(system.currency) == Account.currency) & col(system.user_id).is_(None))
        .where(col(Account.id).in_(account_ids))
    )
    found = (await session.exec(query)).all()
    missing = sorted({currency for _, currency, system_id in found if system_id is None})
    if missing:
        # In order of currency, against deadlocks. An account that another transaction has just opened is found then.
        opened = await insert_free(session, Account, [{"currency": each} for each in missing], returning=("id",))
        tell(session, (event("account.opened", id) for (id,) in opened), now())
        found = (await session.exec(query)).all()
    return {id: system_id for id, _, system_id in found if id is not None and system_id is not None}


# --- figures for the operator -----------------------------------------------------------------------------------------

MOST_COUNTED = 100_000
"""Rows that a figure counts, at most."""


async def count_newest(session: AsyncSession, model: type[SQLModel], since: datetime) -> int:
    """Return how many rows of a table with created_at are so new, up to MOST_COUNTED, by the servers' clocks."""
    query = queries.count_newest(dialect_of(session), model)
    [[number]] = await execute(session, query, since=since, most=MOST_COUNTED)
    return int(number)


# --- rows as the API shows them ---------------------------------------------------------------------------------------
# Nothing is validated again: it was when it came in.


def show(model: type[Shown], row: SQLModel, **others: Any) -> Shown:
    """Return the fields of the model that the row has, and the others."""
    fields = {name: getattr(row, name) for name in model.model_fields if name not in others}
    return model.model_construct(**fields, **others)


async def read_part(session: AsyncSession, query: Prepared, **parameters: Any) -> Part:
    """Return the part of a list that one of the queries of lists reads."""
    [row] = await execute(session, query, **parameters)
    return Part(*row)


def _construct(model: type[Shown], row: Sequence[Any]) -> Shown:
    """Return the model whose fields, in their order, are the row's values."""
    return model.model_construct(**dict(zip(model.model_fields, row, strict=True)))
