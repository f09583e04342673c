"""Savepoint under uvicorn as it comes: its own protocol class, without the limits of server/protocol.py."""

from unittest.mock import patch

from server.protocol import BoundedProtocol

with patch.object(BoundedProtocol, "install"):
    from main import app

__all__ = ["app"]
