"""The contract as the server has it; the other files here are made from it and never changed by hand."""

from stepstream_client.contract.advice import advice_on
from stepstream_client.contract.events import (
    MAX_TIME_MS,
    MIN_TIME_MS,
    OPERATOR_SOURCES,
    TOPIC,
    AnyEvent,
    EventError,
    Rejection,
    StepCorrected,
    UserErased,
    decode,
    encode,
)

__all__ = [
    "MAX_TIME_MS",
    "MIN_TIME_MS",
    "OPERATOR_SOURCES",
    "TOPIC",
    "AnyEvent",
    "EventError",
    "Rejection",
    "StepCorrected",
    "UserErased",
    "advice_on",
    "decode",
    "encode",
]
