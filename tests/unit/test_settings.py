"""Settings: errors name the variable and say what to do; the example file shows every one."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.runtime.database import open_pool
from services.runtime.environment import load_settings
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.settings import Settings
from services.runtime.tracing import exporter_to

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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:se/cret@h:5432/db",
        "postgresql://u:12/cret@h:5432/db",
        "postgresql://u:se#cret@h:5432/db",
        "postgresql://u:se?cret@h:5432/db",
        "postgresql://u:se[cret@h:5432/db",
        "postgresql://u:se@cret@h:5432/db",
        "postgresql://u:p@se/cret#@h:5432/db",
        "postgresql://u:secret@h:5432x/db",
        "postgresql://u:secret@h:99999/db",
        "postgresql://u:secret@h/db?sslmode",
    ],
)
def test_a_url_of_which_parts_would_be_mistaken_is_refused_and_not_shown(
    environment: pytest.MonkeyPatch, url: str
) -> None:
    for name in ("STEPSTREAM_DATABASE_URL", "STEPSTREAM_API_DATABASE_URL"):
        environment.setenv(name, url)
        with pytest.raises(ConfigurationError, match="%40 %2F") as caught:
            load_settings()
        assert str(caught.value).startswith(name)
        assert not any(piece in str(caught.value) for piece in ("u:se", "12", "cret"))
        environment.setenv(name, GOOD["STEPSTREAM_DATABASE_URL"])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40s%2Fs@a:5432,b:5433/db?target_session_attrs=read-write",
        "postgres://u@[::1]:5432/db?sslmode=verify-full",
        "postgresql:///db?host=/run/postgresql&password=a@b",
        "postgresql://%2Frun%2Fpostgresql/db",
        "postgresql://u:a b%c@h",
    ],
)
def test_a_url_may_have_all_that_libpq_takes(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("STEPSTREAM_DATABASE_URL", url)
    assert load_settings().dsn == url


@pytest.mark.parametrize("parameter", ["sslrootcert", "sslcrl", "sslcert", "sslkey"])
def test_a_file_for_tls_that_the_url_names_is_told_where_it_cannot_be_used(
    environment: pytest.MonkeyPatch, tmp_path: Path, parameter: str
) -> None:
    file = tmp_path / "file.pem"
    for name in ("STEPSTREAM_DATABASE_URL", "STEPSTREAM_API_DATABASE_URL"):
        environment.setenv(name, f"postgresql://u:secret@h/db?sslmode=verify-full&{parameter}={file}")
        with pytest.raises(
            ConfigurationError, match=rf"^{name}: the file {file} \({parameter}\) is not there"
        ):
            load_settings()
        environment.setenv(name, GOOD["STEPSTREAM_DATABASE_URL"])
    if parameter in {"sslrootcert", "sslcrl"}:
        file.write_text("no certificate")
        environment.setenv(
            "STEPSTREAM_DATABASE_URL", f"postgresql://u:secret@h/db?sslmode=verify-full&{parameter}={file}"
        )
        with pytest.raises(
            ConfigurationError, match=rf"{file} \({parameter}\) holds no certificate"
        ) as caught:
            load_settings()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["STEPSTREAM_MCP_CORS_ORIGINS", "STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"])
def test_an_address_with_a_password_is_refused_and_not_repeated(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, "https://user:secret@example.com")
    with pytest.raises(ConfigurationError, match=rf"^{name}: .*without a user") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


async def test_a_file_for_tls_that_goes_while_a_service_runs_is_told(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each new connection reads it; the client itself says only that a file is not there."""
    file = tmp_path / "key.pem"
    file.write_text("key")
    environment.setenv("STEPSTREAM_DATABASE_URL", f"postgresql://u:secret@127.0.0.1:1/db?sslcert={file}")
    settings = load_settings()
    file.unlink()
    with pytest.raises(StepstreamError, match=rf"the file {file} \(sslcert\) is not there") as caught:
        await open_pool(settings)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("content", "told"), [(b"\n", "is empty"), (b"\xffpassword", "no text in UTF-8")])
def test_a_file_that_holds_no_password_is_one_that_cannot_be_read(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: bytes, told: str
) -> None:
    """At the start, and while somebody writes it; what it holds is not said."""
    for name in ("database", "kafka"):
        file = tmp_path / name
        file.write_bytes(b"password")
        environment.setenv(f"STEPSTREAM_{name.upper()}_PASSWORD_FILE", str(file))
        settings = load_settings()
        file.write_bytes(content)
        with pytest.raises(OSError, match=told):
            getattr(settings, f"read_{name}_password")()
        with pytest.raises(ConfigurationError, match=told) as caught:
            load_settings()
        assert "0xff" not in str(caught.value)
        file.write_bytes(b"password")


def test_several_brokers_are_a_list(environment: pytest.MonkeyPatch) -> None:
    assert load_settings().kafka_bootstrap_servers == ["a:9092", "b:9093"]


@pytest.mark.parametrize("brokers", ["u:secret@a:9092", "u:secret@a", "u:sec,ret@a:9092"])
def test_a_password_among_the_brokers_is_refused_and_not_shown(
    environment: pytest.MonkeyPatch, brokers: str
) -> None:
    environment.setenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", brokers)
    with pytest.raises(
        ConfigurationError, match="without a user: that is STEPSTREAM_KAFKA_USERNAME"
    ) as caught:
        load_settings()
    assert "sec" not in str(caught.value)


def test_a_value_that_is_no_utf_8_is_named(environment: pytest.MonkeyPatch) -> None:
    for name in ("STEPSTREAM_GROUP_PREFIX", "STEPSTREAM_DATABASE_PASSWORD_FILE", "stepstream_topic"):
        environment.setenv(name, "a\udcff")
        with pytest.raises(ConfigurationError, match=f"^{name}: it holds bytes that are no UTF-8$"):
            load_settings()
        environment.delenv(name)


@pytest.mark.parametrize("value", ["-1", "-0.001", "-inf", "nan"])
def test_no_time_is_less_than_nothing(environment: pytest.MonkeyPatch, value: str) -> None:
    for name in Settings.model_fields:
        if name.endswith("_seconds"):
            environment.setenv(f"STEPSTREAM_{name.upper()}", value)
            with pytest.raises(ConfigurationError, match=f"^STEPSTREAM_{name.upper()}: "):
                load_settings()
            environment.delenv(f"STEPSTREAM_{name.upper()}")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "kafka", "`kafka` is not host:port"),
        ("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "", "at least 1 item"),
        ("STEPSTREAM_DATABASE_URL", "mysql://x", "starts with postgresql://"),
        ("STEPSTREAM_PUBLIC_URL", "mcp.example.com", "starts with http:// or https://"),
        ("STEPSTREAM_BATCH_MAX_RECORDS", "0", "greater than or equal to 1"),
        ("STEPSTREAM_BATCH_MAX_RECORDS", "many", "valid integer"),
        ("STEPSTREAM_KAFKA_SECURITY_PROTOCOL", "TLS", "'SASL_SSL'"),
        ("STEPSTREAM_KAFKA_SASL_MECHANISM", "GSSAPI", "'SCRAM-SHA-512'"),
        ("STEPSTREAM_KAFKA_CA_FILE", "/there/is/none.pem", "is not there"),
        ("STEPSTREAM_DATABASE_PASSWORD_FILE", "/there/is/none", "is not there"),
        ("STEPSTREAM_DATABASE_PASSWORD_FILE", "/dev/null", "is no file"),
        ("STEPSTREAM_KAFKA_PASSWORD_FILE", __file__.replace("test_settings.py", ""), "is no file"),
        ("STEPSTREAM_WRONG_DATABASE_GUARD", "perhaps", "valid boolean"),
        ("STEPSTREAM_LOG_LEVEL", "loud", "'WARNING'"),
        ("STEPSTREAM_OTLP_ENDPOINT", "collector:4317", "starts with http:// or https://"),
    ],
)
def test_a_wrong_setting_is_named(environment: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ConfigurationError, match=re.escape(told)) as caught:
        load_settings()
    assert str(caught.value).startswith(name)
    assert caught.value.exit_code == 2


def test_brokers_have_to_be_set_where_kafka_is_asked(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS")
    with pytest.raises(ConfigurationError, match="STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS: is not set"):
        load_settings()
    assert load_settings(needs_kafka=False).dsn == "postgresql://u:secret@h/db"
    environment.setenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "kafka")
    with pytest.raises(ConfigurationError, match="`kafka` is not host:port"):
        load_settings(needs_kafka=False)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, ["KAFKA_USERNAME", "KAFKA_PASSWORD"]),
        ({"KAFKA_CERTIFICATE_FILE": __file__}, ["KAFKA_CERTIFICATE_FILE", "KAFKA_KEY_FILE"]),
        (
            {"DATABASE_PASSWORD": "secret", "DATABASE_PASSWORD_FILE": __file__},
            ["DATABASE_PASSWORD", "DATABASE_PASSWORD_FILE"],
        ),
    ],
)
def test_settings_that_go_together_are_named_together(
    environment: pytest.MonkeyPatch, given: dict[str, str], named: list[str]
) -> None:
    for name, value in given.items():
        environment.setenv(f"STEPSTREAM_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert all(f"STEPSTREAM_{name}" in str(caught.value) for name in named)


def test_secrets_are_read_from_files_and_shown_nowhere(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.delenv("STEPSTREAM_DATABASE_URL")
    (tmp_path / "stepstream_database_url").write_text("postgresql://u:secret@h/db\n")
    environment.setenv("STEPSTREAM_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    assert settings.dsn == "postgresql://u:secret@h/db"
    assert "secret" not in repr(settings)
    environment.setenv("STEPSTREAM_DATABASE_URL", "postgresql://other/db")
    assert load_settings().dsn == "postgresql://other/db"


@pytest.mark.parametrize("how", ["a variable names it", "it is in the folder of secrets"])
def test_a_password_in_a_file_is_read_anew(environment: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    file = tmp_path / "stepstream_database_password"
    file.write_text("before\n")
    if how == "a variable names it":
        environment.setenv("STEPSTREAM_DATABASE_PASSWORD_FILE", str(file))
    else:
        environment.setenv("STEPSTREAM_SECRETS_DIR", str(tmp_path))
    settings = load_settings()
    assert settings.read_database_password() == "before"
    file.write_text("after\n")
    assert settings.read_database_password() == "after"
    environment.delenv("STEPSTREAM_DATABASE_PASSWORD_FILE", raising=False)
    environment.setenv("STEPSTREAM_DATABASE_PASSWORD", "of the environment")
    assert load_settings().read_database_password() == "of the environment"


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


@pytest.mark.parametrize("value", ["inf", "1e300", "604801", "nan"])
def test_no_time_is_longer_than_the_clocks_that_it_is_for(
    environment: pytest.MonkeyPatch, value: str
) -> None:
    """The watch of a service that is stuck ended with a traceback, and the service went on without it."""
    for name in Settings.model_fields:
        if name.endswith("_seconds"):
            variable = f"STEPSTREAM_{name.upper()}"
            environment.setenv(variable, value)
            with pytest.raises(ConfigurationError, match=variable):
                load_settings()
            environment.delenv(variable)


def test_scopes_are_those_of_the_server_or_of_all(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STEPSTREAM_OAUTH_SCOPES", "openid  https://a.example/read?x=y")
    environment.setenv("STEPSTREAM_OAUTH_SERVER_SCOPES", "one = a=b c, two=")
    settings = load_settings()
    wanted = {"one": ["a=b", "c"], "two": [], "three": ["openid", "https://a.example/read?x=y"]}
    assert {slug: settings.scopes_at(slug) for slug in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("SCOPES", 'a "b"', '`"b"` is no scope'),
        ("SCOPES", "a, b", "`a,` is no scope"),
        ("SCOPES", "ä", "`ä` is no scope"),
        ("SERVER_SCOPES", "a b", "`a b` is not slug=scopes"),
        ("SERVER_SCOPES", "=a", "`=a` is not slug=scopes"),
        ("SERVER_SCOPES", "a=b\\", "is no scope"),
    ],
)
def test_what_is_no_scope_is_named(
    environment: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    environment.setenv(f"STEPSTREAM_OAUTH_{name}", value)
    with pytest.raises(ConfigurationError, match=f"^STEPSTREAM_OAUTH_{name}: ") as caught:
        load_settings()
    assert problem in str(caught.value)


@pytest.mark.parametrize("url", ["http://a b", "http://x:99999", "https://[::1"])
def test_an_address_that_is_no_url_is_refused_with_words(environment: pytest.MonkeyPatch, url: str) -> None:
    for name in ("STEPSTREAM_PUBLIC_URL", "STEPSTREAM_API_PUBLIC_URL", "STEPSTREAM_OTLP_ENDPOINT"):
        environment.setenv(name, url)
        with pytest.raises(ConfigurationError, match=f"^{name}: it is no URL"):
            load_settings()
        environment.delenv(name)


@pytest.mark.parametrize("name", ["DATABASE_PASSWORD_FILE", "KAFKA_PASSWORD_FILE"])
def test_a_password_where_its_file_should_be_is_not_shown(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(f"STEPSTREAM_{name}", "p4ssword")
    with pytest.raises(ConfigurationError, match=f"STEPSTREAM_{name}: there is no such file") as refused:
        load_settings()
    assert "p4ssword" not in str(refused.value)


@pytest.mark.parametrize("name", ["PUBLIC_URL", "API_PUBLIC_URL"])
def test_a_password_in_an_address_that_everybody_is_shown_is_refused(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(f"STEPSTREAM_{name}", "https://user:p4ssword@mcp.example.com")
    with pytest.raises(ConfigurationError, match=f"STEPSTREAM_{name}: .*everybody") as refused:
        load_settings()
    assert "p4ssword" not in str(refused.value)


def test_headers_for_the_collector_that_cannot_be_read_are_not_shown(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer p4ssword")
    exporter_to("http://127.0.0.1:1/v1/traces").shutdown()
    assert "OTEL_EXPORTER_OTLP_HEADERS" in caplog.text
    assert "p4ssword" not in caplog.text
