"""How lines of log look: text for people, or JSON for programs, each with its time."""

import json
import logging
import time
from typing import Literal

import uvicorn.logging

_OWN_HANDLER = logging.StreamHandler()


class TextFormatter(logging.Formatter):
    """Time, level and message."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s")


class JSONFormatter(TextFormatter):
    """A JSON object a line, with the record's `fields` as members."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(log_format: Literal["text", "json"]) -> None:
    """Write what this process logs, uvicorn's messages included, in this format to stderr.

    Handlers of the root logger, and formats of uvicorn's handlers that show the time, stay as they were set up.
    uvicorn's access log is off: the lines of api/request_log.py have no queries, and no ids of users.
    """
    formatter = JSONFormatter() if log_format == "json" else TextFormatter()
    _OWN_HANDLER.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[_OWN_HANDLER])
    for handler in logging.getLogger("uvicorn").handlers:
        known = handler.formatter
        is_uvicorns = isinstance(known, uvicorn.logging.DefaultFormatter) and not known.usesTime()
        if is_uvicorns or isinstance(known, TextFormatter):
            handler.setFormatter(formatter)
    access = logging.getLogger("uvicorn.access")
    # As uvicorn's own --no-access-log does.
    access.handlers, access.propagate = [], False
    # At DEBUG it writes what receivers of webhooks answer.
    logging.getLogger("httpcore2").setLevel(logging.INFO)
