"""Events: what happened, in the order of commits, for programs that follow it."""

from time import monotonic
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator

from api.callers import operations_of, operator
from api.errors import OPERATOR_ONLY, documented
from api.pages import Digits
from api.strict_route import StrictRoute
from fields import INT64, wrong
from models import EventsPage
from refusals import EventsOff, EventsPruned, EventUnknown
from webhooks import transactions
from webhooks.sequencer import Sequencer
from webhooks.transactions import TYPES

READERS_LIMIT = 200
"""Calls of a process that may wait for events at once; others are answered without."""

router = APIRouter(route_class=StrictRoute, tags=["events"])


def sequencer_of(request: Request) -> Sequencer:
    """The sequencer of this process. Raises EventsOff."""
    sequencer: Sequencer | None = request.app.state.sequencer
    if sequencer is None:
        raise EventsOff
    return sequencer


def read_types(text: str) -> list[str]:
    """Return the types of events in a query."""
    types = text.split(",")
    for each in types:
        if each not in TYPES:
            raise wrong(f"{each[:20]!r} is no type of event; these are: {', '.join(TYPES)}")
    return types


@router.get(
    "/events",
    summary="Follow what happens",
    responses=documented(*OPERATOR_ONLY, EventsOff, EventUnknown, EventsPruned),
    dependencies=[operator("read")],
)
async def list_events(
    request: Request,
    after: Annotated[
        int | None,
        Query(
            ge=0, lt=2**63, description="The `next` of the answer before; left out, the oldest", json_schema_extra=INT64
        ),
        Digits,
    ] = None,
    types: Annotated[
        Annotated[str, AfterValidator(read_types)] | None,
        Query(description="Only of these types, with commas between them", examples=["transfer.created,hold.expired"]),
    ] = None,
    wait: Annotated[int, Query(ge=0, le=30, description="Seconds to wait, where there is none yet"), Digits] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many items at most"), Digits] = 100,
) -> EventsPage:
    """In the order of commits: who goes on from `next` misses none, and sees nothing that was rolled back.

    Without personal data. With types, an answer looks at up to 10,000 events: it may be short, and `next` goes on.
    """
    sequencer = sequencer_of(request)
    give_up = monotonic() + wait
    while True:
        page = await operations_of(request).read(transactions.list_events, after=after, types=types, limit=limit)
        after, rest = page.next, give_up - monotonic()
        if page.items or rest <= 0 or sequencer.is_ending or sequencer.readers >= READERS_LIMIT:
            return page
        sequencer.readers += 1
        try:
            await sequencer.wait(rest, after)
        finally:
            sequencer.readers -= 1
