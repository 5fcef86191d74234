"""What PostgreSQL refuses, and for how long: a sign-in, a right, the schema. Others have to mend these.

They are waited out for some time: a password that changes is refused until its file has changed too.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("stepstream.database")

#: What is refused where no statement is.
SIGN_IN = "the sign-in"
SCHEMA = "the schema"
#: Refusals that lie further apart than the bound, and than this, do not belong together.
_QUIET_SECONDS = 60.0


@dataclass(slots=True)
class _Refused:
    why: str
    first: float
    last: float


class Refusals:
    """Refusals by what is refused, each from its first to its last, until it works again.

    Something that was refused once and never asked for again says nothing: between first and last there has
    to be the whole bound, and no long time in which nobody asked.

    Args:
        bound: after how many seconds of refusal a service is not alive; 0 is never.
        clock: the time in seconds.
    """

    def __init__(self, bound: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._bound = bound
        self._clock = clock
        self._refused: dict[str, _Refused] = {}

    def refused(self, what: str, why: str) -> None:
        """PostgreSQL has refused it."""
        now = self._clock()
        known = self._refused.get(what)
        if known is not None and now - known.last <= max(self._bound, _QUIET_SECONDS):
            known.why, known.last = why, now
            return
        self._refused[what] = _Refused(why, now, now)
        limit = f"; unless that changes, the service ends in {self._bound:g} s" if self._bound else ""
        log.error("%s%s", why, limit)

    def worked(self, what: str) -> None:
        """It works."""
        if self._refused and self._refused.pop(what, None) is not None:
            log.info("PostgreSQL does again what it refused")

    def problem(self) -> str | None:
        """What was refused for too long."""
        for refused in self._refused.values():
            if self._bound and refused.last - refused.first >= self._bound:
                return f"{refused.why} (refused for more than {self._bound:g} s)"
        return None
