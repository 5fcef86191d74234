"""The month before, simulated: what a producer of events would have sent. Pure, and repeatable."""

import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas import encode
from services.demo.people import WEIGHTS, Offer

_DAY_MS: Final = 86_400_000
_MINUTE_MS: Final = 60_000
_DAYS: Final = 30

#: Of those who come to the hard step, how many stop there: the second server explains it better.
_STOP_AT_HARD: Final = {"hooks-docs": 0.34, "query-coach": 0.15}
_STOP_ELSEWHERE: Final = 0.05


@dataclass(slots=True)
class Past:
    """Somebody's journey: when it was opened, and which steps were shown and done when, in which session."""

    user: str
    offer: Offer
    server: str
    started_at: int
    done: list[tuple[str, int, str]] = field(default_factory=list)
    shown: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def steps(self) -> list[str]:
        return [step for step, _, _ in self.done]

    @property
    def sessions(self) -> dict[str, int]:
        """The sessions, and when each began."""
        found = {f"{self.user}.1": self.started_at}
        for _, at, session in self.done:
            found.setdefault(session, at)
        return found

    def events(self) -> Iterator[bytes]:
        """As the contract has them."""
        common = {
            "mcp_server_user_id": self.user,
            "walkthrough_id": self.offer.walkthrough_id,
            "mcp_server_id": self.server,
        }
        yield encode(
            {
                "type": "walkthrough-started",
                "event_id": self._id("start"),
                **common,
                "mcp_server_session_id": f"{self.user}.1",
                "started_at": self.started_at,
            }
        )
        for kind, field_, steps in (
            ("step-shown", "shown_at", self.shown),
            ("step-completed", "completed_at", self.done),
        ):
            for step, at, session in steps:
                yield encode(
                    {
                        "type": kind,
                        "event_id": self._id(f"{kind} {step}"),
                        **common,
                        "step_id": step,
                        "mcp_server_session_id": session,
                        field_: at,
                    }
                )

    def _id(self, what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.user} {what}"))


def past_month(
    offers: Sequence[Offer],
    steps: Mapping[str, Sequence[str]],
    servers: Mapping[str, str],
    people: int,
    now_ms: int,
    run: str,
) -> list[Past]:
    """What people did in the month before `now_ms`.

    Args:
        offers: who offers what.
        steps: the step ids of each walkthrough, in display order.
        servers: the id of each server by its slug.
        people: how many.
        now_ms: nothing is later.
        run: a word for their ids.
    """
    chance = random.Random(11)  # noqa: S311 - no secret, and the same each time
    return [
        _past(f"mcpu_{run}{i:05}", offer, steps[offer.walkthrough_id], servers[offer.slug], now_ms, chance)
        for i in range(people)
        for offer in chance.choices(offers, WEIGHTS[: len(offers)])
    ]


def _past(
    user: str, offer: Offer, steps: Sequence[str], server: str, now_ms: int, chance: random.Random
) -> Past:
    # More people lately than a month ago.
    at = now_ms - int(_DAYS * _DAY_MS * (1 - chance.random() ** 0.7))
    past = Past(user, offer, server, at)
    if chance.random() < 0.06:
        past.shown.append((steps[0], at, f"{user}.1"))
        return past  # looked, and left
    order = list(steps)
    if chance.random() < 0.18:
        i = chance.randrange(len(order) - 1)
        order[i], order[i + 1] = order[i + 1], order[i]
    hard, session = len(steps) // 2, 1
    for place, step in enumerate(order):
        past.shown.append((step, at, f"{user}.{session}"))
        is_hard = step == steps[hard]
        if place and chance.random() < (_STOP_AT_HARD[offer.slug] if is_hard else _STOP_ELSEWHERE):
            break
        minutes = chance.lognormvariate(3.3 if is_hard else 0.9, 0.8)
        if place and chance.random() < 0.06:
            minutes += chance.uniform(8, 40) * 60
            session += 1
        at += int(minutes * _MINUTE_MS)
        if at >= now_ms:
            break
        past.done.append((step, at, f"{user}.{session}"))
    return past
