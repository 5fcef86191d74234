"""Every metric, by name, and how logs look."""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

BUILD = Gauge("stepstream_build_info", "1, with the release that runs.", ["version"])
EVENTS = Counter(
    "stepstream_events", "Events read, by what became of them.", ["service", "outcome"], registry=REGISTRY
)
BATCH_EVENTS = Histogram(
    "stepstream_batch_events",
    "Events in a batch.",
    ["service"],
    buckets=(1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000),
    registry=REGISTRY,
)
BATCH_SECONDS = Histogram(
    "stepstream_batch_seconds",
    "Seconds from a batch's arrival to the commit of its offsets.",
    ["service"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
PHASE_SECONDS = Histogram(
    "stepstream_phase_seconds",
    "Seconds of a batch by phase: read, transaction, dead-letters, commit.",
    ["service", "phase"],
    buckets=_SECONDS,
)
LAG = Gauge(
    "stepstream_lag_events",
    "Events of a partition that its consumer has yet to handle; of partitions that this instance has.",
    ["service", "partition"],
)
NEWEST = Gauge(
    "stepstream_newest_event_timestamp_seconds",
    "When the newest event that this instance has handled happened, as the event says it.",
    ["service"],
)
READ_AGAIN = Counter(
    "stepstream_events_read_again", "Events that the recorder had judged before: after a crash, or a replay."
)
EXPIRED = Counter(
    "stepstream_events_expired",
    "Events that Kafka removed before this consumer read them.",
    ["service"],
)
REWINDS = Counter(
    "stepstream_rewinds",
    "How often a partition was read on from an earlier offset than the service had been at.",
    ["service"],
)
REBALANCES = Counter(
    "stepstream_rebalances", "How often the group shared out its partitions anew.", ["service"]
)
CANCELLED = Counter(
    "stepstream_batches_rolled_back",
    "Batches rolled back because their partitions went to another instance before they were done.",
    ["service"],
)
PAUSED = Gauge(
    "stepstream_paused",
    "1 while fetching pauses because the batch in hand waits for something that is away.",
    ["service"],
)
UNREADABLE = Gauge(
    "stepstream_unreadable_batches",
    "1 while a partition stands still at a batch that cannot be read; the others go on.",
    ["service", "partition"],
)
HELD = Gauge(
    "stepstream_partitions_held",
    "1 while a partition stands still because somebody else has locked the row of its position, or the "
    "recorder does not judge its events; the others go on.",
    ["service", "partition"],
)
EVENTS_WAITING = Gauge(
    "stepstream_events_waiting", "Events that wait for rows which somebody else has locked."
)
EVENTS_WAITING_AGE = Gauge(
    "stepstream_events_waiting_age_seconds", "How long the oldest event has waited for a lock."
)
GONE = Gauge(
    "stepstream_gone_ranges",
    "Ranges of events that are gone from Kafka, or were left behind, and that nobody has acknowledged.",
)
DISAGREEMENTS = Gauge(
    "stepstream_disagreements",
    "What of the database, the topic and the groups' offsets does not agree, as the recorder sees it.",
)
DEAD_LETTERS = Counter(
    "stepstream_dead_letters", "Events sent to the dead letters, by error class.", ["error_class"]
)
SOURCE_DEAD_LETTERS = Counter(
    "stepstream_source_dead_letters",
    "Events refused when they were read for the first time, by source; a hundred sources have a name here.",
    ["source"],
)
RETRIES = Counter(
    "stepstream_retries",
    "Transactions, dead letters and commits of offsets tried again, by the error's name.",
    ["service", "error"],
)
WAITING = Gauge(
    "stepstream_aggregator_waiting", "1 while the aggregator waits for the recorder to judge its events."
)
JOURNEYS = Counter("stepstream_journeys", "Journeys looked at, by whether their counts changed.", ["changed"])
JOURNEYS_WAITING = Gauge(
    "stepstream_journeys_waiting",
    "Journeys that are not counted anew because somebody else has locked what would change.",
)
JOURNEYS_WAITING_AGE = Gauge(
    "stepstream_journeys_waiting_age_seconds", "How long the first of these journeys has waited."
)
TRANSACTION_AGE = Gauge(
    "stepstream_oldest_transaction_seconds",
    "How long the oldest transaction in the database has been open, as far as the aggregator has seen it.",
)
OUTBOX_SENT = Counter("stepstream_outbox_sent", "Events of the outbox that Kafka acknowledged.")
OUTBOX_WAITING = Gauge("stepstream_outbox_waiting", "Events in the outbox, counted up to 100,000.")
OUTBOX_AGE = Gauge("stepstream_outbox_age_seconds", "How long the oldest event of the outbox has waited.")
OUTBOX_SET_ASIDE = Gauge(
    "stepstream_outbox_set_aside", "Events that Kafka refuses and an operator has to see."
)
MCP_CALLS = Counter(
    "stepstream_mcp_calls", "Tool calls of agents, by what they came to.", ["tool", "outcome"]
)
MCP_UNDER_WAY = Gauge("stepstream_mcp_calls_under_way", "Tool calls that are not answered yet.")
MCP_SECONDS = Histogram(
    "stepstream_mcp_seconds",
    "Seconds that a tool call took, with its wait for others of the same moment.",
    ["tool"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
MCP_WAITING = Gauge(
    "stepstream_mcp_waiting",
    "Calls that wait for a place at the database, by lane: calls; strangers, whose server was not known.",
    ["lane"],
)
MCP_WAITING_SECONDS = Histogram(
    "stepstream_mcp_waiting_seconds",
    "Seconds that a call waited for a place at the database, if it did, by lane.",
    ["lane"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
MCP_REFUSED = Counter(
    "stepstream_mcp_refused", "HTTP requests refused before a tool ran, by reason.", ["reason"]
)
MCP_SESSIONS = Gauge("stepstream_mcp_sessions", "Sessions of MCP clients that are open.")
MCP_SESSIONS_ENDED = Counter(
    "stepstream_mcp_sessions_ended",
    "Sessions of MCP clients ended to make room, by the bound: address, server, total.",
    ["bound"],
)
API_REQUESTS = Counter(
    "stepstream_api_requests", "Requests to the analytics API, by route and HTTP status.", ["route", "status"]
)
API_SECONDS = Histogram(
    "stepstream_api_seconds",
    "Seconds until the analytics API began to answer, by route.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
API_REFUSED = Counter(
    "stepstream_api_refused", "Questions that were not answered, by HTTP status.", ["status"]
)
API_CROWDED = Counter(
    "stepstream_api_crowded",
    "Refused because the organization or key had its share, or all were taken, by what: questions, large, "
    "streams, exports, writes.",
    ["what"],
)
API_WAITING = Gauge(
    "stepstream_api_waiting",
    "Questions that wait for a place, by lane: small, large, computing, strangers, keys, public, writing.",
    ["lane"],
)
API_WAITING_SECONDS = Histogram(
    "stepstream_api_waiting_seconds",
    "Seconds that a question waited for a place, if it did, by lane.",
    ["lane"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
INTAKE_EVENTS = Counter(
    "stepstream_intake_events",
    "Events that came in by HTTP, by what became of them: accepted, or the class that they were refused as.",
    ["outcome"],
)
INTAKE_THROUGH = Counter(
    "stepstream_intake_accepted",
    "Events that were accepted by HTTP, by where they went: kafka, outbox.",
    ["through"],
)
INTAKE_AWAY = Gauge(
    "stepstream_intake_kafka_away",
    "1 while events that come in by HTTP go to the outbox because Kafka does not answer.",
)
API_LIVE = Gauge("stepstream_api_live_streams", "Live streams that are open.")
HTTP_CONNECTIONS = Gauge("stepstream_http_connections", "Connections to the HTTP port.", ["service"])
HTTP_CLOSED = Counter(
    "stepstream_http_closed",
    "Connections closed for their client's doing, by reason: too slow (head, body, write), a head too large "
    "(head-size), too many requests at once (ahead), too many in all (full) or of one address (address).",
    ["service", "reason"],
)
HTTP_ERRORS = Counter(
    "stepstream_http_errors",
    "Faults of ours: requests answered with an error, or not to the end; and work beside requests.",
    ["service"],
)
MARKS = Counter("stepstream_marks", "Marks of changed journeys that were drained.")


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields given as `extra={"fields": …}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


#: Where uvicorn logs starts that fail, and how many requests it cuts off at the end.
_OF_THE_PROCESS = {("lifespan", "on.py"), ("uvicorn", "server.py")}
#: Requests that are cut off at the end of a service, clients that went away, and sessions that they deleted.
_NO_ERRORS = {"CancelledError", "ClientDisconnect", "ClosedResourceError", "BrokenResourceError"}
#: What uvicorn says of an answer that was cut off: we say why.
_NO_END = "ASGI callable returned without completing response."
#: What asyncpg says of a call that was cancelled: it rolls the transaction back, as it should.
_ROLLED_BACK = "Resetting connection with an active transaction"


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a library's error is one, and is told by nobody else.

    The shell tells once, in its own words, why a start failed; uvicorn would add the traceback.
    """
    error = record.exc_info and record.exc_info[1]
    if type(error).__name__ in _NO_ERRORS or record.msg == _NO_END:
        return False
    return Path(record.pathname).parts[-2:] not in _OF_THE_PROCESS


def _is_no_cancelled_call(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_ROLLED_BACK)


def configure_logging(level: str) -> None:
    """Logs go to stderr, one JSON object a line; libraries speak from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("stepstream").setLevel(level.upper())
    for name in ("uvicorn.error", "mcp.server.streamable_http"):
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_no_cancelled_call)
    # The SDK would write session ids, which open an anonymous person's progress, and each refused request.
    for name in ("runner", "streamable_http_manager", "transport_security", "auth"):
        logging.getLogger(f"mcp.server.{name}").setLevel(logging.ERROR)
    # While the database is away our own retries say so, a line each; the pool would add its tracebacks.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
