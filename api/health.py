"""For load balancers and monitoring."""

from typing import Literal

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

import metrics
from api import problems
from api.bodies import in_thread
from api.callers import operations_of, require_monitoring
from api.database_metrics import gather
from api.errors import OPERATOR_ONLY, documented, problem_of
from api.strict_route import StrictRoute
from models import Answer
from refusals import DatabaseUnavailable
from schema import SchemaState, get_state

router = APIRouter(route_class=StrictRoute, tags=["health"])


class Alive(Answer):
    """The process answers."""

    status: Literal["alive"] = "alive"


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Alive:
    """Answers without asking the database."""
    return Alive()


@router.get(
    "/readyz",
    summary="Can it serve?",
    responses={
        503: {
            **problems.document([problem_of(DatabaseUnavailable())])[503],
            "model": SchemaState,
            "description": "The schema is behind, or differs from its revision, or the database is out of reach",
        }
    },
)
async def readyz(request: Request, response: Response) -> SchemaState:
    """503 while the database is out of reach, or its schema is behind this code or lacks a table or column."""
    state = await operations_of(request).read(get_state, request.app.state.schema)
    if state.status in ("behind", "differs"):
        response.status_code = 503
    return state


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(require_monitoring)],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(*OPERATOR_ONLY, parameters=False),
    },
)
async def get_metrics(request: Request) -> Response:
    """In Prometheus' text format, with the operator's token or that of the setting METRICS_TOKEN."""
    of_database = await gather(operations_of(request), request.app.state.schema, request.app.version)
    return Response(await in_thread(metrics.exposition, of_database), media_type=CONTENT_TYPE_LATEST)
