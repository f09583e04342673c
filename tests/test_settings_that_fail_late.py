"""Settings that would only fail later, or be passed over, are refused at the start."""

from pathlib import Path

import pytest

from settings import Settings, SettingsError, settings_from_environment


@pytest.mark.parametrize("name", ["OPERATOR_TOKEN", "METRICS_TOKEN"])
@pytest.mark.parametrize(
    "token",
    ["hunter2-hunter2-hunter2\r", "hunter2-hunter2-hunter2\n", "hunter2 hunter2 hunter2", " hunter2-hunter2-hunter2",
     "hunter2-hünter2-hunter2", 'hunter2"hunter2"hunter2', "hunter2,hunter2,hunter2"],
)  # fmt: skip
def test_a_token_that_no_header_can_carry_is_refused_without_repeating_it(
    name: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, token)

    with pytest.raises(SettingsError) as refusal:
        settings_from_environment()

    assert str(refusal.value).startswith(f"{name}: may have letters (A to Z, a to z), digits and - . _ ~ + / = only")
    assert "CRLF" in str(refusal.value)
    assert "openssl rand -base64 32" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("token", ["q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=", "svp_AZaz09-._~+/=="])
def test_a_token_of_openssl_or_of_our_own_is_taken(token: str) -> None:
    taken = Settings.model_validate({"operator_token": token, "metrics_token": token}).operator_token

    assert taken is not None
    assert taken.get_secret_value() == token


@pytest.mark.parametrize("kind", ["folder", "dangling symlink"])
def test_a_file_of_settings_that_is_no_file_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "folder":
        Path(".env").mkdir()
    else:
        Path(".env").symlink_to("none")

    with pytest.raises(SettingsError, match=r"^The file \.env cannot be read: "):
        settings_from_environment()
