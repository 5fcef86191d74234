"""Settings: errors name the variable and say what to do; the example file shows every one."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.runtime.errors import ConfigurationError
from services.runtime.settings import Settings, load_settings

GOOD = {
    "STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS": "a:9092, b:9093",
    "STEPSTREAM_DATABASE_URL": "postgresql://u:secret@h/db",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(__import__("os").environ):
        if name.startswith("STEPSTREAM_"):
            monkeypatch.delenv(name)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_several_brokers_are_a_list(environment: pytest.MonkeyPatch) -> None:
    assert load_settings().kafka_bootstrap_servers == ["a:9092", "b:9093"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "kafka", "`kafka` is not host:port"),
        ("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "", "at least 1 item"),
        ("STEPSTREAM_DATABASE_URL", "mysql://x", "starts with postgresql://"),
        ("STEPSTREAM_PUBLIC_URL", "mcp.example.com", "starts with http:// or https://"),
        ("STEPSTREAM_BATCH_MAX_RECORDS", "0", "greater than or equal to 1"),
        ("STEPSTREAM_BATCH_MAX_RECORDS", "many", "valid integer"),
    ],
)
def test_a_wrong_setting_is_named(environment: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ConfigurationError, match=re.escape(told)) as caught:
        load_settings()
    assert str(caught.value).startswith(name)
    assert caught.value.exit_code == 2


def test_every_missing_setting_is_named_at_once(environment: pytest.MonkeyPatch) -> None:
    for name in GOOD:
        environment.delenv(name)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == list(GOOD)


def test_the_example_file_shows_every_setting_with_its_default() -> None:
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    shown = dict(re.findall(r"^#?\s?(STEPSTREAM_[A-Z_]+)=(.*)$", text, re.MULTILINE))
    wanted = {"STEPSTREAM_" + name.upper(): field for name, field in Settings.model_fields.items()}
    assert shown.keys() == wanted.keys()
    for name, field in wanted.items():
        if not field.is_required():
            default = field.default
            plain = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
            assert shown[name] == plain, name
