"""The actions of the console: what each asks for, what it says before it is done, and what it writes through crud."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

import crud
from console.subjects import (
    AccountSubject,
    DeliverySubject,
    EventsSubject,
    HoldSubject,
    Subject,
    TokenSubject,
    TransferSubject,
    UserSubject,
    WebhooksSubject,
    WebhookSubject,
)
from fields import KeyScope, UserReference
from ledger import OPERATOR, Actor
from models import (
    AccountRequest,
    AccountUpdate,
    CaptureRequest,
    CashRequest,
    TokenRequest,
    UserUpdate,
    WebhookRequest,
    now,
)
from refusals import (
    AlreadyReversed,
    EventsOff,
    HoldResolved,
    Refusal,
    ReversalNotReversible,
    UserErased,
    UserNotActive,
    UserNotClosed,
    WebhookEnded,
)
from webhooks import transactions
from webhooks.transactions import TYPES, Resending, WebhookChange, WebhookCreation

S = TypeVar("S", bound=Subject)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a form: its name, as in the API, its label, and a hint."""

    name: str
    label: str
    hint: str = ""
    kind: Literal["text", "email", "tel", "amount", "number", "currency", "url", "types", "no or yes"] = "text"
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What an action will do: in sentences, and as an item for crud, given an idempotency key and who does it.

    `seen` is what the sentences depend on, where doing it twice, or after a change by someone else, would be wrong.
    """

    sentences: tuple[str, ...]
    write: Any
    item: Callable[[str, Actor], Any]
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """An action on a kind of subject. `model` checks what is sent, as it does for the API."""

    on: type[Any]
    name: str
    title: str
    _: KW_ONLY
    plan: Callable[[Any, Mapping[str, Any]], Plan]
    done: str
    scope: KeyScope
    fields: tuple[Field, ...] = ()
    model: type[BaseModel] | None = None
    given: Callable[[Any], Mapping[str, Any]] = lambda subject: {}
    start: Callable[[Any], Mapping[str, str]] = lambda subject: {}
    takes_away: bool = False


ACTIONS: list[Action] = []


def action(
    scope: KeyScope, on: type[S], name: str, title: str, **options: Any
) -> Callable[[Callable[[S, Mapping[str, Any]], Plan]], Callable[[S, Mapping[str, Any]], Plan]]:
    """Add an action, for which a key needs the scope; the function makes its plan of the subject and what was sent."""

    def add(plan: Callable[[S, Mapping[str, Any]], Plan]) -> Callable[[S, Mapping[str, Any]], Plan]:
        ACTIONS.append(Action(on, name, title, plan=plan, scope=scope, **options))
        return plan

    return add


# --- users ------------------------------------------------------------------------------------------------------------


@action("users", UserSubject, "suspend", "Suspend", done="The user is suspended.", takes_away=True)
def suspend(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Suspend the user."""
    name = subject.user.username
    sentences = (
        f"{name} will be suspended: every call with a token of {name} is refused until the user is reopened.",
        "No money moves, and no token is revoked: a stolen one works again once the user is reopened, so revoke it.",
    )
    return _change_user(subject, {"status": "suspended"}, sentences)


@action("users", UserSubject, "reopen", "Reopen", done="The user is active.")
def reopen(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Make the user active again."""
    name = subject.user.username
    sentence = "Tokens that were not revoked work again at once."
    if subject.user.status == "closed":
        sentence = "All tokens were revoked when the user was closed. Issue a new one afterwards."
    return _change_user(subject, {"status": "active"}, (f"{name} will be active again.", sentence))


@action("users", UserSubject, "close", "Close", done="The user is closed.", takes_away=True)
def close(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Close the user."""
    name = subject.user.username
    sentences = (
        f"{name} will be closed: all tokens of {name} are revoked for good, and no transfer reaches its accounts.",
        "What is in its accounts stays there, and can be withdrawn. The name stays taken. The user can be reopened.",
    )
    return _change_user(subject, {"status": "closed"}, sentences)


@action("users", UserSubject, "erase", "Erase personal data", done="The personal data was erased.", takes_away=True)
def erase(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Erase the personal data of the closed user."""
    name = subject.user.username
    return Plan(
        (
            f"Name, e-mail address, phone number, reference, metadata and token names of {name} are erased for good.",
            "Accounts, transfers and entries stay, with their memos. The name is free again; the user stays closed.",
            "Saves and backups keep what they have.",
        ),
        crud.erase_users,
        lambda key, actor: crud.Erasure(subject.user.id, actor),
    )


class _UserChange(UserUpdate):
    """The fields of a user that the console changes."""

    reference: UserReference = None


@action(
    "users",
    UserSubject,
    "change",
    "Change details",
    done="The user was changed.",
    model=_UserChange,
    fields=(
        Field("email", "E-mail address", kind="email", is_required=True),
        Field("phone_number", "Phone number", "With its country code, as in +4915112345678. Empty: none.", kind="tel"),
        Field("reference", "Reference", "Your own id of this user, such as customer-17. Empty: none."),
    ),
    start=lambda subject: {name: getattr(subject.user, name) or "" for name in ("email", "phone_number", "reference")},
)
def change(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Change e-mail address, phone number or reference."""
    labels = {"email": "E-mail address", "phone_number": "Phone number", "reference": "Reference"}
    before = {name: getattr(subject.user, name) for name in labels}
    changes = {name: value for name, value in given.items() if value != before[name]}
    sentences = tuple(
        f"{labels[name]}: {before[name] or 'none'} becomes {value or 'none'}." for name, value in changes.items()
    )
    plan = _change_user(subject, changes, sentences or ("Nothing changes: all is as it was.",))
    return Plan(plan.sentences, plan.write, plan.item, seen=repr(before))


def _change_user(subject: UserSubject, fields: dict[str, Any], sentences: tuple[str, ...]) -> Plan:
    return Plan(
        sentences,
        crud.update_users,
        lambda key, actor: crud.UserChange(subject.user.id, fields, by_operator=True, actor=actor),
    )


@action(
    "users",
    UserSubject,
    "issue-token",
    "Issue a token",
    done="The token was issued.",
    model=TokenRequest,
    fields=(
        Field("name", "Name", "What tells it apart later, such as the device. Empty: none."),
        Field("expires_in_days", "Days until it expires", "1 to 3650. Empty: it does not expire.", kind="number"),
    ),
)
def issue_token(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Issue a token, once: a confirmation counts for as long as the user has no newer token."""
    days, name = given["expires_in_days"], given["name"]
    lasts = "does not expire" if days is None else f"expires after {days} day{'s' if days != 1 else ''}"
    return Plan(
        (
            f"{subject.user.username} gets a new token{f' named “{name}”' if name else ''}, which {lasts}.",
            "Its secret is shown once, on the next page. The other tokens of the user stay as they are.",
        ),
        crud.issue_tokens,
        lambda key, actor: crud.TokenIssue(subject.user.id, name, days, actor=actor),
        seen=str(subject.newest_token),
    )


@action("users", UserSubject, "revoke-tokens", "Revoke all tokens", done="All tokens were revoked.", takes_away=True)
def revoke_tokens(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Revoke all tokens of the user."""
    name = subject.user.username
    return Plan(
        (
            f"All tokens of {name} stop working at once and for good, on every server.",
            f"{name} stays {subject.user.status}, and no money moves. Issue a new token afterwards.",
        ),
        crud.revoke_users_tokens,
        lambda key, actor: crud.RevocationOfAll(subject.user.id, actor),
    )


@action("users", TokenSubject, "revoke", "Revoke", done="The token was revoked.", takes_away=True)
def revoke_token(subject: TokenSubject, given: Mapping[str, Any]) -> Plan:
    """Revoke one token."""
    token = subject.token
    name = f"“{token['name']}” (number {token['id']})" if token["name"] else f"number {token['id']}"
    return Plan(
        (f"The token {name} of {subject.user.username} stops working at once and for good, on every server.",),
        crud.revoke_tokens,
        lambda key, actor: crud.Revocation(subject.user.id, token["id"], actor),
    )


@action(
    "users",
    UserSubject,
    "open-account",
    "Open an account",
    done="The account was opened.",
    model=AccountRequest,
    fields=(
        Field("currency", "Currency", kind="currency", is_required=True),
        Field("label", "Label", "Tells the accounts of a user in one currency apart.", is_required=True),
    ),
    start=lambda subject: {"label": "main"},
)
def open_account(subject: UserSubject, given: Mapping[str, Any]) -> Plan:
    """Open an account."""
    currency, label = given["currency"], given["label"]
    sentence = f"{subject.title} gets an account in {currency}, named “{label}”, with nothing in it."
    return Plan(
        (sentence,),
        crud.open_accounts,
        lambda key, actor: crud.AccountOpening(subject.user.id, currency, label, actor),
    )


# --- accounts ---------------------------------------------------------------------------------------------------------

PAYMENT_FIELDS = (
    Field("amount", "Amount", kind="amount", is_required=True),
    Field("memo", "Memo", "What it is for, in one line. The user can read it."),
    Field("reference", "Reference", "Your own id of it, such as an order's. The user can read it."),
)


def _names_account(subject: AccountSubject) -> Mapping[str, Any]:
    return {"account_id": subject.account.id}


@action(
    "money",
    AccountSubject,
    "deposit",
    "Deposit",
    done="The deposit was made.",
    model=CashRequest,
    fields=PAYMENT_FIELDS,
    given=_names_account,
)
def deposit(subject: AccountSubject, given: Mapping[str, Any]) -> Plan:
    """Pay money in."""
    amount = subject.money.show(given["amount"])
    after = subject.money.show(subject.account.balance + given["amount"])
    sentence = f"{amount} will be paid into {subject.title}. Its balance becomes {after}."
    return _pay(subject, given, sentence, is_payout=False)


@action(
    "money",
    AccountSubject,
    "withdraw",
    "Withdraw",
    done="The withdrawal was made.",
    model=CashRequest,
    fields=PAYMENT_FIELDS,
    given=_names_account,
    takes_away=True,
)
def withdraw(subject: AccountSubject, given: Mapping[str, Any]) -> Plan:
    """Pay money out."""
    amount = subject.money.show(given["amount"])
    after = subject.money.show(subject.account.balance - given["amount"])
    sentence = f"{amount} will be paid out of {subject.title}. Its balance becomes {after}."
    return _pay(subject, given, sentence, is_payout=True)


def _pay(subject: AccountSubject, given: Mapping[str, Any], sentence: str, *, is_payout: bool) -> Plan:
    return Plan(
        (sentence, *_described(given)),
        crud.make_payments,
        lambda key, actor: crud.Payment(
            subject.account.id, given["amount"], given["memo"], key, is_payout, given["reference"], actor=actor
        ),
    )


def _described(given: Mapping[str, Any]) -> list[str]:
    return [f"{name.capitalize()}: {given[name]}" for name in ("memo", "reference") if given[name]]


@action(
    "money",
    AccountSubject,
    "credit-limit",
    "Change credit limit",
    done="The credit limit was changed.",
    model=AccountUpdate,
    fields=(Field("credit_limit", "Credit limit", "How far below 0 the balance may go.", "amount", is_required=True),),
    start=lambda subject: {"credit_limit": subject.money.field(subject.account.credit_limit)},
)
def change_credit(subject: AccountSubject, given: Mapping[str, Any]) -> Plan:
    """Set the credit limit."""
    before, after = (subject.money.show(each) for each in (subject.account.credit_limit, given["credit_limit"]))
    return Plan(
        (f"The credit limit of {subject.title} changes from {before} to {after}.", "No money moves."),
        crud.change_credit,
        lambda key, actor: crud.CreditChange(subject.account.id, given["credit_limit"], actor),
    )


# --- transfers and holds ----------------------------------------------------------------------------------------------


@action(
    "money",
    TransferSubject,
    "reverse",
    "Reverse",
    done="The transfer was reversed. This is the reversal.",
    takes_away=True,
)
def reverse(subject: TransferSubject, given: Mapping[str, Any]) -> Plan:
    """Send the money back."""
    amount, money = subject.transfer.amount, subject.money
    sentences = [
        f"{money.show(amount)} will go back from {subject.credit.title} to {subject.debit.title}.",
        *(
            f"The balance of {side.title} becomes {money.show(side.account.balance + change)}."
            for side, change in ((subject.credit, -amount), (subject.debit, amount))
        ),
        "A transfer can be reversed once, and a reversal cannot be reversed.",
    ]
    return Plan(
        tuple(sentences),
        crud.reverse_transfers,
        lambda key, actor: crud.Reversal(subject.transfer.id, OPERATOR, key, actor),
    )


@action(
    "money",
    HoldSubject,
    "capture",
    "Capture",
    done="The hold was captured. This is its transfer.",
    model=CaptureRequest,
    fields=(Field("amount", "Amount", "All of it, or a part; the rest is free at once.", "amount", is_required=True),),
    start=lambda subject: {"amount": subject.money.field(subject.hold.amount)},
)
def capture(subject: HoldSubject, given: Mapping[str, Any]) -> Plan:
    """Transfer what is held, or a part."""
    money = subject.money
    amount, rest = given["amount"], subject.hold.amount - given["amount"]
    sentences = [f"{money.show(amount)} will be transferred from {subject.debit.title} to {subject.credit.title}."]
    if rest > 0:
        sentences.append(f"The rest, {money.show(rest)}, is free again at once: a hold is captured once.")
    return Plan(
        tuple(sentences),
        crud.end_holds,
        lambda key, actor: crud.HoldEnd(subject.hold.id, OPERATOR, amount=amount, idempotency_key=key, actor=actor),
    )


@action("money", HoldSubject, "void", "Void", done="The hold was voided.", takes_away=True)
def void(subject: HoldSubject, given: Mapping[str, Any]) -> Plan:
    """Free what is held."""
    amount = subject.money.show(subject.hold.amount)
    return Plan(
        (f"{amount} on {subject.debit.title} will be free again at once, and nothing is transferred.",),
        crud.end_holds,
        lambda key, actor: crud.HoldEnd(subject.hold.id, OPERATOR, is_void=True, actor=actor),
    )


# --- webhooks ---------------------------------------------------------------------------------------------------------


@action(
    "webhooks",
    WebhooksSubject,
    "create-webhook",
    "Create a webhook",
    done="The webhook was created.",
    model=WebhookRequest,
    fields=(
        Field("url", "URL", "Where events are sent, such as https://shop.example/hooks.", "url", is_required=True),
        Field(
            "types", "Types of events", f"With commas between them. Empty: all, which are {', '.join(TYPES)}.", "types"
        ),
        Field(
            "personal_data",
            "With personal data",
            "Yes: names, addresses, memos and metadata as well. No: ids, amounts, states and times only.",
            "no or yes",
            is_required=True,
        ),
    ),
)
def create_webhook(subject: WebhooksSubject, given: Mapping[str, Any]) -> Plan:
    """Create a webhook, once: a confirmation counts for as long as no other was created or ended."""
    url, types, personal_data = given["url"], given["types"], given["personal_data"]
    return Plan(
        (
            f"What happens from now on is sent to {url}, signed.",
            f"Events: {', '.join(types) if types else 'of all types'}.",
            f"Personal data: {'names, addresses, memos and metadata are sent as well' if personal_data else 'none'}.",
            "The secret for the signatures is shown once, on the next page.",
        ),
        transactions.create_webhooks,
        lambda key, actor: WebhookCreation(url, types, personal_data, actor),
        seen=",".join(str(each.webhook_id) for each in subject.queues),
    )


@action("webhooks", WebhookSubject, "pause", "Pause", done="The webhook is paused.", takes_away=True)
def pause(subject: WebhookSubject, given: Mapping[str, Any]) -> Plan:
    """Pause the webhook."""
    sentences = (
        f"Nothing more is sent to {subject.webhook.url} until the webhook is resumed.",
        "What happens meanwhile waits for as long as events are kept.",
    )
    return _change_webhook(subject, sentences, fields={"status": "paused"})


@action("webhooks", WebhookSubject, "resume", "Resume", done="The webhook is active.")
def resume(subject: WebhookSubject, given: Mapping[str, Any]) -> Plan:
    """Make the webhook active again."""
    sentences = (
        f"Events are sent to {subject.webhook.url} again: what is due at once, in any order, the rest in its time.",
        "It is paused again if nothing arrives for 3 days.",
    )
    return _change_webhook(subject, sentences, fields={"status": "active"})


@action("webhooks", WebhookSubject, "new-secret", "New secret", done="The webhook has a new secret.")
def rotate_secret(subject: WebhookSubject, given: Mapping[str, Any]) -> Plan:
    """Give the webhook a new secret, once: a confirmation counts for as long as it has had no newer one."""
    until = subject.webhook.previous_secret_expires_at
    sentences = [
        f"{subject.title.capitalize()} gets a new secret, which is shown once, on the next page.",
        "For a day, what is sent is signed with the present one as well: change it in the receiver meanwhile.",
    ]
    if until is not None and until > now():
        sentences.append("It has been changed within a day: the secret before the present one stops signing at once.")
    return _change_webhook(subject, sentences, seen=str(until), rotates=True)


@action("webhooks", WebhookSubject, "test", "Test", done="The test is sent; its delivery shows what becomes of it.")
def test_webhook(subject: WebhookSubject, given: Mapping[str, Any]) -> Plan:
    """Test the webhook, once: a confirmation counts for as long as none was tested since."""
    sentences = [f"An event webhook.test is sent to {subject.webhook.url}, and to no other webhook."]
    if subject.webhook.status == "paused":
        sentences.append("The webhook is paused: the test waits until it is resumed.")
    return _change_webhook(subject, sentences, seen=str(subject.latest_test), tests=True)


@action("webhooks", WebhookSubject, "end", "End", done="The webhook has ended.", takes_away=True)
def end_webhook(subject: WebhookSubject, given: Mapping[str, Any]) -> Plan:
    """End the webhook."""
    sentences = (
        f"Nothing more is sent to {subject.webhook.url}, for good, and what waits for it is not sent either.",
        "Its secrets are deleted. Its deliveries stay listed for as long as events are kept.",
    )
    return _change_webhook(subject, sentences, ends=True)


def _change_webhook(subject: WebhookSubject, sentences: Sequence[str], *, seen: str = "", **change: Any) -> Plan:
    return Plan(
        tuple(sentences),
        transactions.change_webhooks,
        lambda key, actor: WebhookChange(subject.webhook.id, actor=actor, **change),
        seen,
    )


@action("webhooks", DeliverySubject, "send-again", "Send again", done="The event is sent again.")
def resend_delivery(subject: DeliverySubject, given: Mapping[str, Any]) -> Plan:
    """Send an event again, once: a confirmation counts for as long as it was not tried since."""
    delivery, webhook = subject.delivery, subject.webhook
    sentences = [
        f"Event {delivery['event_id']}, {delivery['type']}, is sent to {webhook.url} again, for 3 days if need be.",
        "Its webhook-id is the same as before: a receiver that has dealt with it can tell.",
    ]
    if webhook.status == "paused":
        sentences.append("The webhook is paused: the event waits until it is resumed.")
    return Plan(
        tuple(sentences),
        transactions.resend_deliveries,
        lambda key, actor: Resending(webhook.id, delivery["event_id"], actor),
        seen=str(delivery["due_at"]),
    )


def actions_on(subject: Subject, scopes: Collection[KeyScope]) -> list[Action]:
    """Return the actions that make sense for a subject as it is, and that these scopes allow."""
    allowed = [each for each in ACTIONS if each.on is type(subject) and each.scope in scopes]
    return [each for each in allowed if find_refusal(each.name, subject) is None and _makes_sense(each.name, subject)]


def find_refusal(name: str, subject: Subject) -> Refusal | None:
    """Return why an action is refused for a subject as it is, whatever is filled in; None where it may be done."""
    if isinstance(subject, UserSubject):
        if crud.is_erased(subject.user) and name in ("suspend", "reopen", "close", "erase", "change"):
            return UserErased()
        if name == "erase" and subject.user.status != "closed":
            return UserNotClosed()
        if name in ("issue-token", "open-account") and subject.user.status != "active":
            return UserNotActive()
    if isinstance(subject, TransferSubject):
        if subject.transfer.reverses_id is not None:
            return ReversalNotReversible()
        if subject.sides.reversed_by is not None:
            return AlreadyReversed()
    if isinstance(subject, HoldSubject) and subject.hold.status != "open":
        return HoldResolved(subject.hold.status)
    return _find_refusal_of_events(name, subject) if isinstance(subject, EventsSubject) else None


def _find_refusal_of_events(name: str, subject: EventsSubject) -> Refusal | None:
    if isinstance(subject, WebhookSubject | DeliverySubject) and subject.webhook.status == "ended":
        return WebhookEnded()
    needs_events = name in ("create-webhook", "test", "send-again")
    return EventsOff() if needs_events and not subject.has_events else None


def _makes_sense(name: str, subject: Subject) -> bool:
    if isinstance(subject, UserSubject):
        status = subject.user.status
        makes_sense = {"suspend": status == "active", "reopen": status != "active", "close": status != "closed"}
        return makes_sense.get(name, True)
    if isinstance(subject, WebhookSubject):
        return {"pause": "active", "resume": "paused"}.get(name, subject.webhook.status) == subject.webhook.status
    return not isinstance(subject, AccountSubject) or subject.owner is not None
