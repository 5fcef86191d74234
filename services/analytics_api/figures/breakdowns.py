"""Breakdowns: which parts journeys have by agent, metadata, server, version, or a step that was done."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.analytics_api.figures.common import titles_of
from services.analytics_api.models import MAX_SEGMENT, BreakdownQuestion, VersionedCohort
from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context
from services.journeys.segments import Kind, parsed, written

#: Steps, and the values of everything else, are told apart by these.
_METADATA: Final = "metadata."
_DID: Final = "did:"
#: What is left of a condition's length for a value, beside its key and `not_`.
_NAMES: Final = len("not_agent_version:")


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the journeys: what asks for them, and how many there are. `value` is None for all others."""

    value: str | None
    title: str
    journeys: int
    server: tuple[str, ...] = ()
    version: tuple[int, ...] = ()
    segment: tuple[str, ...] = ()

    def asked(self, cohort: VersionedCohort) -> dict[str, list[Any]]:
        """What of a question is another for this part."""
        return {
            "server": list(self.server) or cohort.server,
            "version": list(self.version) or cohort.version,
            "segment": list(self.segment) or cohort.segment,
        }


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts; how many values are in the others, and how many journeys in no part."""

    parts: Sequence[Part]
    others: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """What values are looked for: a kind of segments or `server`, and the key of metadata."""

    what: str
    key: str = ""

    @property
    def longest(self) -> int:
        """How long a value can be that can be asked for, in characters."""
        return MAX_SEGMENT - max(_NAMES, len(f"not_{_METADATA}{self.key}:"))


def subject_of(question: BreakdownQuestion) -> Subject | None:
    """What values are looked for; None where the parts are known without them.

    Raises:
        ProblemError: the versions of several agents are asked for as one.
    """
    by = question.by
    if by is None or by == "version" or by.startswith(_DID):
        return None
    if by == "agent_version":
        named = [text for text in question.segment if parsed(text)[0] == "agent" and not parsed(text)[3]]
        if len(set(named)) != 1:
            raise unanswerable(
                "versions are those of one agent: name it with `segment=agent:NAME`", "query.by"
            )
    return Subject("metadata", by.removeprefix(_METADATA)) if by.startswith(_METADATA) else Subject(by)


def parts_of(
    context: Context, question: BreakdownQuestion, subject: Subject, rows: Sequence[Mapping[str, Any]]
) -> Parts:
    """The parts by the values that journeys have; `rows` are of the statement `values_of`."""
    counts = {row["value"]: row["journeys"] for row in rows if row["kind"] == "value"}
    rest = [row for row in rows if row["kind"] == "rest"]
    others, journeys = (sum(row[name] for row in rest) for name in ("differing", "journeys"))
    unknown = sum(row["journeys"] for row in rows if row["kind"] == "unknown")
    if subject.what == "server":
        return Parts(_of_servers(context, question, counts, journeys), others)
    kind: Kind = subject.what  # type: ignore[assignment]  # the pattern of `by` says so
    parts = [
        Part(value, value or "none", count, segment=_narrowed(question.segment, kind, subject.key, value))
        for value, count in counts.items()
    ]
    if journeys:
        none_of = tuple(written(kind, value, subject.key, is_not=True) for value in counts)
        parts.append(Part(None, _others(others), journeys, segment=(*question.segment, *none_of)))
    return Parts(parts, others, unknown)


def _narrowed(segment: Iterable[str], kind: Kind, key: str, value: str) -> tuple[str, ...]:
    """The segment with one value alone of what it may allow several of: one of several is enough."""
    left = [text for text in segment if parsed(text)[:2] != (kind, key) or parsed(text)[3]]
    return (*left, written(kind, value, key))


def _of_servers(
    context: Context, question: BreakdownQuestion, counts: Mapping[str, int], journeys: int
) -> list[Part]:
    servers = context.walkthrough.servers
    alike = Counter(server.name for server in servers)
    names = {s.id: s.name if alike[s.name] == 1 else f"{s.name} ({s.id})" for s in servers}
    parts = [
        Part(server, names.get(server, server), count, server=(server,)) for server, count in counts.items()
    ]
    if journeys:
        left = tuple(server for server in question.server or names if server not in counts)
        parts.append(Part(None, _others(len(left)), journeys, server=left))
    return parts


def parts_by_version(question: BreakdownQuestion, journeys: Mapping[int, int]) -> Parts:
    """The parts by the version that journeys began with: those of most journeys, the newest first."""
    counted = sorted(((n, count) for n, count in journeys.items() if count), key=lambda of: (-of[1], -of[0]))
    told = sorted(counted[: question.most], reverse=True)
    left = counted[question.most :]
    parts = [Part(str(n), f"version {n}", count, version=(n,)) for n, count in told]
    if left:
        others = tuple(sorted(n for n, _ in left))
        parts.append(Part(None, _others(len(left)), sum(count for _, count in left), version=others))
    return Parts(parts, len(left))


def by_step(context: Context, question: BreakdownQuestion, by: str) -> Iterator[Part]:
    """Who completed a step, and who did not; how many these are is not known yet.

    Raises:
        ProblemError: the walkthrough has no such step.
    """
    step = by.removeprefix(_DID)
    if step not in {known.id for known in context.steps}:
        raise unanswerable(f"the walkthrough has no step `{step}`", "query.by")
    for is_not, told in ((False, "completed"), (True, "did not complete")):
        text = written("did", step, is_not=is_not)
        yield Part(text, f"{told} {titles_of(context)(step)}", 0, segment=(*question.segment, text))


def _others(values: int) -> str:
    return f"{values} other" if values == 1 else f"{values} others"
