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

MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    """What is wrong with one field of the request."""

    field: str = Field(description="Where: body, query, path or header, then the name", examples=["body.email"])
    detail: str = Field(description="What is wrong and what is expected")


class ItemError(BaseModel):
    """Why one item of a batch was refused."""

    index: int = Field(description="The item's place in the batch, from 0")
    type: str = Field(examples=["/problems/username-taken"])
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(description="Stable: programs compare this", examples=["/problems/username-taken"])
    title: str = Field(examples=["Username taken"])
    status: int = Field(description="The HTTP status", examples=[409])
    detail: str = Field(
        description="What happened, and what to do", examples=["This username is taken. Choose another one."]
    )
    # RFC 9457 expects a member that does not apply to be left out.
    errors: list[FieldError] | list[ItemError] | SkipJsonSchema[None] = Field(
        default=None, exclude_if=lambda errors: errors is None, description="Each field or item with an error"
    )


def slug(name: str) -> str:
    """UsernameTaken is username-taken."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def make_problem(
    status: int, name: str, detail: str, errors: list[FieldError] | list[ItemError] | None = None
) -> Problem:
    """The problem called `name`, in CamelCase."""
    title = slug(name).replace("-", " ").capitalize()
    return Problem(type=f"/problems/{slug(name)}", title=title, status=status, detail=detail, errors=errors)


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    return Response(problem.model_dump_json(), problem.status, headers, media_type=MEDIA_TYPE)


class InvalidFields(Exception):
    """Fields that FastAPI did not check itself are not what the API describes."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__()
        self.errors = errors


PLAIN_WORDS = {
    "extra_forbidden": "There is no such field",
    "missing": "This field is required",
    "model_attributes_type": "A JSON object is expected",
    "model_type": "A JSON object is expected",
}


def field_errors(error: ValidationError | RequestValidationError, *within: str | int) -> list[FieldError]:
    """What is wrong with each field, in words that repeat no value."""
    # pydantic puts "Value error, " before our own words.
    return [
        FieldError(
            field=".".join(map(str, (*within, *each["loc"]))),
            detail=PLAIN_WORDS.get(each["type"], each["msg"].removeprefix("Value error, ")),
        )
        for each in error.errors()
    ]


def invalid_request(errors: list[FieldError]) -> Problem:
    """The problem of a request that is not what the API describes."""
    return make_problem(422, "InvalidRequest", "Fix the fields listed in errors; /docs describes them.", errors)


INVALID_REQUEST = invalid_request([FieldError(field="body.email", detail="An email address must have an @-sign.")])
INVALID_JSON = make_problem(
    400, "InvalidJson", "The body is not valid JSON. Check its syntax, and that it was sent completely."
)
CONTENT_TOO_LARGE = make_problem(
    413, "ContentTooLarge", "The body is too large. Send at most 1 MiB, or 16 MiB to a batch call."
)
UNSUPPORTED_MEDIA_TYPE = make_problem(
    415, "UnsupportedMediaType", "Send the body as JSON, with the header Content-Type: application/json."
)
INTERNAL_ERROR = make_problem(
    500,
    "InternalError",
    "An unexpected error occurred; the server's log has the details. Check what was stored before you try again.",
)


async def handle_invalid_fields(request: Request, error: Exception) -> Response:
    """Answer what a route found wrong with a request."""
    assert isinstance(error, InvalidFields)
    return respond(invalid_request(error.errors))


async def handle_invalid_request(request: Request, error: Exception) -> Response:
    """Answer what FastAPI found wrong with a request."""
    assert isinstance(error, RequestValidationError)
    if any(each["type"] == "json_invalid" for each in error.errors()):
        return respond(INVALID_JSON)
    if isinstance(error.body, bytes) and error.body:
        return respond(UNSUPPORTED_MEDIA_TYPE)
    return respond(invalid_request(field_errors(error)))


FRAMEWORK_PROBLEMS = {
    400: make_problem(400, "InvalidBody", "The body could not be read. Send it whole, as JSON in UTF-8."),
    404: make_problem(404, "NotFound", "There is nothing at this path. /docs lists all paths."),
    405: make_problem(
        405,
        "MethodNotAllowed",
        "This path does not support this method. The header Allow lists the methods that it supports.",
    ),
    413: CONTENT_TOO_LARGE,
    415: UNSUPPORTED_MEDIA_TYPE,
}


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
    """What kind of error it is and where it came from, without its text, which may hold anybody's data."""
    kind = type(error).__qualname__
    if isinstance(error, DBAPIError):
        cause = error.orig
        diagnostic = getattr(cause, "diag", None)
        code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
        where = getattr(diagnostic, "constraint_name", None) or getattr(diagnostic, "table_name", None)
        kind += f" ({type(cause).__qualname__}, {code}{f', {where}' if where else ''})"
    return kind + "\n" + "".join(traceback.format_tb(error.__traceback__))


def cause_of(error: BaseException) -> str:
    """The words of the driver where the database was out of reach; they name hosts and files, never anybody's data."""
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
