"""Sends what people do in walkthroughs to Stepstream: through Kafka, or by HTTP."""

from typing import TYPE_CHECKING, Any

from stepstream_client.blocking import HttpProducer, Producer
from stepstream_client.buffering import Accepted, Verdict
from stepstream_client.contract import TOPIC, Rejection, encode
from stepstream_client.errors import (
    BufferFull,
    ClientError,
    InvalidEvent,
    NotAcknowledged,
    NotAllowed,
    NotInTime,
    ProducerClosed,
    Refused,
)
from stepstream_client.events import (
    Event,
    StepCompleted,
    StepShown,
    StepSkipped,
    WalkthroughStarted,
    new_event_id,
    validate,
)
from stepstream_client.http import AsyncHttpProducer, Person, RegisteredSession, Session

if TYPE_CHECKING:
    from stepstream_client.kafka import AsyncProducer

__all__ = [
    "TOPIC",
    "Accepted",
    "AsyncHttpProducer",
    "AsyncProducer",
    "BufferFull",
    "ClientError",
    "Event",
    "HttpProducer",
    "InvalidEvent",
    "NotAcknowledged",
    "NotAllowed",
    "NotInTime",
    "Person",
    "Producer",
    "ProducerClosed",
    "Refused",
    "RegisteredSession",
    "Rejection",
    "Session",
    "StepCompleted",
    "StepShown",
    "StepSkipped",
    "Verdict",
    "WalkthroughStarted",
    "encode",
    "new_event_id",
    "validate",
]


def __getattr__(name: str) -> Any:
    """`AsyncProducer` is there where aiokafka is."""
    if name == "AsyncProducer":
        from stepstream_client.kafka import AsyncProducer

        return AsyncProducer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
