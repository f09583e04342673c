"""The tasks of a process that tells of events: in the service, and in `python manage.py deliver`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from db.database import Database
from settings import Settings, parse_networks
from webhooks.deliverer import Deliverer
from webhooks.sending import Sender
from webhooks.sequencer import Sequencer


@asynccontextmanager
async def telling(database: Database, settings: Settings, *, delivers: bool) -> AsyncIterator[Sequencer | None]:
    """Number events, and deliver them, while the context lasts; without EVENTS, do nothing."""
    if not settings.events:
        yield None
        return
    sequencer = Sequencer(database)
    sender = Sender(
        development=settings.environment == "development",
        networks=parse_networks(settings.webhook_networks),
        user_agent="Savepoint",
    )
    async with sender:
        tasks = [asyncio.create_task(sequencer.run())]
        if delivers:
            tasks.append(asyncio.create_task(Deliverer(database, sender, sequencer).run()))
        try:
            yield sequencer
        finally:
            sequencer.end()
            await asyncio.gather(*tasks)
