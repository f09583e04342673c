"""What pages show and actions change, each with what is around it: users, accounts, transfers, holds, webhooks."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request

import crud
from api.callers import operations_of
from api.webhooks import url_of
from console.money import Money
from console.rendering import money_of
from ledger import OPERATOR
from models import AccountPublic, HoldPublic, TransferPublic, UserRecord, WebhookPublic
from refusals import EventNotFound, TokenNotFound
from webhooks import transactions
from webhooks.transactions import Queue

NEWEST = 2**63 - 1
"""Where a list that is newest first begins."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a page is about: its name within a sentence, and the path of its page."""

    title: str
    path: str


@dataclass(frozen=True, slots=True)
class UserSubject(Subject):
    """A user, and the id of its newest token."""

    user: UserRecord
    newest_token: int


@dataclass(frozen=True, slots=True)
class TokenSubject(Subject):
    """A token of a user; the page is the user's."""

    user: UserRecord
    token: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MoneySubject(Subject):
    """A subject with amounts in one currency."""

    money: Money


@dataclass(frozen=True, slots=True)
class AccountSubject(MoneySubject):
    """An account, and its owner; a system account has none."""

    account: AccountPublic
    owner: UserRecord | None


@dataclass(frozen=True, slots=True)
class TransferSubject(MoneySubject):
    """A transfer between two accounts, with what it left on both."""

    transfer: TransferPublic
    sides: crud.Sides
    debit: AccountSubject
    credit: AccountSubject


@dataclass(frozen=True, slots=True)
class HoldSubject(MoneySubject):
    """A hold between two accounts, and the transfer that captured it, if any."""

    hold: HoldPublic
    debit: AccountSubject
    credit: AccountSubject
    captured_by: int | None


@dataclass(frozen=True, slots=True)
class EventsSubject(Subject):
    """A subject for which it matters that events are stored: the setting EVENTS."""

    has_events: bool


@dataclass(frozen=True, slots=True)
class WebhooksSubject(EventsSubject):
    """The webhooks that have not ended; and what checks the URL of a new one."""

    queues: list[Queue]
    check_url: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class WebhookSubject(EventsSubject):
    """A webhook, how many deliveries to it wait, and the operator's latest test of any webhook, as an action's id."""

    webhook: WebhookPublic
    waiting: int
    latest_test: int


@dataclass(frozen=True, slots=True)
class DeliverySubject(EventsSubject):
    """A delivery to a webhook; the page is the webhook's."""

    webhook: WebhookPublic
    delivery: dict[str, Any]


def read_items(part: crud.Part) -> list[dict[str, Any]]:
    """Return the items of a part of a list."""
    items: list[dict[str, Any]] = json.loads(part.items)
    return items


async def find_user(request: Request, id: int) -> UserSubject:
    """Return the user with this id. Raises UserNotFound."""
    operations = operations_of(request)
    user = await operations.read(crud.get_user, id)
    newest = await operations.read(crud.list_tokens, user_id=id, after=NEWEST, limit=1, newest_first=True)
    newest_id = next((token["id"] for token in read_items(newest)), 0)
    return UserSubject(user.username, f"/users/{id}", user, newest_id)


async def find_token(request: Request, id: int, token_id: int) -> TokenSubject:
    """Return this token of this user. Raises UserNotFound and TokenNotFound."""
    operations = operations_of(request)
    user = await operations.read(crud.get_user, id)
    part = await operations.read(crud.list_tokens, user_id=id, after=token_id - 1, limit=1)
    for token in read_items(part):
        if token["id"] == token_id:
            return TokenSubject(user.username, f"/users/{id}", user, token)
    raise TokenNotFound


async def find_account(request: Request, id: int) -> AccountSubject:
    """Return the account with this id. Raises AccountNotFound."""
    operations = operations_of(request)
    account = await operations.read(crud.get_account, id, OPERATOR)
    owner = None if account.user_id is None else await operations.read(crud.get_user, account.user_id)
    title = f"account {id} of {owner.username if owner else f'the system in {account.currency}'}"
    return AccountSubject(title, f"/accounts/{id}", money_of(request, account.currency), account, owner)


async def find_transfer(request: Request, id: int) -> TransferSubject:
    """Return the transfer with this id. Raises TransferNotFound."""
    operations = operations_of(request)
    transfer = await operations.read(crud.get_transfer, id, OPERATOR)
    sides = await operations.read(crud.get_sides, id)
    debit, credit = await _find_both(request, transfer)
    return TransferSubject(f"transfer {id}", f"/transfers/{id}", debit.money, transfer, sides, debit, credit)


async def find_hold(request: Request, id: int) -> HoldSubject:
    """Return the hold with this id. Raises HoldNotFound."""
    operations = operations_of(request)
    hold = await operations.read(crud.get_hold, id, OPERATOR)
    made = await operations.read(crud.list_transfers, OPERATOR, {"hold_id": id}, after=NEWEST, limit=1)
    captured_by = next((transfer["id"] for transfer in read_items(made)), None)
    debit, credit = await _find_both(request, hold)
    return HoldSubject(f"hold {id}", f"/holds/{id}", debit.money, hold, debit, credit, captured_by)


async def _find_both(request: Request, between: TransferPublic | HoldPublic) -> tuple[AccountSubject, AccountSubject]:
    debit = await find_account(request, between.debit_account_id)
    return debit, await find_account(request, between.credit_account_id)


def has_events(request: Request) -> bool:
    """Return True if events are stored, and webhooks told of them."""
    return operations_of(request).settings.events


async def find_webhooks(request: Request) -> WebhooksSubject:
    """Return the webhooks that have not ended."""
    queues = await operations_of(request).read(transactions.list_queues)
    return WebhooksSubject("webhooks", "/webhooks", has_events(request), queues, partial(url_of, request))


async def find_webhook(request: Request, id: int) -> WebhookSubject:
    """Return the webhook with this id. Raises WebhookNotFound."""
    operations = operations_of(request)
    webhook = await operations.read(transactions.get_webhook, id)
    queues = await operations.read(transactions.list_queues)
    waiting = next((each.waiting for each in queues if each.webhook_id == id), 0)
    tests = await operations.read(crud.list_actions, {"action": "webhook.test"}, after=NEWEST, limit=1)
    latest_test = next((each["id"] for each in read_items(tests)), 0)
    return WebhookSubject(f"webhook {id}", f"/webhooks/{id}", has_events(request), webhook, waiting, latest_test)


async def find_delivery(request: Request, id: int, event_id: int) -> DeliverySubject:
    """Return the delivery of this event to this webhook. Raises WebhookNotFound and EventNotFound."""
    operations = operations_of(request)
    webhook = await operations.read(transactions.get_webhook, id)
    part = await operations.read(transactions.list_deliveries, id, None, after=min(event_id + 1, NEWEST), limit=1)
    for delivery in read_items(part):
        if delivery["event_id"] == event_id:
            return DeliverySubject(f"webhook {id}", f"/webhooks/{id}", has_events(request), webhook, delivery)
    raise EventNotFound
