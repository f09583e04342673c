"""The SELECTs that crud.py executes, each rendered once for each dialect."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import chain, product
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlmodel import SQLModel, col, select
from sqlmodel.sql.sqltypes import UTCDateTime

from db.prepared import prepared
from db.statements import among, counted, table_of
from ledger import BALANCE_MAX, CONTENT, OPERATOR, Holding
from models import (
    AccessToken,
    Account,
    AccountPublic,
    ActionPublic,
    Entry,
    EntryPublic,
    Event,
    Hold,
    HoldPublic,
    KeyPublic,
    OperatorAction,
    OperatorKey,
    Profile,
    TokenPublic,
    Transaction,
    Transfer,
    TransferPublic,
    User,
    UserPublic,
    UserRecord,
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
def insert_registration_events(dialect: str) -> Any:
    """INSERT the events of the users `ids`, who were just registered, and of the tokens with these `hashes`."""
    user, account, token = (table_of(model).c for model in (User, Account, AccessToken))
    told = (
        ("user.registered", user.id, among(dialect, user.id, "ids")),
        ("account.opened", account.id, among(dialect, account.user_id, "ids")),
        ("token.issued", token.id, among(dialect, token.token_hash, "hashes")),
    )
    moment = sa.bindparam("moment", type_=table_of(Event).c.created_at.type)
    all_of = sa.func.json_group_array if dialect == "sqlite" else sa.func.json_agg
    arms = (
        sa.select(sa.literal_column(f"'{type}'"), all_of(id), sa.func.count(), moment)
        .where(is_new)
        .having(sa.func.count() > 0)
        for type, id, is_new in told
    )
    columns = ["type", "subject_ids", "size", "created_at"]
    return counted(dialect, sa.insert(table_of(Event)).from_select(columns, sa.union_all(*arms)))


@prepared
def select_users(dialect: str, filters: tuple[str, ...]) -> Any:
    """SELECT a part of the list of users, those with these values and whose name is LIKE the `pattern`."""
    user, status = table_of(User).c, table_of(Profile).c.status
    columns = {**user, "status": status, "details": user.metadata}
    conditions = {
        **{name: columns[name] == sa.bindparam(name) for name in ("status", "email", "reference")},
        "pattern": user.username.like(sa.bindparam("pattern"), escape="/"),
    }
    query = sa.select(*(columns[name] for name in UserRecord.model_fields)).join_from(table_of(User), table_of(Profile))
    return part(dialect, query.where(*(conditions[name] for name in filters)), user.id)


@prepared
def select_references(dialect: str) -> Any:
    """SELECT those of the `references` that users have, with the users' ids."""
    user = table_of(User).c
    return sa.select(user.reference, user.id).where(among(dialect, user.reference, "references"))


@prepared
def select_tokens(dialect: str, newest_first: bool = False) -> Any:
    """SELECT a part of the list of a user's tokens."""
    token = table_of(AccessToken).c
    query = sa.select(*(token[name] for name in TokenPublic.model_fields))
    is_users = token.user_id == sa.bindparam("user_id")
    return part(dialect, query.where(is_users), token.id, newest_first=newest_first)


@prepared
def select_admitted_keys(dialect: str) -> Any:
    """SELECT the operator's keys by their `hashes`."""
    key = table_of(OperatorKey).c
    columns = (key.key_hash, key.revoked_at, key.expires_at, key.id, key.scopes, key.name)
    return sa.select(*columns).where(among(dialect, key.key_hash, "hashes"))


@prepared
def select_keys(dialect: str) -> Any:
    """SELECT a part of the list of the operator's keys."""
    key = table_of(OperatorKey).c
    return part(dialect, sa.select(*(key[name] for name in KeyPublic.model_fields)), key.id)


@prepared
def select_actions(dialect: str, filters: tuple[str, ...]) -> Any:
    """SELECT a part of the list of the operator's actions, newest first: those with these values.

    As select_transfers: one of the filters finds candidates by index, and at most `looked` are judged by the others.
    """
    actions, account = table_of(OperatorAction), table_of(Account).c
    finders = ("transfer_id", "request_id", "user_id", "account_id", "key_id")
    finder = next((name for name in finders if name in filters), "")
    rest = [name for name in filters if name != finder or name == "account_id"]
    id, after = actions.c.id, sa.bindparam("after", type_=sa.BigInteger)
    is_sought, order = [id < after], [id.desc()]
    if finder in ("transfer_id", "request_id"):
        is_sought.append(actions.c[finder] == sa.bindparam(finder))
        # Few have it: + 0, as in select_transfers.
        order = [(id + 0).desc()]
    elif finder:
        # Those of an account are found by its owner, who has few accounts.
        column = actions.c["user_id" if finder == "account_id" else finder]
        wanted: Any = sa.bindparam(finder, type_=sa.BigInteger)
        if finder == "account_id":
            wanted = sa.select(account.user_id).where(account.id == wanted).scalar_subquery()
        place = sa.tuple_(column, id)
        # Compared as pairs, as in select_holds_list; in the words of its index.
        is_sought = [column.is_not(None), place < sa.tuple_(wanted, after)]
        is_sought.append(place > sa.tuple_(wanted, sa.literal_column("0")))
        order = [column.desc(), id.desc()]
    most = sa.bindparam("looked", type_=sa.Integer) if rest else sa.bindparam("limit", type_=sa.Integer) + 1
    read = sa.select(actions).where(*is_sought).order_by(*order).limit(most).cte("read")
    lowest = sa.select(sa.func.min(read.c.id)).having(sa.func.count() == most).scalar_subquery()
    query = sa.select(*(read.c[name] for name in ActionPublic.model_fields))
    query = query.where(*(read.c[name] == sa.bindparam(name) for name in rest))
    return part(dialect, query, read.c.id, newest_first=True, otherwise=lowest)


@prepared
def select_accounts(dialect: str, filters: tuple[str, ...]) -> Any:
    """SELECT a part of the list of accounts, those of `user_id` or all."""
    account = table_of(Account).c
    query = sa.select(*_shown_account())
    return part(dialect, query.where(*(account[name] == sa.bindparam(name) for name in filters)), account.id)


@prepared
def select_owners(dialect: str) -> Any:
    """SELECT … FOR NO KEY UPDATE the users `ids`, with their statuses; rows that refer to them can be inserted."""
    user, profile = table_of(User), table_of(Profile)
    query = sa.select(user.c.id, profile.c.status).join_from(user, profile).where(among(dialect, user.c.id, "ids"))
    # In id order, as crud.USERS.
    return query.order_by(user.c.id).with_for_update(key_share=True)


@prepared
def select_labels(dialect: str) -> Any:
    """SELECT owner, currency and label of all accounts of the users `ids`."""
    account = table_of(Account).c
    return sa.select(account.user_id, account.currency, account.label).where(among(dialect, account.user_id, "ids"))


@prepared
def select_account(_: str) -> Any:
    """SELECT the fields of AccountPublic of the account `id`, if the caller may see it."""
    return sa.select(*_shown_account()).where(_is_shown_account())


def _shown_account() -> Iterator[sa.ColumnElement[Any]]:
    """Return the fields of AccountPublic."""
    account, hold = table_of(Account).c, table_of(Hold).c
    expired = sa.select(sa.func.coalesce(sa.func.sum(hold.amount), 0)).where(
        has_expired(), hold.debit_account_id == account.id
    )
    # Most accounts hold nothing.
    held = sa.cast(sa.case((account.held > 0, account.held - expired.scalar_subquery()), else_=0), sa.BigInteger)
    most, available = sa.literal_column(str(BALANCE_MAX), sa.BigInteger), account.balance - held + account.credit_limit
    shown = sa.case((account.user_id.is_(None), sa.null()), (available > most, most), else_=available)
    columns = {**account, "held": held.label("held"), "available": shown.label("available")}
    return (columns[name] for name in AccountPublic.model_fields)


def has_expired() -> sa.ColumnElement[bool]:
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
    """SELECT balance_after and seq of an account's newest entry that is not newer than this instant."""
    entry, account = table_of(Entry).c, table_of(Account).c
    found = _search_entries("search", account.id == sa.bindparam("id"), entry.created_at <= sa.bindparam("at"))
    is_found = (entry.account_id == found.c.id) & (entry.seq == found.c.place)
    return sa.select(entry.balance_after, entry.seq).join_from(found, table_of(Entry), is_found)


def _search_entries(name: str, is_searched: Any, condition: sa.ColumnElement[bool]) -> sa.Subquery:
    """Return the accounts that are searched, each with the seq of the newest entry that fulfils a condition, or 0.

    The condition holds for no entry after one that does not fulfil it: neither instants (Ledger.moment) nor ids of
    transfers, which are drawn once the accounts are locked, fall in order of seq.
    """
    entry, account = table_of(Entry).c, table_of(Account).c
    start = sa.select(account.id, sa.literal(0, sa.BigInteger).label("low"), account.version.label("high"))
    return _search(
        name,
        start.where(is_searched),
        entry.seq,
        lambda account_id, middle: (entry.account_id == account_id) & (entry.seq == middle),
        condition,
    )


def _search_ids(model: type[SQLModel], name: str, condition: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Return an id that divides rows, those that fulfil a condition, which the first ones do, from the others."""
    row = table_of(model).c
    ends = (sa.select(end(row.id)).scalar_subquery() for end in (sa.func.min, sa.func.max))
    oldest, newest = (sa.func.coalesce(end, 0) for end in ends)
    start = sa.select(sa.literal(0, sa.BigInteger).label("id"), (oldest - 1).label("low"), newest.label("high"))
    among_all = table_of(model).alias().c.id
    found = _search(
        name,
        start,
        row.id,
        # Some ids are no row's.
        lambda _, middle: (
            row.id
            == sa.select(sa.func.max(among_all))
            .where(among_all <= middle)
            .scalar_subquery()
            .correlate_except(among_all.table)
        ),
        condition,
    )
    return sa.select(found.c.place).scalar_subquery()


def _search(
    name: str,
    start: sa.Select[Any],
    position: sa.ColumnElement[int],
    is_at: Callable[[Any, Any], sa.ColumnElement[bool]],
    condition: sa.ColumnElement[bool],
) -> sa.Subquery:
    """Return each id of `start`, with the greatest place from `low` to `high` up to which a condition holds.

    A binary search: 20 look-ups by primary key among a million rows. An index for it would cost each transfer a write.
    """
    search = start.cte(name, recursive=True)
    id, low, high = search.c
    middle = (low + high + 1) // 2
    search = search.union_all(
        sa.select(id, sa.case((condition, middle), else_=low), sa.case((condition, high), else_=position - 1))
        .join_from(search, position.table, is_at(id, middle))
        .where(low < high)
    )
    return sa.select(search.c.id, search.c.low.label("place")).where(search.c.low == search.c.high).subquery()


@prepared
def count_newest(_: str, model: type[SQLModel]) -> Any:
    """SELECT the number of rows that were made `since` an instant, up to `most`: the search finds where they begin."""
    row = table_of(model).c
    is_new = row.id > _search_ids(model, "past", row.created_at < sa.bindparam("since"))
    newest = sa.select(row.id).where(is_new).limit(sa.bindparam("most", type_=sa.Integer)).subquery()
    return sa.select(sa.func.count()).select_from(newest)


@prepared
def select_sides(_: str) -> Any:
    """SELECT initiator, key and reversal of the transfer `id`, and the balances that it left on both accounts."""
    transfers, reversal = table_of(Transfer), table_of(Transfer).alias()
    sides = [table_of(Entry).alias(name) for name in ("debit", "credit")]
    query = sa.select(
        transfers.c.initiator, transfers.c.operator_key_id, reversal.c.id, *(side.c.balance_after for side in sides)
    )
    query = query.select_from(transfers.outerjoin(reversal, reversal.c.reverses_id == transfers.c.id))
    for side, name in zip(sides, ("debit_account_id", "credit_account_id"), strict=True):
        is_its = (side.c.transfer_id == transfers.c.id) & (side.c.account_id == transfers.c[name])
        query = query.join(side, is_its)
    return query.where(transfers.c.id == sa.bindparam("id"))


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
    return part(dialect, query.where(entry.account_id == sa.bindparam("id"), is_shown), entry.seq, newest_first=True)


@prepared
def select_transfers(dialect: str, filters: tuple[str, ...]) -> Any:
    """SELECT a part of the list of transfers, newest first: those with these values, by the names of the parameters.

    One of the filters finds candidates by index. Where there are others, at most `looked` candidates are judged by
    them: if there are more, the part may be short, with the position where the next one begins.
    """
    transfers = table_of(Transfer)
    index = next((name for name in ("hold_id", "transaction_id", "reference") if name in filters), "")
    finder = index or next((name for name in ("account_id", "party") if name in filters), "")
    by_entries = finder in ("account_id", "party")
    rest = [name for name in filters if name != finder and not (by_entries and name in ("since", "before"))]
    most = sa.bindparam("looked", type_=sa.Integer) if rest else sa.bindparam("limit", type_=sa.Integer) + 1
    found: sa.FromClause
    if by_entries:
        found, lowest = _find_by_entries(filters, most)
    else:
        id = transfers.c.id
        is_older, moment = id < sa.bindparam("after"), transfers.c.created_at
        is_sought = [is_older]
        if index:
            is_sought.append(_transfer_conditions(dialect, transfers.c)[index])
        if not index and "before" in filters:
            # One limit in each direction: SQLite would go through all from the higher of two.
            is_sought = [id <= _search_ids(Transfer, "until", is_older & (moment < sa.bindparam("latest")))]
        if not index and "since" in filters:
            is_sought.append(id > _search_ids(Transfer, "past", moment < sa.bindparam("earliest")))
        # A transaction has few: + 0, so that PostgreSQL does not go through all in order of id until it has met them.
        order = id + 0 if index == "transaction_id" else id
        found = sa.select(id).where(*is_sought).order_by(order.desc()).limit(most).cte("found")
        lowest = sa.select(sa.func.min(found.c.id)).having(sa.func.count() == most).scalar_subquery()
    # An outer join and OFFSET, so that each candidate is looked up by its id, whatever is expected of the filters.
    lookups = sa.select(transfers, found.c.id.label("position")).order_by(found.c.id.desc()).offset(0)
    looked_up = lookups.join_from(found, transfers, transfers.c.id == found.c.id, isouter=True).subquery().c
    columns = {**looked_up, "details": looked_up["metadata"]}
    query = sa.select(*(columns[name] for name in TransferPublic.model_fields))
    query = query.where(*(_transfer_conditions(dialect, looked_up)[name] for name in rest))
    return part(dialect, query, looked_up.position, newest_first=True, otherwise=lowest)


def _transfer_conditions(dialect: str, transfer: Any) -> dict[str, sa.ColumnElement[bool]]:
    """Return what each filter of select_transfers asks of a transfer, given its columns."""
    account = table_of(Account).c
    sides = transfer.debit_account_id, transfer.credit_account_id
    own = sa.select(account.id).where(account.user_id == sa.bindparam("party"))
    if dialect == "sqlite":
        wanted = sa.func.json_each(sa.bindparam("metadata", type_=sa.JSON)).table_valued("key", "value").c
        # In quotes, since a key may have hyphens.
        text = sa.func.json_extract(transfer["metadata"], sa.literal_column("'$.\"'").concat(wanted.key).concat('"'))
        has_metadata = ~sa.exists().where(text.is_distinct_from(wanted.value))
    else:
        binary = sa.cast(transfer["metadata"], postgresql.JSONB)
        has_metadata = binary.contains(sa.bindparam("metadata", type_=postgresql.JSONB))
    return {
        "account_id": sa.or_(*(side == sa.bindparam("account_id") for side in sides)),
        "party": sa.or_(*(side.in_(own) for side in sides)),
        **{name: transfer[name] == sa.bindparam(name) for name in ("hold_id", "transaction_id", "reference")},
        "since": transfer.created_at >= sa.bindparam("since"),
        "before": transfer.created_at < sa.bindparam("before"),
        "metadata": has_metadata,
    }


def _find_by_entries(filters: tuple[str, ...], most: Any) -> tuple[sa.FromClause, sa.ScalarSelect[int]]:
    """Return the ids of the newest transfers of an account, or of all of a user's, and the lowest id if there are more.

    Of each account, the same number is read, up to `most`: below the highest id that is the last one of its account,
    others may be missing.
    """
    entry, account = table_of(Entry).c, table_of(Account).c
    is_searched = account.id == sa.bindparam("account_id")
    if "account_id" not in filters:
        is_searched = account.user_id == sa.bindparam("party")
    is_older = entry.transfer_id < sa.bindparam("after")
    if "before" in filters:
        is_older &= entry.created_at < sa.bindparam("before")
    newest = _search_entries("newest", is_searched, is_older)
    source: sa.FromClause = newest
    low: sa.ColumnElement[int] = sa.literal(0, sa.BigInteger)
    if "since" in filters:
        oldest = _search_entries("oldest", is_searched, entry.created_at < sa.bindparam("since"))
        source, low = newest.join(oldest, newest.c.id == oldest.c.id), oldest.c.place
    spans = sa.select(newest.c.id, newest.c.place.label("high"), low.label("low")).select_from(source)
    span = spans.where(newest.c.place > low).cte("spans")
    share = sa.select(sa.bindparam("looked", type_=sa.Integer) // sa.func.count()).select_from(span).scalar_subquery()
    bottom = span.c.high - sa.case((most > share, share), else_=most)
    ends = sa.select(span, sa.case((bottom > span.c.low, bottom), else_=span.c.low).label("bottom")).subquery()
    is_read = (entry.account_id == ends.c.id) & (entry.seq > ends.c.bottom) & (entry.seq <= ends.c.high)
    is_last = (entry.seq == ends.c.bottom + 1) & (ends.c.bottom > ends.c.low)
    read = sa.select(entry.transfer_id.label("id"), is_last.label("is_last"))
    # Used twice, and so read first: else PostgreSQL might search by the ids themselves. An outer join begins with the
    # accounts, where SQLite, after ANALYZE, might begin with all entries.
    found = read.join_from(ends, table_of(Entry), is_read, isouter=True).cte("read")
    lowest = sa.select(sa.func.max(found.c.id)).where(found.c.is_last).scalar_subquery()
    # A transfer between two accounts of the user has two entries.
    return sa.select(found.c.id).distinct().where(found.c.id >= sa.func.coalesce(lowest, 0)).subquery(), lowest


def part(
    dialect: str,
    query: Any,
    position: sa.ColumnElement[int],
    *,
    newest_first: bool = False,
    otherwise: sa.ScalarSelect[int] | None = None,
) -> Any:
    """SELECT the `limit` rows `after` a position as a JSON array, and the position of the last if there are more.

    If there are not, the position is `otherwise`.

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
        sa.case((sa.func.count() > limit, sa.func.max(rows.c.position).filter(place == limit)), else_=otherwise),
    ).select_from(source)


def _shown(dialect: str, column: Any) -> sa.Label[Any]:
    """Return the column as JSON shows it, instants as pydantic writes them."""
    shown: sa.ColumnElement[Any] = _instant(dialect, column) if isinstance(column.type, UTCDateTime) else column
    if dialect == "sqlite" and isinstance(column.type, sa.JSON):
        # A text there, which would be shown as one.
        shown = sa.func.json(column)
    elif dialect == "sqlite" and isinstance(column.type, sa.Boolean):
        shown = sa.func.json(sa.case((column, "true"), else_="false"))
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
    """SELECT the holds `ids`, each after the users of its debit and credit account."""
    hold, debit, credit = table_of(Hold).c, table_of(Account).alias(), table_of(Account).alias()
    return (
        sa.select(debit.c.user_id, credit.c.user_id, *_content_of_hold())
        .join_from(table_of(Hold), debit, debit.c.id == hold.debit_account_id)
        .join(credit, credit.c.id == hold.credit_account_id)
        .where(among(dialect, hold.id, "ids"))
    )


@prepared
def select_statuses(dialect: str) -> Any:
    """SELECT id and status of the holds `ids`."""
    hold = table_of(Hold).c
    return sa.select(hold.id, hold.status).where(among(dialect, hold.id, "ids"))


def _content_of_hold() -> list[sa.ColumnElement[Any]]:
    hold = table_of(Hold).c
    content = (hold.get(name, sa.null()) for name in CONTENT)
    return [hold.id, hold.currency, hold.created_at, hold.expires_at, *content]


@prepared
def select_expired(dialect: str) -> Any:
    """SELECT id, debit account and amount of the holds on the accounts `ids` that have expired at this `moment`."""
    hold = table_of(Hold).c
    is_asked = among(dialect, hold.debit_account_id, "ids")
    return sa.select(hold.id, hold.debit_account_id, hold.amount).where(has_expired(), is_asked)


@prepared
def select_accounts_with_expired(_: str) -> Any:
    """SELECT up to `limit` accounts with holds that have expired at this `moment`, those of the oldest first."""
    hold = table_of(Hold).c
    oldest = sa.select(hold.debit_account_id).where(has_expired()).order_by(hold.expires_at)
    return sa.select(oldest.limit(sa.bindparam("limit", type_=sa.Integer)).subquery().c[0]).distinct()


@prepared
def select_hold(_: str) -> Any:
    """SELECT the fields of HoldPublic of the hold `id`, if the caller may see it."""
    hold, caller = table_of(Hold).c, sa.bindparam("caller", type_=sa.BigInteger)
    party = table_of(Account).alias()
    is_partys = sa.exists().where(
        party.c.id.in_([hold.debit_account_id, hold.credit_account_id]), party.c.user_id == caller
    )
    is_operators = caller == sa.literal_column(str(OPERATOR))
    return sa.select(*_shown_hold()).where(hold.id == sa.bindparam("id"), is_operators | is_partys)


@prepared
def select_holds_list(dialect: str, accounts: int | None, status: str | None) -> Any:
    """SELECT a part of the list of holds, newest first: all, or of `account_0`, …; with this `status` at this `moment`.

    The newest `share` of each side of each account are read: below the highest id that is the last one of its side,
    others may be missing, so the part may be short, as in select_transfers.
    """
    holds, hold = table_of(Hold), table_of(Hold).c
    share, after = sa.bindparam("share", type_=sa.Integer), sa.bindparam("after", type_=sa.BigInteger)
    if accounts is None:
        sides = [sa.select(hold.id, sa.literal(0).label("side")).where(hold.id < after).order_by(hold.id.desc())]
    else:
        sides = []
        for number, column in product(range(accounts), (hold.debit_account_id, hold.credit_account_id)):
            account = sa.bindparam(f"account_{number}", type_=sa.BigInteger)
            place = sa.tuple_(column, hold.id)
            # Compared as pairs, which only the index of this column can find and order.
            is_asked = (place < sa.tuple_(account, after)) & (place > sa.tuple_(account, sa.literal_column("0")))
            side = sa.select(hold.id, sa.literal(len(sides)).label("side")).where(is_asked)
            sides.append(side.order_by(column.desc(), hold.id.desc()))
    read = sa.union_all(*(sa.select(each.limit(share).subquery()) for each in sides)).cte("read")
    last = (
        sa.select(sa.func.min(read.c.id).label("id")).group_by(read.c.side).having(sa.func.count() == share).subquery()
    )
    lowest = sa.select(sa.func.max(last.c.id)).scalar_subquery()
    # A hold between two accounts of the caller has been read twice.
    found = sa.select(read.c.id).distinct().where(read.c.id >= sa.func.coalesce(lowest, 0)).subquery()
    # As in select_transfers.
    lookups = sa.select(*_shown_hold(), found.c.id.label("position")).order_by(found.c.id.desc()).offset(0)
    shown = lookups.join_from(found, holds, hold.id == found.c.id, isouter=True).subquery().c
    query = sa.select(*(shown["metadata" if name == "details" else name] for name in HoldPublic.model_fields))
    if status:
        query = query.where(shown.status == sa.bindparam("status"))
    return part(dialect, query, shown.position, newest_first=True, otherwise=lowest)


def _shown_hold() -> Iterator[sa.ColumnElement[Any]]:
    """Return the fields of HoldPublic at this `moment`."""
    hold = table_of(Hold).c
    status = sa.case((has_expired(), sa.literal_column("'expired'")), else_=hold.status)
    ended = sa.case((status == sa.literal_column("'expired'"), hold.expires_at), else_=hold.resolved_at)
    columns = {**hold, "status": status.label("status"), "resolved_at": ended.label("resolved_at")}
    return (columns["metadata" if name == "details" else name] for name in HoldPublic.model_fields)
