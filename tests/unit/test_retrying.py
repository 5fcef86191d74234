"""What is waited out is logged by the name of what is away."""

import asyncpg
import pytest
from aiokafka.errors import KafkaConnectionError

from services.runtime.retrying import retrying


@pytest.mark.parametrize(
    ("error", "logger"),
    [
        (asyncpg.CannotConnectNowError("starting up"), "stepstream.database"),
        (KafkaConnectionError("no broker"), "stepstream.kafka"),
        (TimeoutError(), "stepstream.kafka"),
    ],
)
async def test_a_retry_is_logged_by_what_is_away(
    error: Exception, logger: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def pause(_: float) -> None:
        """Takes no time."""

    async for attempt in retrying("outbox-relay", pause, lambda _: True):
        with attempt:
            if attempt.retry_state.attempt_number == 1:
                raise error
    assert [record.name for record in caplog.records] == [logger]
