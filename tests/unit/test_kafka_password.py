"""The password at Kafka is read anew while a consumer runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.runtime.kafka import renew_secrets
from services.runtime.settings import Settings


async def test_a_file_that_is_gone_is_said_and_keeps_nobody_from_looking_how_far_kafka_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    file.write_text("the first\n")
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        database_url="postgresql://127.0.0.1:1/x",
        kafka_password_file=str(file),
    )
    client = SimpleNamespace(_sasl_plain_password="")
    consumer: Any = SimpleNamespace(_client=client)
    renew_secrets(consumer, settings)
    file.unlink()
    renew_secrets(consumer, settings)
    assert client._sasl_plain_password == "the first"
    assert "STEPSTREAM_KAFKA_PASSWORD_FILE cannot be read" in caplog.text
    assert "the first" not in caplog.text
    file.write_text("the second\n")
    renew_secrets(consumer, settings)
    assert client._sasl_plain_password == "the second"
