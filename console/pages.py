"""The pages that show: the dashboard, users, accounts, transfers, holds, actions, events and webhooks."""

import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any, get_args
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

import crud
from api.callers import operations_of
from api.pages import RowId, encode_cursor, read_cursor
from console.actions import ACTIONS, actions_on, find_refusal
from console.chart import draw_balance
from console.figures import collect_figures
from console.forms import read_row_id
from console.operators import SIGNED_IN, SignedIn
from console.rendering import lead_to, money_of, page
from console.routes import SessionRoute
from console.subjects import (
    NEWEST,
    find_account,
    find_hold,
    find_transfer,
    find_user,
    find_webhook,
    find_webhooks,
    has_events,
    read_items,
)
from fields import DeliveryStatus, Email, KeyScope, Username, UserReference
from ledger import OPERATOR
from models import EventPublic, now
from webhooks import transactions
from webhooks.transactions import MOST_WAITING, TYPES

router = APIRouter(prefix="/console", route_class=SessionRoute, include_in_schema=False)

SHOWN = 25
"""Items of a list on a page."""
DRAWN = 200
"""Entries that the chart of a balance shows, at most."""
REFRESH = 10
"""Seconds after which the dashboard is loaded again, for who asks for it."""

FILTERS: dict[str, TypeAdapter[Any]] = {
    "reference": TypeAdapter(UserReference),
    "email": TypeAdapter(Email),
    "username_prefix": TypeAdapter(Username),
}
"""The filters of the list of users that a text can be meant for: first those that find one user."""

DONE = {action.name: action.done for action in ACTIONS}


def _after(request: Request, first: int) -> int:
    """Return where the part of a list begins that was asked for. Raises HTTPException 404."""
    cursor = request.query_params.get("after")
    try:
        return first if cursor is None else read_cursor(cursor)
    except ValidationError:
        raise HTTPException(404) from None


def _next(part: crud.Part) -> str | None:
    return None if part.last is None else encode_cursor(part.last)


def _done(request: Request) -> str:
    """Return the words for what was just done; any other text in the address is not shown."""
    return DONE.get(request.query_params.get("done", ""), "")


def _scopes(request: Request) -> Collection[KeyScope]:
    signed_in: SignedIn = request.scope[SIGNED_IN]
    return signed_in.scopes


@router.get("")
async def show_dashboard(request: Request) -> Response:
    """How the service is doing."""
    figures = await collect_figures(request)
    refresh = REFRESH if request.query_params.get("refresh") == str(REFRESH) else None
    totals = [money_of(request, currency).show(total) for currency, total in figures.totals]
    return page(request, "dashboard.html", figures=figures, totals=totals, refresh=refresh, every=REFRESH, moment=now())


@router.get("/users")
async def show_users(request: Request) -> Response:
    """Users by the beginning of their name, their e-mail address or their reference; or all."""
    sought = request.query_params.get("q", "").strip()
    found: dict[int, dict[str, Any]] = {}
    following = None
    filters = _filters_for(sought) if sought else {"username_prefix": None}
    after = _after(request, 0)
    for name, value in filters.items():
        if after and name != "username_prefix":
            continue
        part = await operations_of(request).read(crud.list_users, **{name: value}, after=after, limit=SHOWN)
        found |= {user["id"]: user for user in read_items(part)}
        following = _next(part) if name == "username_prefix" else following
    return page(request, "users.html", sought=sought, users=[*found.values()], following=following)


def _filters_for(sought: str) -> dict[str, Any]:
    """Return the filters for a text, in its normal form for each."""
    filters = {}
    for name, kind in FILTERS.items():
        with suppress(ValidationError):
            filters[name] = kind.validate_python(sought)
    return filters


@router.get("/users/{id}")
async def show_user(id: RowId, request: Request) -> Response:
    """A user: profile, accounts, tokens, holds and latest transfers."""
    operations, subject = operations_of(request), await find_user(request, id)
    tokens = await operations.read(
        crud.list_tokens, user_id=id, after=_after(request, NEWEST), limit=SHOWN, newest_first=True
    )
    accounts = await operations.read(crud.list_accounts, user_id=id, after=0, limit=crud.ACCOUNT_LIMIT)
    holds = await operations.read(crud.list_holds, id, None, "open", after=NEWEST, limit=SHOWN)
    transfers = await operations.read(crud.list_transfers, OPERATOR, {"user_id": id}, after=NEWEST, limit=10)
    return page(
        request,
        "user.html",
        subject=subject,
        is_erased=crud.is_erased(subject.user),
        actions=actions_on(subject, _scopes(request)),
        done=_done(request),
        tokens=read_items(tokens),
        older_tokens=_next(tokens),
        accounts=read_items(accounts),
        holds=read_items(holds),
        transfers=read_items(transfers),
        money=lambda currency: money_of(request, currency),
        moment=now(),
    )


@router.get("/accounts/{id}")
async def show_account(id: RowId, request: Request) -> Response:
    """An account: balance, chart, holds and statement."""
    operations, subject = operations_of(request), await find_account(request, id)
    entries = await operations.read(crud.list_entries, id, OPERATOR, after=_after(request, NEWEST), limit=SHOWN)
    drawn = read_items(await operations.read(crud.list_entries, id, OPERATOR, after=NEWEST, limit=DRAWN))
    holds = await operations.read(crud.list_holds, OPERATOR, id, "open", after=NEWEST, limit=SHOWN)
    return page(
        request,
        "account.html",
        subject=subject,
        actions=actions_on(subject, _scopes(request)),
        done=_done(request),
        entries=read_items(entries),
        following=_next(entries),
        drawn=drawn,
        chart=draw_balance([entry["balance_after"] for entry in reversed(drawn)]),
        holds=read_items(holds),
        money=lambda currency: money_of(request, currency),
    )


@router.get("/transfers")
async def show_transfers(request: Request) -> Response:
    """Transfers, newest first: all, or those with a reference."""
    sought = request.query_params.get("reference", "").strip()
    part = crud.Part("[]", None)
    # A text that cannot be a reference is none.
    with suppress(ValidationError):
        filters = {"reference": FILTERS["reference"].validate_python(sought or None)}
        part = await operations_of(request).read(
            crud.list_transfers, OPERATOR, filters, after=_after(request, NEWEST), limit=SHOWN
        )
    return page(
        request,
        "transfers.html",
        sought=sought,
        transfers=read_items(part),
        following=_next(part),
        money=lambda currency: money_of(request, currency),
    )


@router.get("/transfers/{id}")
async def show_transfer(id: RowId, request: Request) -> Response:
    """A transfer: both sides, its reversal, transaction and hold."""
    subject = await find_transfer(request, id)
    return page(
        request, "transfer.html", subject=subject, actions=actions_on(subject, _scopes(request)), done=_done(request)
    )


@router.get("/holds/{id}")
async def show_hold(id: RowId, request: Request) -> Response:
    """A hold: both sides, and what became of it."""
    subject = await find_hold(request, id)
    return page(
        request, "hold.html", subject=subject, actions=actions_on(subject, _scopes(request)), done=_done(request)
    )


@router.get("/actions")
async def show_actions(request: Request) -> Response:
    """What the operator did, newest first: all, on a user, by a key, or in a request."""
    sought = {name: request.query_params.get(name, "").strip() for name in ("user_id", "key_id", "request_id")}
    filters: dict[str, Any] = {name: text or None for name, text in sought.items()}
    filters |= {name: read_row_id(sought[name]) for name in ("user_id", "key_id") if sought[name]}
    part = crud.Part("[]", None)
    # A text that cannot be the id of a request is none.
    if re.fullmatch(r"[A-Za-z0-9._-]{0,64}", sought["request_id"]):
        after = _after(request, NEWEST)
        part = await operations_of(request).read(crud.list_actions, filters, after=after, limit=SHOWN)
    recorded = read_items(part)
    keys, accounts, transfers = (
        {id for each in recorded for id in (each[name], (each["details"] or {}).get(name)) if id}
        for name in ("key_id", "account_id", "transfer_id")
    )
    named = await operations_of(request).read(crud.find_named, keys, accounts, transfers)
    return page(
        request,
        "actions.html",
        sought=sought,
        recorded=[(each, _describe(request, each, named)) for each in recorded],
        named=named,
        money=lambda currency: money_of(request, currency),
        following=_next(part),
        query="".join(f"{name}={quote(text)}&" for name, text in sought.items() if text),
    )


def _describe(request: Request, action: dict[str, Any], named: crud.Named) -> dict[str, str]:
    """Return the details of an action as people read them."""
    details = action["details"] or {}
    words = {
        name: ", ".join(each).replace("_", " ") if isinstance(each, list) else str(each)
        for name, each in details.items()
    }
    if "key_id" in details:
        words["key_id"] = f"{named.keys[details['key_id']]} (key {details['key_id']})"
    if action["action"] == "account.credit":
        money = money_of(request, named.currencies[action["account_id"]])
        words |= {name: money.show(details[name]) for name in ("old", "new")}
    return {name.removesuffix("_id"): text for name, text in words.items()}


@router.get("/events")
async def show_events(request: Request) -> Response:
    """Events, newest first: all, or those of a type."""
    sought = _one_of(TYPES, request, "type")
    events, following = await operations_of(request).read(
        transactions.list_newest_events, sought or None, before=_after(request, NEWEST), limit=SHOWN
    )
    return page(
        request,
        "events.html",
        has_events=has_events(request),
        sought=sought,
        types=TYPES,
        events=[(each, _about(each)) for each in events],
        following=None if following is None else encode_cursor(following),
    )


def _one_of(values: Collection[str], request: Request, name: str) -> str:
    """Return a value that was chosen in the query, or "" for all. Raises HTTPException 404."""
    chosen = request.query_params.get(name, "")
    if chosen and chosen not in values:
        raise HTTPException(404)
    return chosen


def _about(event: EventPublic) -> list[tuple[str, str]]:
    """Return what an event is about, each with the path of its page, or "" if it has none."""
    kind, id, user_id = event.type.partition(".")[0], event.data["id"], event.data.get("user_id")
    about = [(f"{kind} {id}", f"/{kind}s/{id}" if kind in ("user", "account", "transfer", "hold", "webhook") else "")]
    if kind in ("account", "token"):
        about += [(f"user {user_id}", f"/users/{user_id}")] if user_id else []
    # A transaction may have a hundred.
    return about + [(f"transfer {each}", f"/transfers/{each}") for each in event.data.get("transfer_ids", ())[:5]]


@router.get("/webhooks")
async def show_webhooks(request: Request) -> Response:
    """All webhooks, oldest first, each with how many deliveries wait."""
    subject = await find_webhooks(request)
    part = await operations_of(request).read(transactions.list_webhooks, after=_after(request, 0), limit=SHOWN)
    return page(
        request,
        "webhooks.html",
        has_events=subject.has_events,
        actions=actions_on(subject, _scopes(request)),
        webhooks=read_items(part),
        waiting={each.webhook_id: each.waiting for each in subject.queues},
        most=MOST_WAITING,
        following=_next(part),
    )


@router.get("/webhooks/{id}")
async def show_webhook(id: RowId, request: Request) -> Response:
    """A webhook: what it is told, how it does, and its deliveries."""
    subject = await find_webhook(request, id)
    sought = _one_of(get_args(DeliveryStatus), request, "status")
    deliveries = await operations_of(request).read(
        transactions.list_deliveries, id, sought or None, after=_after(request, NEWEST), limit=SHOWN
    )
    return page(
        request,
        "webhook.html",
        subject=subject,
        has_events=subject.has_events,
        actions=actions_on(subject, _scopes(request)),
        done=_done(request),
        deliveries=read_items(deliveries),
        following=_next(deliveries),
        sought=sought,
        statuses=get_args(DeliveryStatus),
        can_send="webhooks" in _scopes(request) and find_refusal("send-again", subject) is None,
        most=MOST_WAITING,
        moment=now(),
    )


@router.get("/open")
async def open_by_number(request: Request) -> Response:
    """A redirect to the user, account, transfer or hold with a number."""
    kind = request.query_params.get("kind", "")
    if kind not in ("users", "accounts", "transfers", "holds"):
        raise HTTPException(404)
    id = read_row_id(request.query_params.get("id", "").strip())
    return lead_to(request, f"/{kind}/{id}")
