"""Answers as CSV: one table of each, with a line of names."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from services.analytics_api.models import (
    Breakdown,
    BreakdownPart,
    Comparison,
    Diagnosis,
    EndingFigures,
    Endings,
    Event,
    Finding,
    FinishPoint,
    FrequentPaths,
    Funnel,
    FunnelStage,
    Journey,
    JourneyDetail,
    Journeys,
    Overview,
    OverviewRow,
    PathFigures,
    RefusedClass,
    RefusedEvents,
    RefusedExample,
    Sankey,
    SegmentFigures,
    Segments,
    Session,
    StepFigures,
    Steps,
    Summary,
    TimeToFinish,
    TrendPoint,
    Trends,
    WalkthroughVersion,
    WalkthroughVersions,
)
from services.runtime.titles import one_line

MEDIA_TYPE: Final = "text/csv"
#: How much of a title a list of titles has, in characters.
_TITLE: Final = 200
#: One JSON text a line.
JSON_LINES: Final = "application/x-ndjson"
#: What makes a spreadsheet take a text for a formula; a quote before it makes it text again (OWASP, "CSV
#: injection"): the signs as in Japanese, too. Titles, ids and reasons come from other people.
_FORMULA: Final = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
#: Where numbers have commas, spreadsheets begin a cell behind a semicolon, in the midst of quotes too; quotes
#: with which that cell begins are none of its text.
_FORMULA_INSIDE: Final = re.compile(r'([;\t\r\n](?:[^\S\t\r\n]|")*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])')

Row = Mapping[str, Any]


def csv_of(answer: BaseModel) -> str:
    """The table of an answer."""
    rows, names = _table(answer)
    return _written([names, *_cells(rows, names)])


def csv_part(rows: Sequence[BaseModel], of: type[BaseModel], *, is_first: bool) -> str:
    """Some rows of a table; the first part of it begins with the names."""
    names = list(of.model_fields)
    cells = _cells([row.model_dump(mode="json") for row in rows], names)
    return _written([names, *cells] if is_first else cells)


def json_lines(rows: Sequence[BaseModel]) -> str:
    """Each row as a line of JSON."""
    return "".join(f"{row.model_dump_json()}\n" for row in rows)


def _cells(rows: Iterable[Row], names: Sequence[str]) -> Iterator[list[Any]]:
    for row in rows:
        yield [_cell(row.get(name)) for name in names]


def _written(lines: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(lines)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        value = " ".join(str(part) for part in value)
    if isinstance(value, str):
        return ("'" if _FORMULA.match(value) else "") + _FORMULA_INSIDE.sub(r"\1'", value)
    return value


#: Where an answer is a table as it is: in which field, and of what.
_PLAIN: Final[Mapping[type[BaseModel], tuple[str, type[BaseModel]]]] = {
    Funnel: ("stages", FunnelStage),
    Steps: ("steps", StepFigures),
    Endings: ("endings", EndingFigures),
    Trends: ("points", TrendPoint),
    Journeys: ("journeys", Journey),
    JourneyDetail: ("events", Event),
    Session: ("events", Event),
    Diagnosis: ("findings", Finding),
    TimeToFinish: ("points", FinishPoint),
    Segments: ("segments", SegmentFigures),
}


def _table(answer: BaseModel) -> tuple[Iterable[Row], Sequence[str]]:
    if (plain := _PLAIN.get(type(answer))) is not None:
        name, of = plain
        return [row.model_dump(mode="json") for row in getattr(answer, name)], list(of.model_fields)
    if (flat := _FLAT.get(type(answer))) is not None:
        name, row_of, names = flat
        return map(row_of, getattr(answer, name)), names
    match answer:
        case Sankey():
            table: tuple[Iterable[Row], Sequence[str]] = _sankey(answer), _SANKEY
        case Comparison():
            table = _comparison(answer), _COMPARISON
        case FrequentPaths():
            table = _paths(answer), _PATHS
        case Breakdown():
            table = _breakdown(answer)
        case Overview():
            table = _overview(answer), list(OverviewRow.model_fields)
        case RefusedEvents():
            table = map(_refused, answer.refused), _REFUSED
        case Summary():
            nested = {"walkthrough", "times", "newest_versions", "time_to_finish", "freshness"}
            times = answer.time_to_finish.model_dump(mode="json")
            row = {
                **answer.model_dump(mode="json", exclude=nested),
                **{f"time_to_finish_{name}": value for name, value in times.items()},
            }
            row["finished_means"] = answer.walkthrough.finished_means
            table = [row], list(row)
        case _:
            raise TypeError(f"{type(answer).__name__} is no table")
    return table


_SANKEY: Final = (
    "position",
    "from_step_id",
    "from_title",
    "to_step_id",
    "to_title",
    "skipped",
    "outcome",
    "journeys",
    "share",
    "share_of_node",
    "mean_ms",
    "timed_journeys",
    "mean_active_ms",
    "active_journeys",
    "median_ms",
    "p90_ms",
    "timed",
    "median_active_ms",
    "p90_active_ms",
    "active",
    "histogram",
    "steps_done",
    "steps_skipped",
)


def _sankey(answer: Sankey) -> Iterable[Row]:
    """Links, and endings as rows that lead to an outcome."""
    titles = {node.id: node.title for node in answer.nodes}
    for link in answer.links:
        yield {
            **link.model_dump(mode="json"),
            "from_title": titles[link.source],
            "to_title": titles[link.target],
        }
    for ending in answer.endings:
        yield {
            **ending.model_dump(mode="json"),
            "position": ending.position + 1,
            "from_step_id": ending.step_id,
            "from_title": titles[ending.node],
        }


_PATHS: Final = ("place", "path", *(name for name in PathFigures.model_fields if name != "place"))


def _paths(answer: FrequentPaths) -> Iterable[Row]:
    """Paths, with the titles of their steps in one cell."""
    titles = {step.id: step.title for step in answer.walkthrough.steps}
    for path in answer.paths:
        steps = [
            titles.get(step, step) + (" (skipped)" if step in path.skipped_step_ids else "")
            for step in path.step_ids
        ]
        yield {**path.model_dump(mode="json"), "path": " → ".join(steps)}


_PART: Final = tuple(f"part_{name}" for name in BreakdownPart.model_fields if name != "answer")


def _breakdown(answer: Breakdown) -> tuple[Iterable[Row], Sequence[str]]:
    """The table of each part's figure, with the part before it."""
    rows: list[Row] = []
    names: Sequence[str] = ()
    for part in answer.parts:
        told = {f"part_{name}": value for name, value in part.model_dump(exclude={"answer"}).items()}
        of_part, names = _table(part.answer)
        rows += [{**told, **row} for row in of_part]
    return rows, (*_PART, *names)


_COMPARISON: Final = (
    "position",
    "from_step_id",
    "from_title",
    "to_step_id",
    "to_title",
    "skipped",
    "outcome",
    "in_a",
    "of_a",
    "share_a",
    "in_b",
    "of_b",
    "share_b",
    "difference",
    "difference_low",
    "difference_high",
    "p_value",
    "p_adjusted",
    "significant",
    "mean_ms_a",
    "mean_ms_b",
)


def _comparison(answer: Comparison) -> Iterable[Row]:
    """Links, then nodes from which some had not gone on, then steps at any place, which have no position."""
    for link in answer.links:
        yield link.model_dump(mode="json")
    for drop in answer.drops:
        yield {
            **drop.model_dump(mode="json"),
            "position": drop.position + 1,
            "from_step_id": drop.step_id,
            "from_title": drop.title,
            "outcome": "not_gone_on",
        }
    for step in answer.steps:
        yield {
            **step.model_dump(mode="json"),
            "to_step_id": step.step_id,
            "to_title": step.title,
            "outcome": "done_of_reached",
        }


def _overview(answer: Overview) -> Iterable[Row]:
    for walkthrough in answer.walkthroughs:
        yield walkthrough.model_dump(mode="json")
        for server in walkthrough.servers:
            yield server.model_dump(mode="json")


_REFUSED: Final = (*(n for n in RefusedClass.model_fields if n != "example"), *RefusedExample.model_fields)


def _refused(row: RefusedClass) -> Row:
    """A class with its example beside it."""
    fields = [f"{name}: {kind};" for name, kind in row.example.fields.items()]
    return {**row.model_dump(mode="json"), **row.example.model_dump(mode="json"), "fields": fields}


_VERSIONS: Final = (
    *(n for n in WalkthroughVersion.model_fields if n not in {"changes", "steps"}),
    "step_ids",
    "titles",
)


def _version(version: WalkthroughVersion) -> Row:
    """A version with its steps in two cells."""
    return {
        **version.model_dump(mode="json"),
        "step_ids": [step.step_id for step in version.steps],
        "titles": "; ".join(one_line(step.title, _TITLE) for step in version.steps),
    }


#: Where a row of an answer is made flat: of which field, how, and with which names.
_FLAT: Final[Mapping[type[BaseModel], tuple[str, Callable[[Any], Row], Sequence[str]]]] = {
    RefusedEvents: ("refused", _refused, _REFUSED),
    WalkthroughVersions: ("versions", _version, _VERSIONS),
}
