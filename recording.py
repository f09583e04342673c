"""What is stored beside a change, in its transaction: the operator's action, and the events that tell of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from db.database import TELLS_EVENTS
from db.statements import insert_rows
from fields import ActionName, EventType, Status
from ledger import Actor, Ledger
from models import Event, OperatorAction

SUBJECTS_TOGETHER = 500
"""Events that one row has, at most: each of them may become a delivery to each webhook, in one transaction."""

ACTION_OF_STATUS: Mapping[Status, ActionName] = {
    "active": "user.reopen",
    "suspended": "user.suspend",
    "closed": "user.close",
}
EVENT_OF_STATUS: Mapping[Status, EventType] = {
    "active": "user.reopened",
    "suspended": "user.suspended",
    "closed": "user.closed",
}


def action(
    actor: Actor,
    action: ActionName,
    user_id: int | None = None,
    *,
    account_id: int | None = None,
    transfer_id: int | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Return the row of an action. No personal data is among the details."""
    return {
        "action": action,
        "key_id": actor.key_id,
        "request_id": actor.request_id,
        "user_id": user_id,
        "account_id": account_id,
        "transfer_id": transfer_id,
        "details": details or None,
    }


def record(session: AsyncSession, actions: Sequence[dict[str, Any]], moment: datetime) -> None:
    """Store what the operator did, in the transaction that does it; it is sent with COMMIT."""
    if actions:
        insert_rows(session, OperatorAction, actions, created_at=moment)


def event(type: EventType, *subject_ids: int | None, **data: Any) -> dict[str, Any]:
    """Return the row of an event of each subject. The data is what their rows cannot tell later; nothing personal."""
    return {"type": type, "subject_ids": subject_ids, "size": len(subject_ids), "data": data or None}


def tells(session: AsyncSession) -> bool:
    """Return True if events are stored: the setting EVENTS."""
    return bool(session.info.get(TELLS_EVENTS))


def tell(session: AsyncSession, events: Iterable[dict[str, Any]], moment: datetime) -> None:
    """Store what happened, in the transaction that did it; it is sent with COMMIT. Without EVENTS, do nothing."""
    if tells(session) and (rows := [*_in_parts(events)]):
        insert_rows(session, Event, rows, created_at=moment)


class Log:
    """What a transaction did, change by change."""

    def __init__(self) -> None:
        self.actions: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def did(self, actor: Actor | None, name: ActionName, user_id: int | None = None, **details: Any) -> None:
        """Add an action, if the operator did it."""
        if actor is not None:
            self.actions.append(action(actor, name, user_id, **details))

    def happened(self, type: EventType, *subject_ids: int | None, **data: Any) -> None:
        """Add an event of each subject, if there are any."""
        if subject_ids:
            self.events.append(event(type, *subject_ids, **data))

    def store(self, session: AsyncSession, moment: datetime) -> None:
        """Store it all, as `record` and `tell` do."""
        record(session, self.actions, moment)
        tell(session, self.events, moment)


def _in_parts(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for each in events:
        for first in range(0, each["size"], SUBJECTS_TOGETHER):
            ids = each["subject_ids"][first : first + SUBJECTS_TOGETHER]
            yield {**each, "subject_ids": ids, "size": len(ids)}


def events_of(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Return what a batch of transfers, holds and transactions did."""
    by_type: dict[EventType, list[int]] = {
        "transfer.created": [each.id for each in ledger.postings],
        "hold.created": [each.id for each in ledger.new_holds],
        "hold.captured": [each.id for each in ledger.resolved if each.status == "captured"],
        "hold.voided": [each.id for each in ledger.resolved if each.status == "voided"],
    }
    yield from (event(type, *ids) for type, ids in by_type.items() if ids)
    for transaction in ledger.transactions:
        yield event("transaction.created", transaction.id, transfer_ids=[each.id for each in transaction.postings])
