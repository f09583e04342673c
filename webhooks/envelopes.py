"""Events as the API and webhooks tell them: with their subjects, as the API shows these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from db.statements import dialect_of
from db.trips import Rows, call, execute_together
from fields import EventType
from models import EventPublic
from webhooks import queries

PERSONAL = {"username", "email", "phone_number", "memo", "metadata"}
"""The fields that only a webhook that asks for personal data is told."""

IMPLIED: Mapping[str, dict[str, Any]] = {
    "account.opened": {"credit_limit": 0},
    "hold.captured": {"status": "captured"},
    "hold.created": {"status": "open", "resolved_at": None},
    "hold.expired": {"status": "expired"},
    "hold.voided": {"status": "voided"},
    "key.issued": {"revoked_at": None},
    "token.issued": {"revoked_at": None},
    "user.closed": {"status": "closed"},
    "user.erased": {"status": "closed"},
    "user.registered": {"status": "active"},
    "user.reopened": {"status": "active"},
    "user.suspended": {"status": "suspended"},
}
"""What else the type of an event says."""

ENDS: Mapping[str, str] = {
    "hold.captured": "resolved_at",
    "hold.voided": "resolved_at",
    "key.revoked": "revoked_at",
    "token.revoked": "revoked_at",
}
"""The field that has the instant of the event."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event as it is stored."""

    id: int
    type: EventType
    subject_id: int
    data: dict[str, Any] | None
    created_at: datetime

    @property
    def kind(self) -> str:
        """What it happened to: a key of SUBJECTS."""
        return self.type.partition(".")[0]


def read_events(rows: Rows) -> Iterator[Happened]:
    """Return the events of rows, as select_events returns them, in order."""
    for number, type, subject_ids, data, created_at in rows:
        for id, subject_id in enumerate(subject_ids, number):
            yield Happened(id, type, subject_id, data, created_at)


async def show_events(session: AsyncSession, events: Sequence[Happened], *, personal_data: bool) -> list[EventPublic]:
    """Return events as they are told. Personal data is as it is now: of a user who was erased, nothing is told."""
    wanted: dict[str, set[int]] = {}
    for each in events:
        wanted.setdefault(each.kind, set()).add(each.subject_id)
    dialect = dialect_of(session)
    calls = [call(queries.select_subjects(dialect, kind), ids=sorted(ids)) for kind, ids in wanted.items()]
    found = await execute_together(session, *calls) if calls else ()
    subjects: dict[tuple[str, int], dict[str, Any]] = {}
    for kind, rows in zip(wanted, found, strict=True):
        names = queries.SUBJECTS[kind][1]
        for values in rows:
            subject = dict(zip(names, values, strict=True))
            subjects[kind, subject["id"]] = subject
    return [_show_event(each, subjects.get((each.kind, each.subject_id), {}), personal_data) for each in events]


def _show_event(event: Happened, subject: dict[str, Any], personal_data: bool) -> EventPublic:
    told = {name: value for name, value in subject.items() if personal_data or name not in PERSONAL}
    told = {"id": event.subject_id, **told, **IMPLIED.get(event.type, {}), **(event.data or {})}
    if event.type == "hold.expired":
        told["resolved_at"] = subject.get("expires_at")
    elif event.type in ENDS:
        told[ENDS[event.type]] = event.created_at
    return EventPublic.model_construct(id=event.id, type=event.type, created_at=event.created_at, data=told, version=1)
