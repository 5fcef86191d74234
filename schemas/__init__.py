"""The contract of the topic `walkthrough.progress.v1`: what an event is, and nothing else."""

from schemas.events import (
    DEAD_LETTER_SUFFIX,
    TOPIC,
    AnyEvent,
    Event,
    EventError,
    Rejection,
    StepCompleted,
    UserErased,
    WalkthroughStarted,
    decode,
    encode_metadata,
)

__all__ = [
    "DEAD_LETTER_SUFFIX",
    "TOPIC",
    "AnyEvent",
    "Event",
    "EventError",
    "Rejection",
    "StepCompleted",
    "UserErased",
    "WalkthroughStarted",
    "decode",
    "encode_metadata",
]
