"""How an action goes: its form, a page that says what will happen, then crud; nothing typed is lost on the way."""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.callers import operations_of
from api.errors import report
from api.events import read_types
from api.problems import Problem, field_errors
from console.actions import ACTIONS, Action, Field, Plan, find_refusal
from console.forms import read_row_id
from console.operators import require_scope
from console.rendering import lead_to, page
from console.routes import SessionRoute, form_of, refused
from console.subjects import (
    AccountSubject,
    DeliverySubject,
    HoldSubject,
    MoneySubject,
    Subject,
    TokenSubject,
    TransferSubject,
    UserSubject,
    WebhooksSubject,
    WebhookSubject,
    find_account,
    find_delivery,
    find_hold,
    find_token,
    find_transfer,
    find_user,
    find_webhook,
    find_webhooks,
)
from ledger import Posted, Posting
from models import AccountPublic, IssuedToken, WebhookWithSecret
from refusals import EventsOff, Interruption, Refusal

router = APIRouter(prefix="/console", route_class=SessionRoute, include_in_schema=False)

PLACES: dict[type[Any], tuple[str, Callable[..., Awaitable[Subject]]]] = {
    UserSubject: ("/users/{id}", find_user),
    TokenSubject: ("/users/{id}/tokens/{token_id}", find_token),
    AccountSubject: ("/accounts/{id}", find_account),
    TransferSubject: ("/transfers/{id}", find_transfer),
    HoldSubject: ("/holds/{id}", find_hold),
    # Not /webhooks, under which all that follows is an id.
    WebhooksSubject: ("", find_webhooks),
    WebhookSubject: ("/webhooks/{id}", find_webhook),
    DeliverySubject: ("/webhooks/{id}/deliveries/{event_id}", find_delivery),
}
"""The path of each kind of subject, and what finds one."""

KEY = re.compile(r"console-[A-Za-z0-9_-]{22}")
CHANGED = (
    "Something has changed since this page was shown, or it was sent twice. Nothing was done now: look at what is "
    "there, and confirm if it is still to be done."
)


@dataclass(frozen=True, slots=True)
class Form:
    """What was typed, by field; what was read from it, unless there are errors, by field."""

    typed: Mapping[str, str]
    given: Mapping[str, Any]
    errors: Mapping[str, str]


async def find_subject(request: Request, kind: type[Any]) -> Subject:
    """Return the subject that the path names. Raises HTTPException 404 and refusals."""
    ids = {name: read_row_id(text) for name, text in request.path_params.items()}
    return await PLACES[kind][1](request, **ids)


def read_fields(action: Action, subject: Subject, sent: Mapping[str, str], currencies: set[str]) -> Form:
    """Read what was typed, by the rules of the API."""
    typed = {field.name: sent.get(field.name, "").strip() for field in action.fields}
    given, errors = dict(action.given(subject)), {}
    for field in action.fields:
        try:
            given[field.name] = _read_field(field, typed[field.name], subject, currencies)
        except ValueError as error:
            errors[field.name] = f"{error}."
    if action.model is not None and not errors:
        try:
            given = action.model.model_validate(given).model_dump(include={*given})
        except ValidationError as error:
            errors = {each.field: f"{each.detail.removesuffix('.')}." for each in field_errors(error)}
            errors |= _describe_limits(error, action, subject)
    return Form(typed, given, errors)


def _describe_limits(error: ValidationError, action: Action, subject: Subject) -> dict[str, str]:
    """Return which amounts are too small or too large, with their currency: the API's words have minor units."""
    words = {"greater_than_equal": ("small", "ge", "least"), "less_than_equal": ("large", "le", "most")}
    amounts = {field.name for field in action.fields if field.kind == "amount"}
    limits = {}
    for each in error.errors():
        if isinstance(subject, MoneySubject) and each["loc"][0] in amounts and each["type"] in words:
            size, bound, end = words[each["type"]]
            limits[str(each["loc"][0])] = f"This is too {size}: {subject.money.show(each['ctx'][bound])} is the {end}."
    return limits


def _read_field(field: Field, text: str, subject: Subject, currencies: set[str]) -> Any:
    """Return the value of a field; None of an empty one. Raises ValueError."""
    if not text:
        if field.is_required:
            raise ValueError("This field is required")
        return None
    if field.kind == "amount":
        assert isinstance(subject, MoneySubject)
        return subject.money.read(text)
    if field.kind == "number":
        if re.fullmatch(r"[0-9]{1,9}", text) is None:
            raise ValueError("Write a whole number")
        return int(text)
    if field.kind == "url":
        assert isinstance(subject, WebhooksSubject)
        return subject.check_url(text)
    if field.kind == "types":
        return read_types(re.sub(r"\s", "", text))
    if field.kind == "no or yes":
        return text == "yes"
    if field.kind == "currency" and text not in currencies:
        raise ValueError("Choose one of the list")
    return text


def show_form(
    request: Request, action: Action, subject: Subject, form: Form, *, problem: Problem | None = None
) -> Response:
    """Return the form with what was typed, and what is wrong with it."""
    return page(
        request,
        "form.html",
        problem.status if problem else 422 if form.errors else 200,
        action=action,
        subject=subject,
        form=form,
        problem=problem,
        currencies=request.app.state.currencies,
        default_currency=operations_of(request).settings.default_currency,
    )


def show_confirmation(
    request: Request,
    action: Action,
    subject: Subject,
    form: Form,
    plan: Plan,
    *,
    key: str = "",
    note: str = "",
    problem: Problem | None = None,
) -> Response:
    """Return the page that says what will happen; its key makes sending it twice safe."""
    return page(
        request,
        "confirm.html",
        problem.status if problem else 409 if note else 200,
        action=action,
        subject=subject,
        form=form,
        plan=plan,
        key=key or f"console-{secrets.token_urlsafe(16)}",
        note=note,
        problem=problem,
    )


async def begin(request: Request, action: Action) -> Response:
    """Answer GET: the form, or what will happen where nothing is to be filled in."""
    require_scope(request, action.scope)
    subject = await find_subject(request, action.on)
    if refusal := find_refusal(action.name, subject):
        return await refused(request, refusal, subject.path, subject.title)
    form = Form(action.start(subject), {}, {})
    if action.fields:
        return show_form(request, action, subject, form)
    return show_confirmation(request, action, subject, form, action.plan(subject, {}))


async def go_on(request: Request, action: Action) -> Response:
    """Answer POST: read the form, and say what will happen, or, where that was confirmed, do it."""
    actor = require_scope(request, action.scope)
    subject = await find_subject(request, action.on)
    # What else is refused, crud refuses, unless it was done by the same form before.
    if isinstance(refusal := find_refusal(action.name, subject), EventsOff):
        return await refused(request, refusal, subject.path, subject.title)
    sent = form_of(request)
    form = read_fields(action, subject, sent, {each.code for each in request.app.state.currencies})
    if form.errors or sent.get("step") == "edit":
        return show_form(request, action, subject, form)
    plan = action.plan(subject, form.given)
    key = sent.get("key", "")
    if sent.get("step") != "do" or KEY.fullmatch(key) is None:
        return show_confirmation(request, action, subject, form, plan)
    if sent.get("seen", "") != plan.seen:
        return show_confirmation(request, action, subject, form, plan, note=CHANGED)
    try:
        outcome = await operations_of(request).write(plan.write, plan.item(key, actor))
    except Interruption as interruption:
        # With the same key, so that it is not done twice where it was done.
        problem = await report(request, interruption)
        return show_confirmation(request, action, subject, form, plan, key=key, problem=problem)
    except Refusal as refusal:
        return show_form(request, action, subject, form, problem=await report(request, refusal))
    if isinstance(outcome, IssuedToken):
        return page(request, "token.html", subject=subject, token=outcome)
    if isinstance(outcome, WebhookWithSecret):
        return page(request, "webhook_secret.html", webhook=outcome)
    return lead_to(request, f"{_path_after(outcome, subject)}?done={action.name}")


def _path_after(outcome: Any, subject: Subject) -> str:
    """Return the path of what came of an action, or of its subject."""
    if isinstance(outcome, Posted) and isinstance(outcome.posting, Posting):
        return f"/transfers/{outcome.posting.id}"
    if isinstance(outcome, AccountPublic):
        return f"/accounts/{outcome.id}"
    return subject.path


def _add_routes(action: Action) -> None:
    async def show(request: Request) -> Response:
        return await begin(request, action)

    async def send(request: Request) -> Response:
        return await go_on(request, action)

    path = f"{PLACES[action.on][0]}/{action.name}"
    router.add_api_route(path, show, methods=["GET"])
    router.add_api_route(path, send, methods=["POST"])


for each in ACTIONS:
    _add_routes(each)
