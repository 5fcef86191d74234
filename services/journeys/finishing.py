"""When a journey is finished: what a walkthrough says of it, and as every figure takes it.

Pure: values in, values out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FinishRule:
    """When a journey of a walkthrough is finished.

    Without a goal, by passing (completing or skipping) every step that is not optional; where all are
    optional, by passing all. What was added after a journey's last activity is not asked of it, unless it was
    shown to the person since. With a goal, by completing one of its steps. Whoever's last step is one of
    `ends` is finished as well, for as long as no other step follows.

    `step_ids` are the walkthrough's steps as they are now, in display order; the rest are some of them.
    `added_in` is the number of the version that added a step, of those that are not there from the first on.
    """

    step_ids: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    goal: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()
    added_in: Mapping[str, int] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """The steps that have to be passed where there is no goal, those that were added last behind."""
        found = tuple(step for step in self.step_ids if step not in self.optional) or self.step_ids
        return tuple(sorted(found, key=lambda step: self.added_in.get(step, 1)))

    @property
    def added(self) -> list[str]:
        """Those of them that are not there from the first version on."""
        return [step for step in self.required if step in self.added_in]

    @property
    def needs_journeys(self) -> bool:
        """Whether it takes more than how many steps a journey has passed, and the last of them."""
        return bool(self.goal or self.added) or len(self.required) < len(self.step_ids)

    def is_finished(
        self,
        step_ids: Sequence[str],
        skipped: Sequence[bool] | None = None,
        version: int | None = None,
    ) -> bool:
        """Whether a journey is finished.

        Args:
            step_ids: what it has passed, in order.
            skipped: which of them were skipped; none where that is None or empty.
            version: the number of that at its last activity; None where one of `added` was shown since.
        """
        if step_ids and step_ids[-1] in self.ends:
            return True
        if self.goal:
            skips = skipped or (False,) * len(step_ids)
            return any(s in self.goal and not skip for s, skip in zip(step_ids, skips, strict=True))
        passed, required = set(step_ids), set(self.required)
        if version is not None and not required <= passed:
            required = {s for s in required if self.added_in.get(s, 1) <= version}
        return bool(required) and required <= passed

    def is_finished_after(self, steps_passed: int, last: str | None) -> bool:
        """The same where it does not need journeys: after so many steps, of which this is the last."""
        return last in self.ends or (0 < steps_passed == len(self.step_ids))
