"""The algebra behind the Sankey: what a journey is, what it contributes, and how contributions differ.

Pure: values in, values out; no I/O, no clock, nothing but the standard library.
"""

from services.journeys.algebra import (
    Contributions,
    Delta,
    EndingKey,
    Flow,
    Journey,
    TransitionKey,
    accumulate,
    add,
    contributions,
    difference,
    utc_day,
)

__all__ = [
    "Contributions",
    "Delta",
    "EndingKey",
    "Flow",
    "Journey",
    "TransitionKey",
    "accumulate",
    "add",
    "contributions",
    "difference",
    "utc_day",
]
