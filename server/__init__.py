"""The server: uvicorn's HTTP/1.1 with limits on what one client takes, and cheap refusals under overload."""
