"""Write docs/openapi.json, the OpenAPI description of the app: `make openapi`."""

import json
from pathlib import Path

from main import app

FILE = Path(__file__).with_name("openapi.json")


def write_openapi() -> str:
    """The OpenAPI description as the file has it."""
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(write_openapi(), encoding="utf-8")
