"""The contract of the topic `walkthrough.progress.v1`: what an event is, and nothing else."""

from schemas.events import (
    DEAD_LETTER_SUFFIX,
    OPERATOR_SOURCES,
    TOPIC,
    AnyEvent,
    Event,
    EventError,
    OfStep,
    Rejection,
    StepCompleted,
    StepCorrected,
    UserErased,
    WalkthroughStarted,
    decode,
    encode_metadata,
)

__all__ = [
    "DEAD_LETTER_SUFFIX",
    "OPERATOR_SOURCES",
    "TOPIC",
    "AnyEvent",
    "Event",
    "EventError",
    "OfStep",
    "Rejection",
    "StepCompleted",
    "StepCorrected",
    "UserErased",
    "WalkthroughStarted",
    "decode",
    "encode_metadata",
]
