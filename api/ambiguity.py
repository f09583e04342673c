"""Refuse what would count in part only: query parameters and headers that are unknown or sent twice."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_params
from pydantic_core import PydanticCustomError

from api.problems import FieldError, InvalidFields, shorten
from fields import METADATA_KEY, check_metadata

SENT_ONCE = ("Authorization", "Content-Encoding", "Content-Type", "Idempotency-Key")
MAX_PARAMETERS = 100
METADATA = "metadata.KEY"
"""The query parameter that stands for one of each key of metadata."""
METADATA_NAME = re.compile(rf"metadata\.{METADATA_KEY.pattern}")


def query_names(dependant: Dependant) -> dict[str, bool]:
    """Return the names of the query parameters, each with True if it may be sent more than once."""
    names = {}
    for field in get_flat_params(Dependant(query_params=dependant.query_params)):
        annotation = field.field_info.annotation
        names[field.alias] = any(get_origin(each) is list for each in (annotation, *get_args(annotation)))
    for dependency in dependant.dependencies:
        names |= query_names(dependency)
    return names


def refuse_ambiguous(request: Request, names: Mapping[str, bool]) -> None:
    """Refuse what would count in part only: unknown or repeated query parameters, and repeated headers."""
    query = request.scope.get("query_string", b"")
    if query.count(b"&") >= MAX_PARAMETERS:
        raise InvalidFields([FieldError(field="query", detail=f"Send at most {MAX_PARAMETERS} parameters")])
    errors = []
    for name, sent in Counter(name for name, _ in parse_qsl(query.decode("latin-1"), True)).items():
        declared = _declared_name(name)
        if declared not in names:
            errors.append(FieldError(field=f"query.{shorten(name)}", detail="There is no such parameter"))
        elif sent > 1 and not names[declared]:
            errors.append(FieldError(field=f"query.{name}", detail="Send this parameter once"))
    sent_headers = Counter(name for name, _ in request.scope["headers"])
    errors += [
        FieldError(field=f"header.{name}", detail="Send this header once")
        for name in SENT_ONCE
        if sent_headers[name.lower().encode()] > 1
    ]
    if errors:
        raise InvalidFields(errors)


def _declared_name(name: str) -> str:
    """Return the name by which a route declares a parameter: "metadata.KEY" is all of metadata's."""
    return METADATA if METADATA_NAME.fullmatch(name) else name


def read_metadata(request: Request) -> dict[str, str]:
    """Return the texts of the query parameters metadata.KEY, by key."""
    sent = request.query_params.items()
    metadata = {name.partition(".")[2]: text for name, text in sent if METADATA_NAME.fullmatch(name)}
    try:
        check_metadata(metadata)
    except PydanticCustomError as error:
        raise InvalidFields([FieldError(field=f"query.{METADATA}", detail=error.message())]) from None
    return metadata
