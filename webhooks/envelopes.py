"""Events as the API and webhooks tell them: with their subjects, as the API shows these."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from db.statements import dialect_of
from db.trips import Rows, call, execute_together
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


async def show_events(session: AsyncSession, rows: Rows, *, personal_data: bool) -> list[EventPublic]:
    """Return events as they are told, from rows as select_events returns them.

    Personal data is as it is now: of a user who was erased, nothing is told.
    """
    wanted: dict[str, set[int]] = {}
    for _, type, subject_id, *_ in rows:
        wanted.setdefault(type.partition(".")[0], set()).add(subject_id)
    dialect = dialect_of(session)
    calls = [call(queries.select_subjects(dialect, kind), ids=sorted(ids)) for kind, ids in wanted.items()]
    found = dict(zip(wanted, await execute_together(session, *calls), strict=True)) if calls else {}
    subjects: dict[tuple[str, int], dict[str, Any]] = {}
    for kind, subject_rows in found.items():
        names = queries.SUBJECTS[kind][1]
        for values in subject_rows:
            subject = dict(zip(names, values, strict=True))
            subjects[kind, subject["id"]] = subject
    return [_show_event(row, subjects.get((row[1].partition(".")[0], row[2]), {}), personal_data) for row in rows]


def _show_event(row: Sequence[Any], subject: dict[str, Any], personal_data: bool) -> EventPublic:
    number, type, subject_id, data, created_at = row
    told = {name: value for name, value in subject.items() if personal_data or name not in PERSONAL}
    told = {"id": subject_id, **told, **IMPLIED.get(type, {}), **_instants(type, subject, created_at), **(data or {})}
    return EventPublic.model_construct(id=number, type=type, created_at=created_at, data=told, version=1)


def _instants(type: str, subject: dict[str, Any], created_at: datetime) -> dict[str, Any]:
    if type == "hold.expired":
        return {"resolved_at": subject.get("expires_at")}
    return {ENDS[type]: created_at} if type in ENDS else {}
