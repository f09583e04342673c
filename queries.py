"""The SELECTs that crud.py executes, each rendered once for each dialect."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlmodel import SQLModel, col, select
from sqlmodel.sql.sqltypes import UTCDateTime

from db.prepared import prepared
from db.statements import among, table_of
from ledger import BALANCE_MAX, CONTENT, OPERATOR, Holding
from models import (
    AccessToken,
    Account,
    AccountPublic,
    Entry,
    EntryPublic,
    Hold,
    HoldPublic,
    Profile,
    TokenPublic,
    Transaction,
    Transfer,
    User,
    UserPublic,
)


@prepared
def select_imported(dialect: str) -> Any:
    """SELECT those of the `keys` that a registration has."""
    key = col(User.registration_key_hash)
    return select(key).where(among(dialect, key, "keys"))


@prepared
def select_without_token(dialect: str) -> Any:
    """SELECT id and name of the active users with one of these `keys` who have never had a token."""
    has_token = select(AccessToken.id).where(AccessToken.user_id == User.id).exists()
    is_asked = among(dialect, col(User.registration_key_hash), "keys")
    return select(User.id, User.username).join(Profile).where(is_asked, Profile.status == "active", ~has_token)


@prepared
def select_token_owners(dialect: str) -> Any:
    """SELECT tokens by their `hashes`, with the fields of UserPublic.

    Columns instead of objects, since every call of a user begins with it.
    """
    token, columns = table_of(AccessToken).c, {**table_of(User).c, "status": table_of(Profile).c.status}
    user = (columns[name] for name in UserPublic.model_fields)
    return (
        sa.select(token.token_hash, token.revoked_at, token.expires_at, *user)
        .join_from(table_of(AccessToken), table_of(User))
        .join(table_of(Profile))
        .where(among(dialect, token.token_hash, "hashes"))
    )


@prepared
def select_users(dialect: str, filters: tuple[str, ...]) -> Any:
    """SELECT a part of the list of users, those with this `status` and whose name is LIKE the `pattern`."""
    user, columns = table_of(User).c, {**table_of(User).c, "status": table_of(Profile).c.status}
    conditions = {
        "status": columns["status"] == sa.bindparam("status"),
        "pattern": user.username.like(sa.bindparam("pattern"), escape="/"),
    }
    query = sa.select(*(columns[name] for name in UserPublic.model_fields)).join_from(table_of(User), table_of(Profile))
    return _part(dialect, query.where(*(conditions[name] for name in filters)), user.id)


@prepared
def select_tokens(dialect: str) -> Any:
    """SELECT a part of the list of a user's tokens."""
    token = table_of(AccessToken).c
    query = sa.select(*(token[name] for name in TokenPublic.model_fields))
    return _part(dialect, query.where(token.user_id == sa.bindparam("user_id")), token.id)


@prepared
def select_accounts(dialect: str, filters: tuple[str, ...]) -> Any:
    """SELECT a part of the list of accounts, those of `user_id` or all."""
    account = table_of(Account).c
    query = sa.select(*_shown_account())
    return _part(dialect, query.where(*(account[name] == sa.bindparam(name) for name in filters)), account.id)


@prepared
def select_account(_: str) -> Any:
    """SELECT the fields of AccountPublic of the account `id`, if the caller may see it."""
    return sa.select(*_shown_account()).where(_is_shown_account())


def _shown_account() -> Iterator[sa.ColumnElement[Any]]:
    """Return the fields of AccountPublic."""
    account, hold = table_of(Account).c, table_of(Hold).c
    expired = sa.select(sa.func.coalesce(sa.func.sum(hold.amount), 0)).where(
        _has_expired(), hold.debit_account_id == account.id
    )
    # Most accounts hold nothing.
    held = sa.cast(sa.case((account.held > 0, account.held - expired.scalar_subquery()), else_=0), sa.BigInteger)
    most, available = sa.literal_column(str(BALANCE_MAX), sa.BigInteger), account.balance - held + account.credit_limit
    shown = sa.case((account.user_id.is_(None), sa.null()), (available > most, most), else_=available)
    columns = {**account, "held": held.label("held"), "available": shown.label("available")}
    return (columns[name] for name in AccountPublic.model_fields)


def _has_expired() -> sa.ColumnElement[bool]:
    """Return the condition that a hold has expired at this `moment`, and its row does not say so yet."""
    hold = table_of(Hold).c
    # The words of its index, without a parameter.
    return (hold.status == sa.literal_column("'open'")) & (
        hold.expires_at <= sa.bindparam("moment", type_=hold.expires_at.type)
    )


def _is_shown_account() -> sa.ColumnElement[bool]:
    """Return the condition that an account is the one with this `id`, and the `caller` is its owner or the operator."""
    account, caller = table_of(Account).c, sa.bindparam("caller", type_=sa.BigInteger)
    is_operators = caller == sa.literal_column(str(OPERATOR))
    return (account.id == sa.bindparam("id")) & (is_operators | (account.user_id == caller))


@prepared
def select_newest_entry(_: str) -> Any:
    """SELECT balance_after and seq of an account's newest entry that is not newer than this instant.

    No entry is older than the one before it (Ledger.moment), so this is a binary search: 20 look-ups by primary key
    among a million. An index by instant would make each transfer write to it twice.
    """
    entry = table_of(Entry).c
    is_the_accounts = entry.account_id == sa.bindparam("id")
    # The entry has a seq from `low` to `high`; 0 is none.
    nothing, newest = sa.literal(0, sa.BigInteger), sa.func.max(entry.seq)
    search = sa.select(nothing.label("low"), newest.label("high")).where(is_the_accounts).cte("search", recursive=True)
    low, high = search.c
    is_not_newer = entry.created_at <= sa.bindparam("at")
    search = search.union_all(
        sa.select(sa.case((is_not_newer, entry.seq), else_=low), sa.case((is_not_newer, high), else_=entry.seq - 1))
        .join_from(search, table_of(Entry), is_the_accounts & (entry.seq == (low + high + 1) // 2))
        .where(low < high)
    )
    found = sa.select(sa.func.max(search.c.low)).scalar_subquery()
    return sa.select(entry.balance_after, entry.seq).where(is_the_accounts, entry.seq == found)


@prepared
def select_entries(dialect: str) -> Any:
    """SELECT the fields of EntryPublic of an account's entries, newest first, as select_account shows it.

    Who may not see the account waits no longer for a long statement: so nobody learns that it is there.
    """
    entry, transfer = table_of(Entry).c, table_of(Transfer).c
    counterparty = sa.case((entry.amount < 0, transfer.credit_account_id), else_=transfer.debit_account_id)
    columns = {**transfer, **entry, "counterparty_account_id": counterparty.label("counterparty_account_id")}
    query = sa.select(*(columns[name] for name in EntryPublic.model_fields)).join_from(
        table_of(Entry), table_of(Transfer)
    )
    is_shown = sa.exists().where(_is_shown_account())
    return _part(dialect, query.where(entry.account_id == sa.bindparam("id"), is_shown), entry.seq, newest_first=True)


def _part(dialect: str, query: Any, position: sa.ColumnElement[int], *, newest_first: bool = False) -> Any:
    """SELECT the `limit` rows `after` a position as a JSON array, and the position of the last if there are more.

    The database writes the JSON, which is less work than to take the rows apart: and Python's threads hinder each other
    at each row that SQLite returns.
    """
    order, is_after = position.asc(), position > sa.bindparam("after")
    if newest_first:
        order, is_after = position.desc(), position < sa.bindparam("after")
    places = (sa.func.row_number().over(order_by=order).label("place"), position.label("position"))
    limit = sa.bindparam("limit", type_=sa.Integer)
    rows = query.add_columns(*places).where(is_after).order_by(order).limit(limit + 1).subquery()
    shown = [_shown(dialect, rows.c[column.name]) for column in query.selected_columns]
    place = rows.c.place
    source: sa.FromClause = rows
    if dialect == "sqlite":
        pairs: Any = ((sa.literal_column(f"'{column.name}'"), column) for column in shown)
        # In the order of the rows.
        items = sa.func.json_group_array(sa.func.json_object(*chain.from_iterable(pairs)))
    else:
        # Shorter than json_build_object, and less work.
        item = sa.select(*shown).correlate(rows).lateral("item")
        source = rows.join(item, sa.true())
        items = sa.func.json_agg(postgresql.aggregate_order_by(sa.func.row_to_json(item.table_valued()), place))
    return sa.select(
        sa.func.coalesce(sa.cast(items.filter(place <= limit), sa.Text), "[]"),
        sa.case((sa.func.count() > limit, sa.func.max(rows.c.position).filter(place == limit))),
    ).select_from(source)


def _shown(dialect: str, column: Any) -> sa.Label[Any]:
    """Return the column as JSON shows it, instants as pydantic writes them."""
    shown: sa.ColumnElement[Any] = _instant(dialect, column) if isinstance(column.type, UTCDateTime) else column
    return shown.label(column.name)


def _instant(dialect: str, column: Any) -> Any:
    if dialect == "sqlite":
        text = sa.func.replace(sa.type_coerce(column, sa.Text), " ", "T").concat("Z")
    else:
        text = sa.func.to_char(sa.func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    return sa.func.replace(text, ".000000Z", "Z")


@prepared
def select_holdings(dialect: str, mode: Literal["wait", "skip", "read"]) -> Any:
    """SELECT … FOR UPDATE the accounts of orders, given as four arrays; to read, without FOR UPDATE."""
    account = table_of(Account).c
    query = sa.select(*(account[field.name] for field in fields(Holding)))
    if dialect == "sqlite":
        # It has one writer at a time, and locks no rows.
        return query.where(among(dialect, account.id, "ids"))
    names = ("debits", "credits", "callers", "amounts")
    arrays = (sa.bindparam(name, type_=sa.ARRAY(sa.BigInteger)) for name in names)
    orders = sa.func.unnest(*arrays).table_valued(*names, with_ordinality="place", name="orders")
    order = orders.render_derived().c
    debit = table_of(Account).alias("debit").c
    by_operator = order.callers == sa.literal_column(str(OPERATOR))
    so_far = sa.func.sum(order.amounts).over(partition_by=order.debits, order_by=order.place)
    available = debit.balance - debit.held + debit.credit_limit
    credit_id = sa.case((by_operator | (available >= so_far), order.credits))
    wanted = sa.select(sa.func.unnest(postgresql.array([debit.id, credit_id]))).where(
        debit.id == order.debits, by_operator | (debit.user_id == order.callers)
    )
    query = query.where(account.id == sa.any_(sa.func.array(wanted.scalar_subquery())))
    if mode == "read":
        return query
    # In id order, so that opposite transfers cannot deadlock.
    return query.order_by(account.id).with_for_update(skip_locked=mode == "skip")


@prepared
def select_inactive(dialect: str) -> Any:
    """SELECT the users of the accounts `ids` who are not active."""
    profile, account = table_of(Profile).c, table_of(Account).c
    return (
        sa.select(profile.user_id)
        .join_from(table_of(Account), table_of(Profile), profile.user_id == account.user_id)
        .where(among(dialect, account.id, "ids"), profile.status != "active")
    )


@prepared
def select_reversed(dialect: str) -> Any:
    """SELECT those of the transfers `ids` that were reversed."""
    reverses_id = table_of(Transfer).c.reverses_id
    return sa.select(reverses_id).where(among(dialect, reverses_id, "ids"))


@prepared
def select_new_ids(dialect: str, model: type[SQLModel]) -> Any:
    """SELECT a new id of a row for each of `places`, the numbers from 1."""
    if dialect == "sqlite":
        # Whoever holds the write lock may count on: SQLite itself takes the next id.
        id = table_of(model).c.id
        place = sa.func.json_each(sa.bindparam("places", type_=sa.JSON)).table_valued("value").c.value
        newest = sa.select(sa.func.coalesce(sa.func.max(id), 0)).scalar_subquery()
        return sa.select(newest + sa.cast(place, sa.BigInteger))
    places = sa.func.unnest(sa.bindparam("places", type_=sa.ARRAY(sa.BigInteger))).table_valued("place")
    # A subquery is evaluated once, a function for each row.
    sequence = sa.select(sa.func.pg_get_serial_sequence(table_of(model).name, "id")).scalar_subquery()
    next_id = sa.func.nextval(sequence)
    return sa.select(sa.type_coerce(next_id, sa.BigInteger)).select_from(places)


@prepared
def select_postings(dialect: str) -> Any:
    """SELECT the transfers with one of these `keys` and `callers`, and the balances that they left on both accounts."""
    transfer = table_of(Transfer).c
    return _postings().where(_has_key(dialect, transfer))


@prepared
def select_transactions(dialect: str) -> Any:
    """SELECT the transactions with one of these `keys` and `callers`, a row for each transfer, as select_postings."""
    transfer, transaction = table_of(Transfer).c, table_of(Transaction).c
    names = ("id", "created_at", "initiator", "idempotency_key", "reference", "metadata")
    query = _postings(*(transaction[name] for name in names))
    query = query.join(table_of(Transaction), transaction.id == transfer.transaction_id)
    # Those of transactions that were made at the same time can have their ids by turns.
    return query.where(_has_key(dialect, transaction)).order_by(transaction.id, transfer.id)


def _postings(*first: sa.ColumnElement[Any]) -> sa.Select[Any]:
    transfers, debit, credit = table_of(Transfer), table_of(Entry).alias(), table_of(Entry).alias()
    transfer = transfers.c
    content = (transfer[name] for name in CONTENT)
    balances = (debit.c.balance_after, credit.c.balance_after)
    return (
        sa.select(*first, transfer.id, transfer.currency, transfer.created_at, *balances, *content)
        .join_from(
            transfers, debit, (debit.c.transfer_id == transfer.id) & (debit.c.account_id == transfer.debit_account_id)
        )
        .join(credit, (credit.c.transfer_id == transfer.id) & (credit.c.account_id == transfer.credit_account_id))
    )


def _has_key(dialect: str, column: Any) -> sa.ColumnElement[bool]:
    return sa.and_(among(dialect, column.initiator, "callers"), among(dialect, column.idempotency_key, "keys"))


@prepared
def select_holds_by_key(dialect: str) -> Any:
    """SELECT the holds with one of these `keys` and `callers`."""
    return sa.select(*_content_of_hold()).where(_has_key(dialect, table_of(Hold).c))


@prepared
def select_holds(dialect: str) -> Any:
    """SELECT the holds `ids`, each with its status and the users of its debit and credit account."""
    hold, debit, credit = table_of(Hold).c, table_of(Account).alias(), table_of(Account).alias()
    return (
        sa.select(*_content_of_hold(), hold.status, debit.c.user_id, credit.c.user_id)
        .join_from(table_of(Hold), debit, debit.c.id == hold.debit_account_id)
        .join(credit, credit.c.id == hold.credit_account_id)
        .where(among(dialect, hold.id, "ids"))
    )


def _content_of_hold() -> list[sa.ColumnElement[Any]]:
    hold = table_of(Hold).c
    content = (hold.get(name, sa.null()) for name in CONTENT)
    return [hold.id, hold.currency, hold.created_at, hold.expires_at, *content]


@prepared
def select_expired(dialect: str) -> Any:
    """SELECT id, debit account and amount of the holds on the accounts `ids` that have expired at this `moment`."""
    hold = table_of(Hold).c
    is_asked = among(dialect, hold.debit_account_id, "ids")
    return sa.select(hold.id, hold.debit_account_id, hold.amount).where(_has_expired(), is_asked)


@prepared
def select_hold(_: str) -> Any:
    """SELECT the fields of HoldPublic of the hold `id`, if the caller may see it."""
    hold, caller = table_of(Hold).c, sa.bindparam("caller", type_=sa.BigInteger)
    party = table_of(Account).alias()
    is_partys = sa.exists().where(
        party.c.id.in_([hold.debit_account_id, hold.credit_account_id]), party.c.user_id == caller
    )
    is_operators = caller == sa.literal_column(str(OPERATOR))
    return sa.select(*shown_hold()).where(hold.id == sa.bindparam("id"), is_operators | is_partys)


def shown_hold() -> Iterator[sa.ColumnElement[Any]]:
    """Return the fields of HoldPublic at this `moment`."""
    hold = table_of(Hold).c
    status = sa.case((_has_expired(), sa.literal_column("'expired'")), else_=hold.status)
    ended = sa.case((status == sa.literal_column("'expired'"), hold.expires_at), else_=hold.resolved_at)
    columns = {**hold, "status": status.label("status"), "resolved_at": ended.label("resolved_at")}
    return (columns["metadata" if name == "details" else name] for name in HoldPublic.model_fields)
