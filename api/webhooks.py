"""Webhooks: who is told of events, and what became of each delivery."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import PydanticCustomError

from api.callers import actor_of, operations_of, operator
from api.errors import OPERATOR_ONLY, documented
from api.events import sequencer_of
from api.pages import After, Limit, NewestFirst, Page, RowId, page_of
from api.problems import FieldError, InvalidFields
from api.strict_route import StrictRoute
from fields import DeliveryStatus
from models import DeliveryPublic, WebhookPublic, WebhookRequest, WebhookUpdate, WebhookWithSecret
from refusals import (
    EventNotFound,
    EventsOff,
    OutcomeUnknown,
    SecretJustMade,
    WebhookEnded,
    WebhookLimit,
    WebhookNotFound,
)
from settings import Settings, parse_networks
from webhooks import transactions
from webhooks.transactions import Resending, WebhookChange, WebhookCreation
from webhooks.urls import check_url

router = APIRouter(route_class=StrictRoute, tags=["webhooks"])

WRITE = (*OPERATOR_ONLY, WebhookNotFound, WebhookEnded, OutcomeUnknown)


def url_of(request: Request, url: str) -> str:
    """The normal form of the URL of a webhook. Raises ValueError, in words, for one that nothing may be sent to."""
    settings: Settings = operations_of(request).settings
    development, networks = settings.environment == "development", parse_networks(settings.webhook_networks)
    return check_url(url, development=development, networks=networks)


def _url_in_body(request: Request, url: str) -> str:
    """Do as url_of does, but raise InvalidFields."""
    try:
        return url_of(request, url)
    except PydanticCustomError as error:
        raise InvalidFields([FieldError(field="body.url", detail=error.message())]) from None


@router.get(
    "/webhooks",
    summary="List webhooks",
    response_model=Page[WebhookPublic],
    responses=documented(*OPERATOR_ONLY),
    dependencies=[operator("read")],
)
async def list_webhooks(request: Request, after: After, limit: Limit = 50) -> Response:
    """Oldest first, with those that ended, without their secrets."""
    return page_of(await operations_of(request).read(transactions.list_webhooks, after=after, limit=limit))


@router.post(
    "/webhooks",
    status_code=201,
    summary="Create a webhook",
    responses=documented(*OPERATOR_ONLY, EventsOff, WebhookLimit, OutcomeUnknown, body=True),
    dependencies=[operator("webhooks")],
)
async def create_webhook(webhook: WebhookRequest, request: Request) -> WebhookWithSecret:
    """Each event that happens from now on is sent to its URL, at least once, signed (Standard Webhooks).

    The secret is in this answer and nowhere else. What is not answered with 2xx is sent again, over 3 days.
    """
    sequencer_of(request)
    creation = WebhookCreation(
        _url_in_body(request, webhook.url), webhook.types, webhook.personal_data, actor_of(request)
    )
    return await operations_of(request).write(transactions.create_webhooks, creation)


@router.post(
    "/webhooks/{id}/secret",
    summary="Give a webhook a new secret",
    responses=documented(*WRITE, SecretJustMade),
    dependencies=[operator("webhooks")],
)
async def rotate_secret(id: RowId, request: Request) -> WebhookWithSecret:
    """For a day, what is sent is signed with both, so that its receiver can change over at any time.

    Another new secret ends the first one at once.
    """
    change = WebhookChange(id, rotates=True, actor=actor_of(request))
    changed = await operations_of(request).write(transactions.change_webhooks, change)
    assert isinstance(changed, WebhookWithSecret)
    return changed


@router.post(
    "/webhooks/{id}/test",
    status_code=202,
    summary="Test a webhook",
    responses=documented(*WRITE, EventsOff),
    dependencies=[operator("webhooks")],
)
async def test_webhook(id: RowId, request: Request) -> WebhookPublic:
    """An event `webhook.test` is sent to it, and to no other. Its deliveries show what became of it."""
    sequencer_of(request)
    change = WebhookChange(id, tests=True, actor=actor_of(request))
    return await operations_of(request).write(transactions.change_webhooks, change)


@router.get(
    "/webhooks/{id}/deliveries",
    summary="List what was sent to a webhook",
    response_model=Page[DeliveryPublic],
    responses=documented(*OPERATOR_ONLY, WebhookNotFound),
    dependencies=[operator("read")],
)
async def list_deliveries(
    id: RowId,
    request: Request,
    *,
    after: NewestFirst = None,
    limit: Limit = 50,
    status: Annotated[DeliveryStatus | None, Query(description="Only those that are so now")] = None,
) -> Response:
    """Newest first: each event that it asked for, with the last attempt. They are kept as long as events are.

    With a status, a page looks at up to 10,000 deliveries: where that is not enough, it is short, and `next` goes on.
    """
    newer = 2**63 - 1 if after is None else after
    return page_of(
        await operations_of(request).read(transactions.list_deliveries, id, status, after=newer, limit=limit)
    )


@router.post(
    "/webhooks/{id}/deliveries/{event_id}",
    status_code=202,
    summary="Send an event again",
    responses=documented(*WRITE, EventsOff, EventNotFound),
    dependencies=[operator("webhooks")],
)
async def resend_delivery(id: RowId, event_id: RowId, request: Request) -> DeliveryPublic:
    """Any event that is kept, also one that it did not ask for. Its `webhook-id` is the same as before."""
    sequencer_of(request)
    resending = Resending(id, event_id, actor_of(request))
    return await operations_of(request).write(transactions.resend_deliveries, resending)


@router.get(
    "/webhooks/{id}",
    summary="Show a webhook",
    responses=documented(*OPERATOR_ONLY, WebhookNotFound),
    dependencies=[operator("read")],
)
async def get_webhook(id: RowId, request: Request) -> WebhookPublic:
    """Without its secret. Since `failing_since`, nothing has arrived."""
    return await operations_of(request).read(transactions.get_webhook, id)


@router.patch(
    "/webhooks/{id}",
    summary="Change, pause or resume a webhook",
    responses=documented(*WRITE, body=True),
    dependencies=[operator("webhooks")],
)
async def update_webhook(id: RowId, update: WebhookUpdate, request: Request) -> WebhookPublic:
    """While it is paused, what it would be told waits, as long as events are kept; then it is told in any order."""
    fields = update.model_dump(exclude_unset=True)
    if "url" in fields:
        fields["url"] = _url_in_body(request, fields["url"])
    change = WebhookChange(id, fields, actor=actor_of(request))
    return await operations_of(request).write(transactions.change_webhooks, change)


@router.delete(
    "/webhooks/{id}",
    status_code=204,
    summary="End a webhook",
    responses=documented(*OPERATOR_ONLY, WebhookNotFound, OutcomeUnknown),
    dependencies=[operator("webhooks")],
)
async def end_webhook(id: RowId, request: Request) -> None:
    """Nothing more is sent to it. Its secrets are deleted, its deliveries stay listed."""
    change = WebhookChange(id, ends=True, actor=actor_of(request))
    await operations_of(request).write(transactions.change_webhooks, change)
