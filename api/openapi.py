"""The OpenAPI description of the API, with examples: sent in the order of /docs to a new service, each of them works.

None of them does harm: account 1 is a user's, never the system's; the operator's PATCH leaves a user active; the tokens
that the operator revokes are bob's; a hold that was captured cannot be voided, nor a user closed who has money.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

import tracing
from api.fast_path import FastPath
from api.middleware import CatchUnexpected, CountRequests, LimitBody, TraceRequests
from api.problems import TYPES
from fields import ActionName, DeliveryStatus, EventType, HoldStatus, KeyScope, Status, WebhookStatus
from models import OnError, OnShort, WebhookSwitch
from schema import SchemaStatus

OWN_MIDDLEWARE = (LimitBody, CatchUnexpected)
"""Our middleware around FastAPI, the outermost last."""

SCHEMAS = "#/components/schemas/"

# Cursors before the first item and after the newest, since lists of few items have no next page.
FROM_THE_START = "MA"
FROM_THE_NEWEST = "MTAwMA"

ALICE = {"username": "alice", "email": "alice@example.com", "phone_number": "+4915112345678"}
BOB = {"username": "bob", "email": "bob@example.com"}
CAROL = {"username": "carol", "email": "carol@example.com"}

PAGE = {"after": FROM_THE_START, "limit": 50}
FIRST = {"id": 1}

EXAMPLES: dict[str, dict[str, Any]] = {
    # Alice is user 1, and has account 1 and token 1.
    "register": {"Idempotency-Key": "5f0c9a52-4a55-4b1e-9f3e-2d6f0a3f8c11", "body": ALICE},
    "list_users": {
        **PAGE,
        "status": "active",
        "username_prefix": "al",
        "email": "alice@example.com",
        "reference": "customer-17",
    },
    "get_user": FIRST,
    "update_user": {**FIRST, "body": {"status": "active", "reference": "customer-17", "metadata": {"plan": "pro"}}},
    # User 1 is not closed.
    "erase_user": FIRST,
    # Users 2 and 3, with an account and a token each.
    "register_users": {"body": {"users": [BOB, CAROL], "on_error": "continue"}},
    # Bob's second token, which is token 4, and then all of his.
    "list_users_tokens": {"id": 2, **PAGE},
    "issue_users_token": {"id": 2, "body": {"name": "web", "expires_in_days": 1}},
    "revoke_users_token": {"id": 2, "token_id": 4},
    "revoke_users_tokens": {"id": 2},
    # Key 1, which nobody uses.
    "list_keys": PAGE,
    "issue_key": {"body": {"name": "support", "scopes": ["read", "users"], "expires_in_days": 90}},
    "revoke_key": FIRST,
    "list_actions": {
        "after": FROM_THE_NEWEST,
        "limit": 50,
        "key_id": 1,
        "user_id": 1,
        "account_id": 1,
        "transfer_id": 1,
        "action": "transfer.deposit",
        "request_id": "5f0c9a524a551e9f",
    },
    "get_currencies": PAGE,
    "list_accounts": {**PAGE, "user_id": 1},
    "open_account": {"body": {"currency": "EUR", "label": "savings", "user_id": 1}},
    "get_account": {**FIRST, "at": "2026-11-23T09:00:00Z"},
    "change_credit": {**FIRST, "body": {"credit_limit": 500}},
    "list_entries": {**FIRST, "after": FROM_THE_NEWEST, "limit": 50},
    # Transfers 1 and 2.
    "deposit": {"Idempotency-Key": "top-up-1", "body": {"account_id": 1, "amount": 5000, "memo": "Top-up"}},
    "withdraw": {"Idempotency-Key": "payout-1", "body": {"account_id": 1, "amount": 1000, "memo": "Payout"}},
    # Transfer 3, which is reversed.
    "transfer": {
        "Idempotency-Key": "order-4711",
        "body": {"debit_account_id": 1, "credit_account_id": 2, "amount": 1250, "memo": "Invoice 4711"},
    },
    "list_transfers": {
        "after": FROM_THE_NEWEST,
        "limit": 50,
        "account_id": 1,
        "user_id": 1,
        "reference": "order-4711",
        "transaction_id": 1,
        "hold_id": 1,
        "from": "2026-11-23T09:00:00Z",
        "to": "2027-11-23T09:00:00Z",
        "metadata.KEY": "c-17",
    },
    "get_transfer": FIRST,
    "reverse_transfer": {"id": 3, "Idempotency-Key": "refund-4711"},
    "make_transfers": {
        "body": {
            "transfers": [
                {"debit_account_id": 1, "credit_account_id": 2, "amount": 300, "idempotency_key": "order-4712"},
                {"debit_account_id": 1, "credit_account_id": 2, "amount": 200, "memo": "Invoice 4713"},
            ],
            "on_error": "rollback",
        }
    },
    # Transfers 6 and 7, as transaction 1.
    "make_transaction": {
        "Idempotency-Key": "sale-1",
        "body": {
            "transfers": [
                {"debit_account_id": 1, "credit_account_id": 2, "amount": 190, "memo": "Price"},
                {"debit_account_id": 1, "credit_account_id": 3, "amount": 10, "memo": "Fee"},
            ],
            "reference": "sale-1",
        },
    },
    # Hold 1, which is captured in part, so that it cannot be voided.
    "hold": {
        "Idempotency-Key": "booking-1",
        "body": {"debit_account_id": 1, "credit_account_id": 2, "amount": 500, "expires_in": 86400},
    },
    "list_holds": {"after": FROM_THE_NEWEST, "limit": 50, "account_id": 1, "status": "open"},
    "get_hold": FIRST,
    "capture_hold": {**FIRST, "Idempotency-Key": "booking-1", "body": {"amount": 450}},
    "void_hold": FIRST,
    "list_events": {"after": 0, "types": "user.registered,transfer.created", "wait": 0, "limit": 100},
    # Webhook 1, whose receiver nobody can find.
    "list_webhooks": PAGE,
    "create_webhook": {"body": {"url": "https://hooks.example/savepoint", "types": ["transfer.created"]}},
    "rotate_secret": FIRST,
    "test_webhook": FIRST,
    "list_deliveries": {**FIRST, "after": FROM_THE_NEWEST, "limit": 50, "status": "waiting"},
    "resend_delivery": {**FIRST, "event_id": 1},
    "get_webhook": FIRST,
    "update_webhook": {**FIRST, "body": {"types": ["transfer.created", "hold.expired"], "status": "active"}},
    "end_webhook": FIRST,
    "update_me": {"body": {"email": "alice@example.com", "phone_number": "+4915112345678"}},
    "list_tokens": PAGE,
    "issue_token": {"body": {"name": "laptop", "expires_in_days": 90}},
    # The token just issued: 1 is in use.
    "revoke_token": {"id": 5},
}
"""By operationId: each parameter by its name, and the body."""


SHARED: dict[str, Any] = {
    "ActionDetails": dict[str, Any],
    "ActionName": ActionName,
    "DeliveryStatus": DeliveryStatus,
    "EventType": EventType,
    "HoldStatus": HoldStatus,
    "KeyScope": KeyScope,
    "Metadata": dict[str, str],
    "OnError": OnError,
    "OnShort": OnShort,
    "SchemaStatus": SchemaStatus,
    "UserStatus": Status,
    "WebhookStatus": WebhookStatus,
    "WebhookSwitch": WebhookSwitch,
}
"""Enums and maps that schemas share, by the name that a generated client gives them."""


def with_names(description: dict[str, Any]) -> dict[str, Any]:
    """Name all that has no name, or one that is none, such as Page_HoldPublic_: generators make classes of it."""
    schemas: dict[str, Any] = description["components"]["schemas"]
    types = sorted(TYPES)
    shared = {name: TypeAdapter(kind).json_schema() for name, kind in SHARED.items()}
    shared["ProblemType"] = {"type": "string", "enum": types}
    names = {json.dumps(schema, sort_keys=True): name for name, schema in shared.items()}
    # Generators cannot make a name of a text with slashes: VALUE_19 would be INSUFFICIENT_FUNDS.
    members = [each.removeprefix("/problems/").replace("-", "_").upper() for each in types]
    shared["ProblemType"]["x-enum-varnames"] = members
    titles = {name: schema["title"] for name, schema in schemas.items() if name.endswith("_")}
    references = {f"{SCHEMAS}{name}": f"{SCHEMAS}{title}" for name, title in titles.items()}

    def name_all(part: Any) -> Any:
        if isinstance(part, list):
            return [name_all(each) for each in part]
        if not isinstance(part, dict):
            return references.get(part, part) if isinstance(part, str) else part
        # What stands beside them, such as a description, stays beside the reference.
        unnamed = {key: part[key] for key in ("type", "enum", "additionalProperties") if key in part}
        name = names.get(json.dumps(unnamed, sort_keys=True))
        if name is None:
            return {key: name_all(each) for key, each in part.items()}
        beside = {key: each for key, each in part.items() if key not in (*unnamed, "title")}
        return {"$ref": f"{SCHEMAS}{name}", **beside}

    named = {titles.get(name, name): name_all(schema) for name, schema in schemas.items()}
    components = description["components"] | {"schemas": dict(sorted((named | shared).items()))}
    described: dict[str, Any] = name_all(description | {"components": {}})
    return described | {"components": components}


def with_examples(description: dict[str, Any]) -> dict[str, Any]:
    """Add the examples to the OpenAPI description.

    Swagger UI fills in a parameter's `example`, but only shows the `examples` of its schema. Optional parameters have
    the latter, or every list would be filtered, and every call have the same Idempotency-Key.
    """
    for methods in description["paths"].values():
        for operation in methods.values():
            examples = EXAMPLES.get(operation["operationId"], {})
            for parameter in operation.get("parameters", []):
                if parameter["name"] in examples:
                    example = examples[parameter["name"]]
                    parameter["schema"] = {**parameter["schema"], "examples": [example]}
                    if parameter["required"]:
                        parameter["example"] = example
            if "body" in examples:
                operation["requestBody"]["content"]["application/json"]["example"] = examples["body"]
    return description


class DescribedAPI(FastAPI):
    """FastAPI with a description of the `bodies` that routes read themselves, and with examples."""

    def __init__(self, *, bodies: Sequence[type[BaseModel]], **options: Any) -> None:
        self.bodies = bodies
        super().__init__(**options)

    def build_middleware_stack(self) -> ASGIApp:
        """Put CountRequests outermost, and the fast path next to it unless other middleware was added.

        The layers in between take a tenth of the CPU time of GET /me.
        """
        stack = super().build_middleware_stack()
        if {each.cls for each in self.user_middleware} <= {*OWN_MIDDLEWARE}:
            stack = FastPath(stack)
        return CountRequests(TraceRequests(stack) if tracing.is_requested() else stack)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description."""
        known = self.openapi_schema
        description = super().openapi()
        # FastAPI creates a new description after routes were added.
        if description is known:
            return description
        _, described = models_json_schema(
            [(body, "validation") for body in self.bodies], ref_template=f"{SCHEMAS}{{model}}"
        )
        description["components"]["schemas"] |= described["$defs"]
        self.openapi_schema = with_examples(with_names(description))
        return self.openapi_schema
