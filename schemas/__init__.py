"""The contract of the topic `walkthrough.progress.v1`: what an event is, and nothing else."""

from schemas.advice import ADVICE, advice_on
from schemas.causes import event_id as event_id_in
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
    StepShown,
    StepSkipped,
    UserErased,
    WalkthroughStarted,
    decode,
    encode,
    encode_metadata,
)
from schemas.references import Known, Problem, problems_with

__all__ = [
    "ADVICE",
    "DEAD_LETTER_SUFFIX",
    "OPERATOR_SOURCES",
    "TOPIC",
    "AnyEvent",
    "Event",
    "EventError",
    "Known",
    "OfStep",
    "Problem",
    "Rejection",
    "StepCompleted",
    "StepCorrected",
    "StepShown",
    "StepSkipped",
    "UserErased",
    "WalkthroughStarted",
    "advice_on",
    "decode",
    "encode",
    "encode_metadata",
    "event_id_in",
    "problems_with",
]
