"""What the dashboard's sentences must say, by SQL over the tables of events and by hand."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from fractions import Fraction
from math import exp, log, sqrt
from typing import NamedTuple

from scipy.stats import binomtest, chi2_contingency, false_discovery_control, fisher_exact
from scipy.stats.contingency import expected_freq

from services.runtime.database import load_queries

SQL: Mapping[str, str] = load_queries(__file__)
DAY = 86_400_000
_UNITS = ((DAY, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def today() -> int:
    """When the UTC day began, in milliseconds."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    return now - now % DAY


def day_of(ms: int) -> date:
    return datetime.fromtimestamp(ms / 1000, UTC).date()


def many(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def share(part: int, whole: int) -> str:
    """A percentage as the dashboard has them: a digit behind the point below ten, none of what is whole."""
    if not whole:
        return "–"
    percent = Fraction(100 * part, whole)
    if 0 < percent < Fraction(1, 10):
        return "<0.1 %"
    if Fraction(999, 10) < percent < 100:
        return ">99.9 %"
    digits = 1 if percent < 10 and percent.denominator != 1 else 0
    return f"{rounded(percent, digits)} %"


def rounded(number: Fraction, digits: int) -> str:
    """Half up."""
    scaled = int(number * 10**digits + Fraction(1, 2))
    text = f"{scaled:0{digits + 1}}"
    return f"{text[:-digits]}.{text[-digits:]}" if digits else text


def duration(ms: float | None) -> str:
    """The two largest units that fit."""
    if ms is None:
        return "–"
    if ms < 1_000:
        return f"{rounded(Fraction(ms), 0)} ms"
    for (size, unit), smaller in zip(_UNITS, (*_UNITS[1:], None), strict=True):
        if ms < size:
            continue
        if smaller is None:
            return f"{rounded(Fraction(ms) / size, 1 if ms < 10_000 else 0)} {unit}"
        whole, rest = int(ms // size), int(ms % size // smaller[0])
        return f"{whole} {unit} {rest} {smaller[1]}" if rest and whole < 10 else f"{whole} {unit}"
    raise AssertionError(ms)


class Quantile(NamedTuple):
    """When so many have finished, and between which times, None where it is not known."""

    ms: int | None
    low: int | None
    high: int | None

    def __str__(self) -> str:
        if self.ms is None:
            return "at no time that is known"
        high = "not known" if self.high is None else duration(self.high)
        return f"within {duration(self.ms)} (19 times in 20: {duration(self.low)} to {high})"


def kaplan_meier(times: Sequence[tuple[int, bool]], shares: Sequence[float]) -> list[Quantile]:
    """By the product-limit estimate and log-log intervals, written out; `times` are of all, and whether finished."""
    left, variance = Fraction(1), Fraction(0)
    rows: list[tuple[int, float, float, float]] = []
    for at in sorted({ms for ms, finished in times if finished}):
        there = sum(ms >= at for ms, _ in times)
        ended = sum(finished and ms == at for ms, finished in times)
        left *= 1 - Fraction(ended, there)
        if left == 0:
            rows.append((at, 1.0, 1.0, 1.0))
            break
        variance += Fraction(ended, there * (there - ended))
        survives = float(left)
        spread = exp(1.959963984540054 * sqrt(float(variance)) / abs(log(survives)))
        rows.append((at, 1 - survives, 1 - survives ** (1 / spread), 1 - survives**spread))
    return [
        Quantile(*(next((row[0] for row in rows if row[column] >= share), None) for column in (1, 3, 2)))
        for share in shares
    ]


def wilson(part: int, whole: int) -> tuple[float, float]:
    found = binomtest(part, whole).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def newcombe(in_a: int, of_a: int, in_b: int, of_b: int) -> tuple[float, float, float]:
    """The difference of two shares, and between which differences it lies 19 times in 20."""
    (low_a, high_a), (low_b, high_b) = wilson(in_a, of_a), wilson(in_b, of_b)
    a, b = in_a / of_a, in_b / of_b
    below, above = sqrt((b - low_b) ** 2 + (high_a - a) ** 2), sqrt((high_b - b) ** 2 + (a - low_a) ** 2)
    return b - a, b - a - below, b - a + above


class Pair(NamedTuple):
    """How many of each side, and of how many."""

    in_a: int
    of_a: int
    in_b: int
    of_b: int

    @property
    def p_value(self) -> float | None:
        """As documented: Fisher's test, or Pearson's where there are many; None where a side has nobody."""
        if not self.of_a or not self.of_b:
            return None
        if not self.can_differ:
            return 1.0
        table = [[self.in_a, self.of_a - self.in_a], [self.in_b, self.of_b - self.in_b]]
        if self.of_a + self.of_b > 1_000 and expected_freq(table).min() >= 5:
            return float(chi2_contingency(table, correction=False).pvalue)
        return float(fisher_exact(table).pvalue)

    @property
    def difference(self) -> float:
        return self.in_b / self.of_b - self.in_a / self.of_a

    @property
    def can_differ(self) -> bool:
        return 0 < self.in_a + self.in_b < self.of_a + self.of_b

    def says(self, what: str, p_adjusted: float) -> str:
        """The sentence, without its point."""
        said = (
            f"{self.in_a / self.of_a:.1%} of A {what} ({self.in_a} of {self.of_a}) and"
            f" {self.in_b / self.of_b:.1%} of B ({self.in_b} of {self.of_b}): "
        )
        if self.in_a * self.of_b == self.in_b * self.of_a:
            return said + "no difference"
        difference, low, high = (f"{100 * x:+.1f}" for x in newcombe(*self))
        chance = "more than chance" if p_adjusted < 0.05 else "that may be chance"
        p = "< 0.001" if p_adjusted < 0.001 else f"= {p_adjusted:.2g}"
        return f"{said}B {difference} points (between {low} and {high}, 19 times in 20), {chance} (p {p})"


def adjusted(pairs: Sequence[Pair]) -> list[float | None]:
    """The p-values of a family, by Benjamini and Hochberg over those that can differ; None where there is none."""
    family = [p for pair in pairs if pair.can_differ and (p := pair.p_value) is not None]
    found = iter(false_discovery_control(family).tolist() if family else [])
    return [p if (p := pair.p_value) is None or not pair.can_differ else next(found) for pair in pairs]
