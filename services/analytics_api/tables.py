"""Answers as CSV: one table of each, with a line of names."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from services.analytics_api.models import (
    Comparison,
    EndingFigures,
    Endings,
    Event,
    Funnel,
    FunnelStage,
    Journey,
    JourneyDetail,
    Journeys,
    Overview,
    OverviewRow,
    RefusedClass,
    RefusedEvents,
    RefusedExample,
    Sankey,
    Session,
    StepFigures,
    Steps,
    Summary,
    TrendPoint,
    Trends,
)

MEDIA_TYPE: Final = "text/csv"
#: What makes a spreadsheet take a text for a formula; a quote before it makes it text again (OWASP, "CSV
#: injection"). Titles and ids come from other people.
_FORMULA: Final = re.compile(r"\s*[=+\-@]|[\t\r\n]")
#: Where numbers have commas, spreadsheets begin a cell behind a semicolon, in the midst of quotes too.
_FORMULA_INSIDE: Final = re.compile(r"([;\t\r\n] *)(?=[=+\-@])")

Row = Mapping[str, Any]


def csv_of(answer: BaseModel) -> str:
    """The table of an answer."""
    rows, names = _table(answer)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
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
}


def _table(answer: BaseModel) -> tuple[Iterable[Row], Sequence[str]]:
    if (plain := _PLAIN.get(type(answer))) is not None:
        name, of = plain
        return [row.model_dump(mode="json") for row in getattr(answer, name)], list(of.model_fields)
    match answer:
        case Sankey():
            return _sankey(answer), _SANKEY
        case Comparison():
            return _comparison(answer), _COMPARISON
        case Overview():
            return _overview(answer), list(OverviewRow.model_fields)
        case RefusedEvents():
            return map(_refused, answer.refused), _REFUSED
        case Summary():
            row = answer.model_dump(mode="json", exclude={"walkthrough", "times", "freshness"})
            return [row], list(row)
    raise TypeError(f"{type(answer).__name__} is no table")


_SANKEY: Final = (
    "position",
    "from_step_id",
    "from_title",
    "to_step_id",
    "to_title",
    "outcome",
    "journeys",
    "share",
    "share_of_node",
    "mean_ms",
    "timed_journeys",
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
            "position": ending.steps_done,
            "from_step_id": ending.step_id,
            "from_title": titles[ending.node],
        }


_COMPARISON: Final = (
    "position",
    "from_step_id",
    "from_title",
    "to_step_id",
    "to_title",
    "outcome",
    "in_a",
    "of_a",
    "share_a",
    "in_b",
    "of_b",
    "share_b",
    "difference",
    "p_value",
    "p_adjusted",
    "significant",
    "mean_ms_a",
    "mean_ms_b",
)


def _comparison(answer: Comparison) -> Iterable[Row]:
    for link in answer.links:
        yield link.model_dump(mode="json")
    for drop in answer.drops:
        yield {
            **drop.model_dump(mode="json"),
            "position": drop.position + 1,
            "from_step_id": drop.step_id,
            "from_title": drop.title,
            "outcome": "dropped",
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
