"""Batches: read, checked item by item, and answered item by item."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

from fastapi import Request, Response
from pydantic import ValidationError
from pydantic_core import to_json
from sqlmodel import SQLModel

from api import problems
from api.bodies import MIB, in_thread, parse_body, read_body
from api.errors import PROBLEMS, problem_of
from api.problems import Problem
from ledger import OPERATOR
from models import Answer
from operations import Bulk
from refusals import BatchRefused, Refusal

logger = logging.getLogger("savepoint")

BatchT = TypeVar("BatchT", bound=SQLModel)
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
T = TypeVar("T")

PART = 500
"""Items of a batch that are checked, or shown, at a time."""


class RefusedItem(Answer):
    """An item of a batch that was refused, or may not have been stored, and why."""

    index: int
    status: Literal["refused"] = "refused"
    problem: Problem


def batch_body(batch: type[SQLModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that read_batch reads."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{batch.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


async def read_batch(request: Request, batch: type[BatchT], caller: int) -> BatchT:
    """The body of a batch, read by the route itself: its limit depends on the caller."""
    limit = (16 if caller == OPERATOR else 2) * MIB
    body = await read_body(request, dict(request.scope["headers"]), limit)
    if not body:
        raise problems.InvalidFields([problems.FieldError(field="body", detail="This field is required")])
    content = await parse_body(body, limit)
    try:
        return batch.model_validate(content)
    except ValidationError as error:
        raise problems.invalid_fields(error, "body") from None


async def run_batch(
    write: Callable[[Bulk[Item]], Awaitable[Sequence[Outcome | Exception]]],
    name: str,
    items: Sequence[Any],
    on_error: Literal["rollback", "continue"],
    *,
    check: Callable[[Any], Item],
    show: Callable[[Outcome], dict[str, Any]],
) -> Response:
    """Check each item by itself, write the valid ones, and answer with the outcome of each.

    `show` returns what the answer says of an item that was stored, beside its index and status. With `rollback`, raises
    InvalidFields and BatchRefused.
    """
    all_or_nothing = on_error == "rollback"
    checked = await _in_parts(_checking(check, name), items)
    invalid = [each for each in checked if isinstance(each, problems.InvalidFields)]
    if all_or_nothing and invalid:
        errors = [error for each in invalid for error in each.errors]
        unlisted = len(errors[problems.MAX_LISTED :]) + sum(each.unlisted for each in invalid)
        raise problems.InvalidFields(errors[: problems.MAX_LISTED], unlisted)
    valid = [each for each in checked if not isinstance(each, problems.InvalidFields)]
    done = iter(await write(Bulk(valid, all_or_nothing)))
    outcomes = [each if isinstance(each, problems.InvalidFields) else next(done) for each in checked]
    refused = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Refusal)]
    if all_or_nothing and refused:
        raise BatchRefused(refused)

    def show_item(index: int, outcome: Outcome | Exception) -> RefusedItem | dict[str, Any]:
        if isinstance(outcome, Exception):
            return RefusedItem.model_construct(index=index, problem=_problem_of_item(outcome, name, index))
        return {"index": index, "status": "created", **show(outcome)}

    shown = await _in_parts(lambda index, outcome: to_json(show_item(index, outcome)), outcomes)
    return Response(b'{"results":[%b]}' % b",".join(shown), media_type="application/json")


async def _in_parts(function: Callable[[int, Any], T], items: Sequence[Any]) -> list[T]:
    """Return what the function returns for the index and value of each item.

    It is called in the thread, for some milliseconds at a time, so that other bodies are read between them.
    """

    def call(first: int) -> list[T]:
        return [function(index, items[index]) for index in range(first, min(first + PART, len(items)))]

    return [each for first in range(0, len(items), PART) for each in await in_thread(call, first)]


def _checking(check: Callable[[Any], Item], name: str) -> Callable[[int, Any], Item | problems.InvalidFields]:
    """Return what checks an item; MAX_LISTED errors are described at most, and one of each further invalid item."""
    left = problems.MAX_LISTED

    def check_item(index: int, item: Any) -> Item | problems.InvalidFields:
        nonlocal left
        try:
            return check(item)
        except ValidationError as error:
            invalid = problems.invalid_fields(error, "body", name, index, listed=max(left, 1))
            left -= len(invalid.errors)
            return invalid

    return check_item


def _problem_of_item(error: Exception, *item: str | int) -> Problem:
    if isinstance(error, problems.InvalidFields):
        return problems.invalid_request(error.errors, error.unlisted)
    if isinstance(error, Refusal):
        return problem_of(error, *item) if error.field else PROBLEMS[type(error)]
    logger.error("Item %s of a batch failed unexpectedly: %s", ".".join(map(str, item)), problems.describe(error))
    return problems.INTERNAL_ERROR
