"""Settings that cannot work are refused with words that say what can; secrets stay secret."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError

from db.engines import driver_url
from settings import Settings
from tests.support.service import serving
from tokens import development_operator_token, hash_secret, make_token, operator_token_hash


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://user:hunter2@host/name", "mysql is not supported"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("savepoint.db", "not a database URL"),
        ("postgresql://user:hunter2@host:port/name", "not a database URL"),
    ],
)
def test_a_database_url_that_cannot_work_is_refused_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refusal:
        Settings(database_url=url)

    assert "hunter2" not in str(refusal.value)


def test_an_operator_token_that_can_be_guessed_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValidationError, match="at least 16") as refusal:
        Settings.model_validate({"operator_token": "hunter2"})

    assert "hunter2" not in str(refusal.value)


def test_the_url_scheme_of_hosting_providers_is_understood() -> None:
    assert Settings(database_url="postgres://user@host/name").database_url == "postgresql://user@host/name"


def test_postgresql_looks_for_the_primary_unless_told_otherwise() -> None:
    hosts = "postgresql://user@/name?host=a:5432&host=b:5432"

    assert driver_url(hosts, is_async=True).query["target_session_attrs"] == "read-write"
    assert driver_url(f"{hosts}&target_session_attrs=any", is_async=True).query["target_session_attrs"] == "any"


def test_a_token_carries_256_random_bits() -> None:
    first, second = make_token(), make_token()

    assert first.startswith("svp_")
    assert len(first) == len("svp_") + 43  # 6 bits a character
    assert first != second
    assert len(hash_secret(first)) == 64


def test_workers_that_start_at_once_share_one_development_token(tmp_path: Path) -> None:
    file = tmp_path / ".operator-token"

    with ThreadPoolExecutor(8) as workers:
        tokens = set(workers.map(lambda _: development_operator_token(file), range(64)))

    assert len(tokens) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_the_operators_token_is_the_setting_or_in_development_one_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert operator_token_hash(Settings(environment="production")) is None
    assert operator_token_hash(Settings.model_validate({"operator_token": "x" * 16})) == hash_secret("x" * 16)
    made = operator_token_hash(Settings())
    assert capsys.readouterr().out.startswith("Development operator token: svp_")
    assert operator_token_hash(Settings()) == made


def get_users(url: str, token: str) -> tuple[int, str | None]:
    response = httpx2.get(f"{url}/users", headers={"Authorization": f"Bearer {token}"})
    return response.status_code, response.json().get("type")


def test_in_development_the_printed_token_is_the_operators_in_every_worker(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/savepoint.db", tmp_path, workers=2, OPERATOR_TOKEN="") as server:
        token = (tmp_path / ".operator-token").read_text()

        assert server.log.count(f"Development operator token: {token}\n") == 2
        assert {get_users(server.url, token) for _ in range(16)} == {(200, None)}


def test_in_production_without_a_token_operator_calls_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/savepoint.db"
    with serving(url, tmp_path, OPERATOR_TOKEN="", ENVIRONMENT="production") as server:
        assert get_users(server.url, "svp_anything") == (403, "/problems/operator-disabled")
        assert "operator token" not in server.log
    assert not (tmp_path / ".operator-token").exists()
