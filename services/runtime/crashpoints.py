"""Named moments at which a test kills the process, to show that none of them loses or doubles anything.

`STEPSTREAM_CRASH_AT=recorder.polled:3` ends the process by SIGKILL at the third passing of that point: no
clean-up runs, as in a real crash. Without the setting a point costs one comparison.
"""

import logging
import os
import signal
from typing import Final

from services.runtime.errors import ConfigurationError

log = logging.getLogger("stepstream.crashpoints")

#: Every point, and where it lies.
POINTS: Final = {
    "recorder.polled": "a batch is in hand, and nothing of it is looked at",
    "recorder.validated": "its events are read, and no transaction has begun",
    "recorder.in-transaction": "its rows are written, and not committed",
    "recorder.database-committed": "its rows are committed, its dead letters and offsets are not sent",
    "recorder.dead-letters-sent": "its dead letters are acknowledged, its offsets are not sent",
    "recorder.offsets-committed": "all of it is done",
    "waiting.in-transaction": "events that waited for a lock are recorded, and not committed",
    "waiting.dead-letters-sent": "those that are refused now are acknowledged, and still wait",
    "aggregator.polled": "a batch is in hand, and nothing of it is looked at",
    "aggregator.in-transaction": "its counts are written, and not committed",
    "aggregator.database-committed": "its counts are committed, its offsets are not sent",
    "aggregator.offsets-committed": "all of it is done",
    "aggregator.marks-in-transaction": "marks are drained, and not committed",
    "waiting.counts-in-transaction": "journeys that waited for a lock are counted, and not committed",
    "intake.acknowledged": "Kafka has acknowledged events that came in by HTTP, and nobody is told",
    "relay.taken": "messages are taken from the outbox, and none is sent",
    "relay.sent": "Kafka has acknowledged messages, and they are still in the outbox",
    "relay.removed": "they are out of the outbox",
    "operator.redrive-noted": "dead letters are noted as being redriven, and none is sent",
    "operator.redrive-sent": "Kafka has acknowledged copies of them, which is not noted",
    "operator.erase-committed": "a person is erased from the database, and nobody is told",
    "operator.letters-copied": "the dead letters of others are copied, the old ones are still there",
}

_armed = ""
_left = 0


def arm(setting: str) -> None:
    """Makes one point deadly, as `STEPSTREAM_CRASH_AT` says; an empty text disarms.

    Raises:
        ConfigurationError: there is no such point, or the number is none.
    """
    global _armed, _left
    name, _, number = setting.partition(":")
    if name and name not in POINTS:
        raise ConfigurationError(
            f"STEPSTREAM_CRASH_AT: there is no point {name}; there are {', '.join(POINTS)}"
        )
    if not (number or "1").isdigit() or int(number or 1) < 1:
        raise ConfigurationError(f"STEPSTREAM_CRASH_AT: `{number}` is not which passing is meant: 1, 2, ...")
    _armed, _left = name, int(number or 1)
    if name:
        log.warning("this process will kill itself at %s", setting)


def crash_point(point: str) -> None:
    """Ends the process here, by SIGKILL, if this point is the armed one and this passing the one meant."""
    global _left  # noqa: PLW0603 - as above
    if point != _armed:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
