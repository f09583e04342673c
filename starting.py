"""A start that is refused, and ends in words instead of a traceback."""

import sys

from starlette.types import Message, Send


class StartRefused(Exception):
    """Why the service does not start, and what to do: a line for each reason."""


def in_words(send: Send) -> Send:
    """Report a start that is refused to the server by its words, where Starlette reports a traceback."""

    async def send_words(message: Message) -> None:
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(error, StartRefused):
            message = {**message, "message": str(error)}
        await send(message)

    return send_words
