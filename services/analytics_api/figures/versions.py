"""The versions of a walkthrough: what each edit changed, in words, and who is asked about."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from services.analytics_api.models import (
    Freshness,
    Step,
    VersionChange,
    VersionInShort,
    VersionStep,
    WalkthroughVersion,
    WalkthroughVersions,
)
from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context
from services.journeys.versions import Version, changes
from services.runtime.titles import one_line

_TITLE: Final = 60
#: How many a summary tells.
_NEWEST: Final = 10


def of_versions(context: Context, numbers: Collection[int], where: str = "query.version") -> Context:
    """The walkthrough as journeys saw it that began with these versions; without numbers, all.

    Raises:
        ProblemError: it has no version of a number.
    """
    if not numbers:
        return context
    last = context.versions.newest.number
    if missing := sorted(number for number in numbers if number > last):
        known = "version 1 alone" if last == 1 else f"versions 1 to {last}"
        raise unanswerable(f"the walkthrough has no version {missing[0]}: it has {known}", where)
    windows = tuple(context.versions.windows(numbers))
    return replace(context, only=replace(context.only, began_within=windows))


def order_asked(context: Context, numbers: Collection[int]) -> tuple[Version, list[Step], list[Step]]:
    """Whose order a funnel has: the version, its steps that are there by today's titles, and the others."""
    found = context.versions.numbered(max(numbers, default=0)) or context.versions.newest
    now = {step.id: step for step in context.steps}
    return (
        found,
        [now[step.id] for step in found.steps if step.id in now],
        [Step(id=s.id, title=s.title, optional=False) for s in found.steps if s.id not in now],
    )


def versions_of(context: Context, journeys: Mapping[int, int], freshness: Freshness) -> WalkthroughVersions:
    """All versions, with what each changed and how many journeys began with it."""
    now = {step.id for step in context.steps}
    versions = context.versions
    answered = []
    for before, version in zip((None, *versions.all), versions.all, strict=False):
        made = [] if before is None else changes(before, version)
        answered.append(
            WalkthroughVersion(
                number=version.number,
                since=version.since,
                until=versions.until(version.number),
                made_at=version.made_at,
                says=versions.says(version.number, _named),
                changes=[
                    VersionChange(
                        kind=change.kind,
                        step_id=change.step_id,
                        title=change.title,
                        from_place=change.from_place,
                        to_place=change.to_place,
                    )
                    for change in made
                ],
                steps=[
                    VersionStep(step_id=step.id, title=step.title, removed=step.id not in now)
                    for step in version.steps
                ],
                journeys=journeys.get(version.number, 0),
            )
        )
    return WalkthroughVersions(walkthrough=context.walkthrough, versions=answered, freshness=freshness)


def newest_versions(context: Context) -> list[VersionInShort]:
    """The newest versions, and what made them."""
    return [
        VersionInShort(
            number=version.number, since=version.since, says=context.versions.says(version.number, _named)
        )
        for version in reversed(context.versions.all[-_NEWEST:])
    ]


def _named(title: str) -> str:
    return one_line(title, _TITLE)
