"""The contract of the topic `walkthrough.progress.v1`: what an event is, and nothing else."""

from schemas.advice import ADVICE, advice_on
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
    "ADVICE",
    "DEAD_LETTER_SUFFIX",
    "TOPIC",
    "AnyEvent",
    "Event",
    "EventError",
    "Rejection",
    "StepCompleted",
    "UserErased",
    "WalkthroughStarted",
    "advice_on",
    "decode",
    "encode_metadata",
]
