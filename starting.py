"""A start that is refused ends with a message instead of a traceback."""

import sys

from starlette.types import Message, Send


class StartRefused(Exception):
    """The service does not start; the message has a line for each reason, with what to do."""


def in_words(send: Send) -> Send:
    """Send the message of a StartRefused to the server, where Starlette sends a traceback."""

    async def send_words(message: Message) -> None:
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(error, StartRefused):
            message = {**message, "message": str(error)}
        await send(message)

    return send_words
