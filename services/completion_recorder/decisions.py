"""Events by which an operator decides about a person: their headers, and whether the recorder passed them."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from schemas import OPERATOR_SOURCES
from services.consumers.lag import RECORDER, committed_offsets
from services.runtime.settings import Settings
from services.runtime.text import format_time

#: How long to wait for the recorder, in seconds.
_RECORDER_SECONDS = 30.0
_CHECK_AGAIN = 0.2


def operator_headers(event: Mapping[str, Any], at: int) -> dict[str, str]:
    """CloudEvents 1.0 in binary mode, as the MCP layer's events, from a source that the recorder trusts."""
    return {
        "ce_specversion": "1.0",
        "ce_id": event["event_id"],
        "ce_type": event["type"],
        "ce_source": OPERATOR_SOURCES[0],
        "ce_time": format_time(at),
    }


async def wait_for_recorder(settings: Settings, partition: int, offset: int) -> bool:
    """Waits until the recorder has passed an event; says whether it has, and gives up where none runs."""
    deadline = time.monotonic() + _RECORDER_SECONDS
    while True:
        group = await committed_offsets(settings, RECORDER)
        if group.committed.get(partition, 0) > offset:
            return True
        if not group.members or time.monotonic() > deadline:
            return False
        await asyncio.sleep(_CHECK_AGAIN)
