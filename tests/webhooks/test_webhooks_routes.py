"""Webhooks as the API takes them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from main import app
from tests.support.events import create_webhook
from tests.support.problems import assert_problem
from tests.support.service import AS_OPERATOR, Rows

pytestmark = pytest.mark.usefixtures("events")

URLS = ["ftp://hooks.example", "https://", "hooks", "https://ann:secret@hooks.example", "https://hooks.example/#part"]


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("refused", URLS)
def test_a_url_that_nothing_can_be_sent_to_is_refused_when_it_is_named(client: TestClient, refused: str) -> None:
    webhook = create_webhook(client)
    for answer in (
        client.post("/webhooks", json={"url": refused}, headers=AS_OPERATOR),
        client.patch(f"/webhooks/{webhook['id']}", json={"url": refused}, headers=AS_OPERATOR),
    ):
        assert_problem(answer, 422, "invalid-request")
        assert [each["field"] for each in answer.json()["errors"]] == ["body.url"]
    assert client.get(f"/webhooks/{webhook['id']}", headers=AS_OPERATOR).json()["url"] == webhook["url"]


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    "refused", ["http://hooks.example", "https://10.0.0.1/", "https://localhost.localdomain.:99999"]
)
def test_in_production_a_url_without_tls_or_of_a_private_address_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    monkeypatch.setattr(app.state.operations.settings, "environment", "production")

    answer = client.post("/webhooks", json={"url": refused}, headers=AS_OPERATOR)

    assert_problem(answer, 422, "invalid-request")
    assert [each["field"] for each in answer.json()["errors"]] == ["body.url"]


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    "update", [{"url": None}, {"status": "ended"}, {"types": []}, {"types": ["nothing"]}, {"personal_data": None}]
)
def test_an_update_that_no_webhook_can_have_is_refused(client: TestClient, update: dict[str, Any]) -> None:
    webhook = create_webhook(client)

    answer = client.patch(f"/webhooks/{webhook['id']}", json=update, headers=AS_OPERATOR)

    assert_problem(answer, 422, "invalid-request")


def test_who_asks_twice_for_a_new_secret_ends_not_the_one_in_use(client: TestClient, rows: Rows) -> None:
    """A retry, or a double click in the console, whose first answer nobody may have seen."""
    webhook = create_webhook(client)
    path = f"/webhooks/{webhook['id']}/secret"
    with ThreadPoolExecutor() as threads:
        answers = [*threads.map(lambda _: client.post(path, headers=AS_OPERATOR), range(4))]

    assert sorted(each.status_code for each in answers) == [200, 409, 409, 409]
    assert_problem(max(answers, key=lambda each: each.status_code), 409, "secret-just-made")
    assert rows("SELECT previous_secret FROM webhooks") == [(webhook["secret"],)]
    rows("UPDATE webhooks SET previous_secret_expires_at = '2026-01-01 00:00:00+00'")
    assert client.post(path, headers=AS_OPERATOR).status_code == 200
