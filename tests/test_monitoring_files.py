"""docs/grafana.json and docs/alerts.yml: each name in them is a metric that a running service has."""

import json
import re
import shutil
from collections import defaultdict

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from main import app
from tests.support.service import AS_OPERATOR, OPERATOR_TOKEN, ROOT

DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text())
[GROUP] = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())["groups"]
RULES = GROUP["rules"]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [rule["expr"] for rule in RULES]


@pytest.fixture(scope="module")
def labels(sqlite_template: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels and values of each metric of a service that has answered a few calls."""
    path = shutil.copy(sqlite_template, tmp_path_factory.mktemp("monitoring") / "savepoint.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", f"sqlite:///{path}")
        patch.setenv("OPERATOR_TOKEN", OPERATOR_TOKEN)
        with TestClient(app) as client:
            client.post("/register", json={"username": "alice", "email": "alice@example.com"})
            client.post("/deposits", json={"account_id": 1, "amount": 500}, headers=AS_OPERATOR)
            text = client.get("/metrics", headers=AS_OPERATOR).text
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] |= {*sample.labels, *(f"{name}={value}" for name, value in sample.labels.items())}
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_has_metrics_and_labels_that_there_are(labels: dict[str, set[str]], expression: str) -> None:
    names = re.findall(r"\b(?:savepoint|process)_\w+", expression)
    grouped = {name for group in re.findall(r"\bby \((.*?)\)", expression) for name in group.split(", ")}

    assert names
    assert {*names} <= labels.keys()
    # Prometheus adds the instance itself.
    assert grouped - {"instance"} <= set.intersection(*(labels[name] for name in names))
    for name, selector in re.findall(r"\b(savepoint_\w+)\{(.*?)\}", expression):
        for label, value in re.findall(r'(\w+)="(.*?)"', selector):
            assert label in labels[name]
            if label in ("type", "reason"):
                assert f"{label}={value}" in labels[name]


def test_every_metric_of_ours_is_on_the_dashboard_or_has_an_alert(labels: dict[str, set[str]]) -> None:
    shown = " ".join(EXPRESSIONS)
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in labels if name.startswith("savepoint_")}

    assert {name for name in ours if name not in shown} == set()


def test_every_alert_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 5
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["description"]) > 50


def test_runbooks_name_metrics_and_files_that_there_are(labels: dict[str, set[str]]) -> None:
    alerts = {rule["alert"] for rule in RULES}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in labels}
    for rule in RULES:
        text = rule["annotations"]["description"]
        assert {*re.findall(r"\b(?:savepoint|process)_\w+", text)} <= families, rule["alert"]
        assert {*re.findall(r"\bSavepoint\w+", text)} <= alerts, rule["alert"]
        assert all((ROOT / name).exists() for name in re.findall(r"[\w/]+\.md", text)), rule["alert"]


def test_the_metrics_table_has_every_metric(labels: dict[str, set[str]]) -> None:
    table = (ROOT / "docs" / "monitoring.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\|", table, re.MULTILINE)
    listed = {name: {*re.findall(r"\w+", by)} for name, by in rows}
    ours: dict[str, set[str]] = defaultdict(set)
    for name, found in labels.items():
        if name.startswith("savepoint_"):
            plain = {each for each in found if "=" not in each} - {"le"}
            ours[re.sub(r"_(bucket|sum|count)$", "", name)] |= plain

    assert listed == ours
