"""Errors as problem details (RFC 9457): application/problem+json, never a stack trace, a value or SQL."""

import re
import traceback
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from api.request_ids import request_id_of
from fields import PATTERNS
from refusals import RowsDropped

MEDIA_TYPE = "application/problem+json"

NOTED = "savepoint.problem"
"""The key in a request's scope of the problem that it was answered with."""
CAUSE = "savepoint.cause"
"""The key in a request's scope of what caused it, for the log."""


TYPES: set[str] = set()
"""Every type of problem that this service answers with."""


def _list_types(schema: dict[str, Any]) -> None:
    schema["enum"] = sorted(TYPES)


class FieldError(BaseModel):
    """An error in one field of the request."""

    field: str = Field(description="Where: body, query, path or header, then the name", examples=["body.email"])
    detail: str = Field(description="What is wrong and what is expected")


class ItemError(BaseModel):
    """Why one item of a batch was refused."""

    index: int = Field(description="The item's place in the batch, from 0")
    type: str = Field(examples=["/problems/username-taken"], json_schema_extra=_list_types)
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(
        description="Stable: programs compare this",
        examples=["/problems/username-taken"],
        json_schema_extra=_list_types,
    )
    title: str = Field(examples=["Username taken"])
    status: int = Field(description="The HTTP status", examples=[409])
    detail: str = Field(
        description="What happened, and what to do", examples=["This username is taken. Choose another one."]
    )
    # RFC 9457 expects a member that does not apply to be left out.
    errors: list[FieldError] | list[ItemError] | SkipJsonSchema[None] = Field(
        default=None, exclude_if=lambda errors: errors is None, description="Each field or item with an error"
    )
    request_id: str | SkipJsonSchema[None] = Field(
        default=None,
        exclude_if=lambda request_id: request_id is None,
        description="The X-Request-ID of the answer, by which it is found in the server's log",
        examples=["5f2c91d0a4b7e863"],
    )


def slug(name: str) -> str:
    """Return username-taken for UsernameTaken."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def type_of(name: str) -> str:
    """The type of the problem called `name`, in CamelCase."""
    return f"/problems/{slug(name)}"


def make_problem(
    status: int, name: str, detail: str, errors: list[FieldError] | list[ItemError] | None = None
) -> Problem:
    """The problem called `name`, in CamelCase."""
    title = slug(name).replace("-", " ").capitalize()
    return Problem(type=type_of(name), title=title, status=status, detail=detail, errors=errors)


class ProblemResponse(Response):
    """A problem as a response, with the id of its request; it leaves a note of the problem in the request's scope."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        self.problem = problem
        super().__init__(None, problem.status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope[NOTED] = self.problem
        self.body = self.problem.model_copy(update={"request_id": request_id_of(scope)}).model_dump_json().encode()
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    return ProblemResponse(problem, headers)


class InvalidFields(Exception):
    """Errors in fields that FastAPI does not check itself; `unlisted` more were found."""

    def __init__(self, errors: list[FieldError], unlisted: int = 0) -> None:
        super().__init__()
        self.errors = errors
        self.unlisted = unlisted


class BadBody(Exception):
    """A body that cannot be read as JSON."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.problem = problem
        self.headers = headers


MAX_LISTED = 100
"""Errors that one answer lists; it gives the number of the others."""

PLAIN_WORDS = {
    "extra_forbidden": "There is no such field",
    "missing": "This field is required",
    "model_attributes_type": "A JSON object is expected",
    "model_type": "A JSON object is expected",
    "dict_type": "A JSON object is expected",
    "list_type": "A JSON array is expected",
    "string_type": "A text is expected",
    "string_unicode": "Write whole characters: half of a surrogate pair is none",
    "int_type": "A whole number is expected",
    "uuid_parsing": "Write a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12",
    "uuid_type": "Write a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12",
    "string_too_short": "This is too short: write {min_length} or more characters",
    "string_too_long": "This is too long: write {max_length} or fewer characters",
    "too_short": "There are too few: send {min_length} or more",
    "too_long": "There are too many: send {max_length:,} or fewer",
    "greater_than_equal": "This is too small: {ge} is the least",
    "less_than_equal": "This is too large: {le} is the most",
    "less_than": "This is too large: it must be less than {lt}",
    "literal_error": "Write {expected}",
}


def shorten(name: str | int) -> str:
    """The beginning of a field's name, which the sender may have made long, in whole characters."""
    return str(name)[:MAX_LISTED].encode(errors="backslashreplace").decode()


def _plain_words(error: Mapping[str, Any]) -> str:
    """Describe an error of pydantic's in words that repeat no value."""
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] in PATTERNS:
        return PATTERNS[error["ctx"]["pattern"]]
    # pydantic puts "Value error, " before the words of a ValueError.
    message: str = error["msg"]
    words = PLAIN_WORDS.get(error["type"])
    return message.removeprefix("Value error, ") if words is None else words.format_map(error.get("ctx", {}))


def invalid_fields(
    error: ValidationError | RequestValidationError, *within: str | int, listed: int = MAX_LISTED
) -> InvalidFields:
    """Describe the first `listed` errors, and count the rest."""
    # Without what was sent, which may be large.
    found = (
        error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else error.errors()
    )
    errors = [
        FieldError(field=".".join(map(shorten, (*within, *each["loc"]))), detail=_plain_words(each))
        for each in found[:listed]
    ]
    return InvalidFields(errors, unlisted=len(found) - len(errors))


def field_errors(error: ValidationError | RequestValidationError, *within: str | int) -> list[FieldError]:
    """Describe the error in each field."""
    return invalid_fields(error, *within).errors


def more(unlisted: int) -> str:
    """The end of a detail: the number of errors that are not listed."""
    return f" There are {unlisted:,} more errors." if unlisted else ""


def invalid_request(errors: list[FieldError], unlisted: int = 0) -> Problem:
    """The problem of a request that is not what the API describes."""
    detail = "Fix the fields listed in errors; /docs describes them."
    return make_problem(422, "InvalidRequest", detail + more(unlisted), errors)


def invalid_body(detail: str) -> Problem:
    """The problem of a body that cannot be read."""
    return make_problem(400, "InvalidBody", detail)


INVALID_REQUEST = invalid_request([FieldError(field="body.email", detail="An email address must have an @-sign.")])
INVALID_JSON = make_problem(
    400, "InvalidJson", "The body is not valid JSON. Check its syntax, and that it was sent completely."
)
INVALID_BODY = invalid_body("The body could not be read. Send it completely, as JSON in UTF-8.")
CONTENT_TOO_LARGE = make_problem(
    413, "ContentTooLarge", "The body is too large. Send at most 1 MiB; a batch has 2 MiB, the operator's 16 MiB."
)
UNSUPPORTED_MEDIA_TYPE = make_problem(
    415, "UnsupportedMediaType", "Send the body as JSON, with the header Content-Type: application/json."
)
UNSUPPORTED_CODING = make_problem(415, "UnsupportedMediaType", "Send the body as it is, without a Content-Encoding.")
INTERNAL_ERROR = make_problem(
    500,
    "InternalError",
    "An unexpected error occurred; the server's log has the details. Check what was stored before you try again.",
)


async def handle_invalid_request(request: Request, error: Exception) -> Response:
    """Answer a request that FastAPI, or a route itself, found invalid."""
    if isinstance(error, BadBody):
        return respond(error.problem, error.headers)
    if isinstance(error, RequestValidationError):
        invalid = invalid_fields(error)
        for each in error.errors():
            # A ValueError keeps the frames that it was raised in, and with them this error and the request, in memory.
            each.get("ctx", {}).pop("error", None)
        error = invalid
    assert isinstance(error, InvalidFields)
    return respond(invalid_request(error.errors, error.unlisted))


FRAMEWORK_PROBLEMS = {
    400: INVALID_BODY,
    404: make_problem(404, "NotFound", "There is nothing at this path. /docs lists all paths."),
    405: make_problem(
        405,
        "MethodNotAllowed",
        "This path does not support this method. The header Allow lists the methods that it supports.",
    ),
    413: CONTENT_TOO_LARGE,
    415: UNSUPPORTED_MEDIA_TYPE,
}
TYPES.update(each.type for each in (INVALID_REQUEST, INVALID_JSON, INTERNAL_ERROR, *FRAMEWORK_PROBLEMS.values()))


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Answer an error that the framework raised by its status."""
    assert isinstance(error, HTTPException)
    problem = FRAMEWORK_PROBLEMS.get(error.status_code)
    if problem is None:
        phrase = HTTPStatus(error.status_code).phrase
        name = "".join(word.capitalize() for word in re.sub(r"[^\w ]", "", phrase).split())
        problem = make_problem(error.status_code, name, f"{phrase}.")
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The framework names the methods of the first route only.
        routes = (route for route in iter_route_contexts(request.app.routes) if route.methods)
        matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
        allowed = {method for route in matching for method in route.methods or ()}
        allowed |= {"HEAD"} if "GET" in allowed else set()
        headers |= {"Allow": ", ".join(sorted(allowed))} if allowed else {}
    return respond(problem, headers)


def describe(error: BaseException) -> str:
    """Describe the kind and the place of an error, without its text, which may hold personal data."""
    kind = type(error).__qualname__
    if isinstance(error, RowsDropped):
        # Its text holds no data.
        kind += f": {error}"
    if isinstance(error, DBAPIError):
        cause = error.orig
        diagnostic = getattr(cause, "diag", None)
        code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
        where = getattr(diagnostic, "constraint_name", None) or getattr(diagnostic, "table_name", None)
        kind += f" ({type(cause).__qualname__}, {code}{f', {where}' if where else ''})"
    return kind + "\n" + "".join(traceback.format_tb(error.__traceback__))


def cause_of(error: BaseException) -> str:
    """The driver's message where the database was out of reach; it names hosts and files, never personal data."""
    return f" ({str(error.__cause__).partition(chr(10))[0]})" if error.__cause__ is not None else ""


def document(examples: Iterable[Problem]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses for these problems, by status."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for problem in examples:
        response = by_status.setdefault(
            problem.status,
            {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}}},
        )
        response["content"][MEDIA_TYPE]["examples"][problem.type] = {
            "summary": problem.title,
            "value": problem.model_dump(),
        }
    for response in by_status.values():
        shown = response["content"][MEDIA_TYPE]["examples"].values()
        response["description"] = "; ".join(example["summary"] for example in shown)
    return dict(sorted(by_status.items()))
