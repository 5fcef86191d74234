"""Two cohorts side by side: the difference per link, and whether it is more than chance.

Pure. A journey is one person in one walkthrough, so the journeys at a node that take a link are a binomial
sample, and two shares are compared as a 2 x 2 table: by Fisher's exact test or, where there are many
journeys, by Pearson's chi-squared test, which it then equals closely. With a walkthrough of a hundred links
five would differ by chance alone, so the p-values are adjusted to bound the share of false discoveries
(Benjamini and Hochberg, "Controlling the false discovery rate", 1995).

Only what can differ is tested, and adjusted for: where everybody or nobody of both sides did something, no
test can call that a difference, and it would only weaken the others.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from services.journeys.flow import START, Flows, LinkKey, Outcome
from services.journeys.intervals import newcombe

LEVEL: Final = 0.05
_MANY: Final = 1_000
_FEW_EXPECTED: Final = 5


class Shares(NamedTuple):
    """In each of the two cohorts, how many journeys there are and how many of them did something."""

    of_a: int
    in_a: int
    of_b: int
    in_b: int


class Compared(NamedTuple):
    """The shares, the p-value of their difference, and that adjusted for how many were compared.

    Both are None where the difference was not tested.
    """

    shares: Shares
    p_value: float | None
    p_adjusted: float | None

    def figures(self) -> dict[str, Any]:
        """As the answer has it."""
        s = self.shares
        share_a = s.in_a / s.of_a if s.of_a else None
        share_b = s.in_b / s.of_b if s.of_b else None
        both = share_a is not None and share_b is not None
        between = None if self.p_value is None else newcombe(s.in_a, s.of_a, s.in_b, s.of_b)
        return {
            **s._asdict(),
            "share_a": share_a,
            "share_b": share_b,
            "difference": share_b - share_a if both else None,  # type: ignore[operator]
            "difference_low": between and between.low,
            "difference_high": between and between.high,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "significant": self.is_significant,
        }

    @property
    def is_significant(self) -> bool:
        """Whether it is more than chance."""
        return self.p_adjusted is not None and self.p_adjusted < LEVEL


@lru_cache(maxsize=50_000)  # of many links, most are of few people: the same numbers again and again
def p_value(shares: Shares) -> float | None:
    """How likely a difference at least as large is by chance; None where a side has no journeys."""
    of_a, in_a, of_b, in_b = shares
    if not of_a or not of_b:
        return None
    done, left = in_a + in_b, of_a + of_b - in_a - in_b
    if not done or not left:
        return 1.0
    # It takes half a second to import, which a start of the service does not wait for.
    import numpy as np
    from scipy.stats import chi2_contingency, fisher_exact

    table = np.array([[in_a, of_a - in_a], [in_b, of_b - in_b]])
    total = of_a + of_b
    if total > _MANY and min(of_a, of_b) * min(done, left) / total >= _FEW_EXPECTED:
        return float(chi2_contingency(table, correction=False).pvalue)
    return float(fisher_exact(table).pvalue)


def compare(all_shares: Sequence[Shares], tested: Sequence[bool] | None = None) -> list[Compared]:
    """Each difference, adjusted for all of them that can be more than chance.

    Args:
        all_shares: what is compared, one family.
        tested: which of them can be; without it, all. Where a side has no journeys nothing is tested.
    """
    from scipy.stats import false_discovery_control

    can = [True] * len(all_shares) if tested is None else tested
    found = [
        (shares, p_value(shares) if is_tested else None)
        for shares, is_tested in zip(all_shares, can, strict=True)
    ]
    family = [p for shares, p in found if p is not None and _can_differ(shares)]
    adjusted = iter(false_discovery_control(family).tolist() if family else [])
    return [
        Compared(shares, p, next(adjusted) if p is not None and _can_differ(shares) else p)
        for shares, p in found
    ]


def _can_differ(shares: Shares) -> bool:
    return 0 < shares.in_a + shares.in_b < shares.of_a + shares.of_b


NodeKey = tuple[int, str | None]


def at_nodes(of: Flows) -> Mapping[NodeKey, int]:
    """The journeys at each node, the start among them."""
    counts: Counter[NodeKey] = Counter({(START, None): of.journeys})
    for link in of.links:
        counts[link.position, link.to_step_id] += link.journeys
    return counts


def link_shares(a: Flows, b: Flows) -> dict[LinkKey, Shares]:
    """For each link of either, the share of the journeys at the node that it comes from."""
    nodes_a, nodes_b = at_nodes(a), at_nodes(b)
    found: defaultdict[LinkKey, list[int]] = defaultdict(lambda: [0, 0])
    for side, of in enumerate((a, b)):
        for link in of.links:
            found[link.key][side] += link.journeys
    shares = {}
    for key in sorted(found, key=lambda key: key.order):
        source = key.position - 1, key.from_step_id
        in_a, in_b = found[key]
        shares[key] = Shares(nodes_a.get(source, 0), in_a, nodes_b.get(source, 0), in_b)
    return shares


def drop_shares(a: Flows, b: Flows) -> dict[NodeKey, Shares]:
    """For each node of either at which journeys dropped, the share of the journeys there."""
    nodes_a, nodes_b = at_nodes(a), at_nodes(b)
    found: defaultdict[NodeKey, list[int]] = defaultdict(lambda: [0, 0])
    for side, of in enumerate((a, b)):
        for ending in of.endings:
            if ending.outcome is Outcome.DROPPED:
                found[ending.steps_passed - 1, ending.step_id][side] += ending.journeys
    return {
        key: Shares(nodes_a.get(key, 0), in_a, nodes_b.get(key, 0), in_b)
        for key, (in_a, in_b) in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    }
