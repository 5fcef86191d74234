"""Segments: which journeys, by what they began with and by the steps that were done in them.

Pure. What a journey began with are the agent and the metadata of its first event: nothing in the journey came
before them. Whether a step was done is as it is known now: it may be an outcome of anything that came before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeVar, get_args

from services.journeys.comparison import Compared, Shares, compare
from services.journeys.diagnosis import ENOUGH

Kind = Literal["agent", "agent_version", "metadata", "did"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_NOT: Final = "not_"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Condition:
    """What has to hold: one of the values, or none of them; `did` asks for all of them, or for none.

    `key` is that of metadata, else empty. An empty value of an agent, its version or of metadata means that
    there is none.
    """

    kind: Kind
    key: str
    values: tuple[str, ...]
    is_not: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """Conditions that all have to hold, each of another kind or key: the same texts make the same segment."""

    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Segment":
        """The segment that texts ask for, such as `agent:claude-code` or `metadata.plan:free`.

        Raises:
            ValueError: a text means nothing.
        """
        found: dict[tuple[str, str, bool], set[str]] = {}
        for text in texts:
            kind, key, value, is_not = parsed(text)
            found.setdefault((kind, key, is_not), set()).add(value)
        return cls(
            tuple(
                Condition(kind, key, tuple(sorted(found[kind, key, is_not])), is_not)
                for kind in KINDS
                for key, is_not in sorted((k, n) for of, k, n in found if of == kind)
            )
        )

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that it names."""
        return tuple(s for condition in self.conditions if condition.kind == "did" for s in condition.values)


def parsed(text: str) -> tuple[Kind, str, str, bool]:
    """Kind, key, value, and whether it is negated.

    Raises:
        ValueError: it means nothing.
    """
    name, colon, value = text.partition(":")
    is_not = name.startswith(_NOT)
    name = name.removeprefix(_NOT)
    if colon and name.startswith("metadata.") and (key := name.removeprefix("metadata.")):
        return "metadata", key, value, is_not
    for kind in KINDS:
        if colon and name == kind != "metadata" and (value or kind != "did"):
            return kind, "", value, is_not
    raise ValueError(
        f"`{text}` is no segment: write agent:NAME, agent_version:VERSION, metadata.KEY:VALUE or did:STEP, "
        "or any of these with not_ before it"
    )


def written(kind: Kind, value: str, key: str = "", *, is_not: bool = False) -> str:
    """The text that asks for it."""
    name = f"metadata.{key}" if kind == "metadata" else kind
    return f"{_NOT if is_not else ''}{name}:{value}"


class SegmentDifference(NamedTuple):
    """The others (A) and a segment (B) compared.

    `loses` is how many journeys of the segment fewer would be lost at the share of the others; negative, how
    many more. None where the others are nobody.
    """

    compared: Compared
    loses: float | None


def compare_segments(
    all_shares: Sequence[tuple[T, Shares]], *, is_loss: bool
) -> list[tuple[T, SegmentDifference]]:
    """Segments, each against others: what is more than chance first, of that what loses most.

    One family of tests. With fewer than ENOUGH journeys on a side there is none.

    Args:
        all_shares: of the others (A) and the segment (B), how many did something.
        is_loss: whether that is bad.
    """
    tested = [min(of.of_a, of.of_b) >= ENOUGH for _, of in all_shares]
    compared = compare([of for _, of in all_shares], tested)
    found = [
        (name, SegmentDifference(of, _loses(of.shares, is_loss)))
        for (name, _), of in zip(all_shares, compared, strict=True)
    ]
    return sorted(found, key=lambda pair: _order(pair[1]))


def _loses(of: Shares, is_loss: bool) -> float | None:
    if not of.of_a:
        return None
    excess = of.in_b - of.of_b * of.in_a / of.of_a
    return excess if is_loss else -excess


def _order(told: SegmentDifference) -> tuple[bool, bool, bool, float]:
    loses = told.loses or 0.0
    return not told.compared.is_significant, told.compared.p_value is None, loses <= 0, -abs(loses)


def passed_before(step: str, then: Sequence[str], today: Sequence[str]) -> list[str]:
    """The steps that somebody has passed for whom the first open step is this one.

    As `versions.first_open`: by the order of that time, of steps that are still there, and then by today's.
    """
    left = set(today)
    ours = [s for s in then if s in left]
    order = ours if step in ours else [*ours, *(s for s in today if s not in set(ours))]
    return order[: order.index(step)]
