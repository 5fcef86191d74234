"""What an answer leaves out, with how much that is: for tables, whose rows cannot say it."""

from pydantic import BaseModel

from services.analytics_api.models import (
    Diagnosis,
    FrequentPaths,
    Journeys,
    RefusedEvents,
    Sampling,
    Sankey,
    Segments,
)

#: The header of a table that says it.
HEADER = "X-Left-Out"


def left_out(answer: BaseModel) -> str | None:
    """In a line of ASCII; None where the table has all."""
    said = []
    times = getattr(answer, "times", None)
    if isinstance(times, Sampling) and not times.exact:
        said.append(f"times are of every {times.every}th person, of {times.journeys} journeys")
    match answer:
        case Sankey():
            said += _of_sankey(answer)
        case Diagnosis() if answer.unknown:
            said.append(f"{len(answer.unknown)} things that are not concluded, and why: see the JSON")
        case FrequentPaths() if answer.other.paths:
            said.append(f"{answer.other.paths} paths of {answer.other.journeys} journeys")
        case Journeys() if answer.next is not None:
            of = "" if answer.of is None else f" of {answer.of} journeys"
            said.append(f"this is a page of {len(answer.journeys)}{of}, and others follow: see Link")
        case Segments() if answer.left_out:
            said.append(f"values that may tell apart, in {len(answer.left_out)} groups: see the JSON")
        case RefusedEvents():
            if answer.classes_left_out:
                said.append(f"{answer.classes_left_out} classes that were refused before these")
            if answer.sources_left_out:
                said.append(f"{answer.sources_left_out} sources of this organization alone")
    return "; ".join(said) or None


def _of_sankey(answer: Sankey) -> list[str]:
    said = []
    folded = [node for node in answer.nodes if node.kind == "other"]
    if folded:
        steps = sum(len(node.folded) for node in folded)
        said.append(f"{steps} steps at {len(folded)} positions are folded; their sums are kept")
    if answer.outcomes.went_on:
        said.append(f"what {answer.outcomes.went_on} journeys did after the last position")
    return said
