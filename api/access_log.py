"""uvicorn's access log, without what callers search for."""

import logging


def cut_query(record: logging.LogRecord) -> bool:
    """Cut the query from a line of the access log: it may hold an email address, or a token put there by mistake."""
    if isinstance(record.args, tuple):
        client, method, target, *rest = record.args
        record.args = (client, method, str(target).partition("?")[0], *rest)
    return True
