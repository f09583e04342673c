"""The head of an answer and its body in one write: uvicorn makes two, and each is a system call and a packet."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeldTransport:
    """A transport that holds what is written back until it is told to release it."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def write(self, data: bytes) -> None:
        """Hold this back."""
        self.held += data

    def close(self) -> None:
        """Close once all is written."""
        self.release()
        self.transport.close()

    def release(self) -> None:
        """Write what was held back."""
        held, self.held = self.held, b""
        if held:
            self.transport.write(held)


class WriteOnce:
    """Holds the head of an answer back until uvicorn has written the first piece of its body.

    uvicorn's `send` is a method of the object that writes to the connection's transport, with either of its HTTP
    implementations (RequestResponseCycle). Another server's answers pass as they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        cycle: Any = getattr(send, "__self__", None)
        if scope["type"] != "http" or not hasattr(cycle, "transport"):
            await self.app(scope, receive, send)
            return

        async def send_held(message: Message) -> None:
            if message["type"] == "http.response.start":
                cycle.transport = HeldTransport(cycle.transport)
                await send(message)
                return
            held = cycle.transport
            await send(message)
            if isinstance(held, HeldTransport):
                held.release()
                cycle.transport = held.transport

        await self.app(scope, receive, send_held)
