"""The algebra behind the Sankey: what a journey is, what it contributes, and how contributions differ.

What people look at, the flow graph, is in `services.journeys.flow`.

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
