"""`stepstream check-events`: whether events count, before they are sent, or as they are in a topic."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from services.operator_cli.options import (
    current_settings,
    examples,
    print_table,
    progress,
    progress_of_bytes,
    safe,
    say,
    time_option,
)
from services.runtime.errors import MismatchError, UsageError
from services.runtime.text import plural

if TYPE_CHECKING:
    from services.operations.check_events import Checked, Finding
    from services.runtime.settings import Settings

app = typer.Typer()

#: So many problems are told one by one.
_SHOWN = 20


class CheckOutput(StrEnum):
    """How the result is printed on stdout."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"


@dataclass
class _Shown:
    """Prints findings as they come, or keeps the first of them for a table."""

    output: CheckOutput
    first: "list[Finding]" = field(default_factory=list)
    _printed: int = 0

    def tell(self, findings: "Sequence[Finding]") -> None:
        """Takes some more."""
        from services.operations.check_events import as_json

        if self.output is CheckOutput.TABLE:
            room = _SHOWN - len(self.first)
            self.first += [finding for finding in findings if finding.is_problem][:room]
            return
        for finding in findings:
            between = (
                "" if self.output is CheckOutput.NDJSON else ",\n" if self._printed else '{"events": [\n'
            )
            after = "\n" if self.output is CheckOutput.NDJSON else ""
            typer.echo(between + json.dumps(as_json(finding)) + after, nl=False)
            self._printed += 1

    def end(self, checked: "Checked") -> None:
        """Prints the summary; with NDJSON it is the last line."""
        summary = json.dumps({"summary": _summary(checked)})
        if self.output is CheckOutput.NDJSON:
            typer.echo(summary)
        else:
            typer.echo((("\n" if self._printed else '{"events": [') + "], ") + summary[1:])


@dataclass(frozen=True, slots=True)
class _Looking:
    """Whether what events refer to is looked up, and whose own ids they have."""

    into_database: bool
    organization: str | None


@app.command(
    "check-events",
    epilog=examples(
        "check-events events.ndjson",
        "check-events events.ndjson --no-database -o ndjson",
        "check-events for-http.ndjson --organization acme-tools",
        "check-events --topic walkthrough.progress.v1 --source /checkout --from -2h",
    ),
)
def check_events(
    file: Annotated[
        str | None,
        typer.Argument(
            help="Events as NDJSON, one a line, or a JSON array; or records, as `dlq export` writes them, or "
            "`kcat -J`. May be gzip; `-` is standard input."
        ),
    ] = None,
    topic: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="Read this topic instead of a file; no group is used.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="With --topic: only records with this header ce_source."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With --topic: the last N of each partition; 1,000 by default."
        ),
    ] = None,
    from_time: Annotated[
        int | None,
        time_option("--from", "With --topic: from records that came to Kafka at this time or later."),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="How many the topic has, where the file has keys and partitions."
        ),
    ] = None,
    database: Annotated[
        bool, typer.Option("--database/--no-database", help="Whether to look up what events refer to.")
    ] = True,
    organization: Annotated[
        str | None,
        typer.Option(
            "--organization",
            metavar="ORG",
            help="Of a FILE in the form of HTTP: whose ids `distinct_id` and `session_id` are. Id or slug.",
        ),
    ] = None,
    output: Annotated[
        CheckOutput, typer.Option("--output", "-o", help="How to print the result.")
    ] = CheckOutput.TABLE,
) -> None:
    """Hold events against all that decides whether they count; nothing is sent, written or locked.

    Each is held against the contract, against the events before it and, where STEPSTREAM_DATABASE_URL is set,
    against the database, by the recorder's own rules; records also by key, partition, headers and codec.
    Exit 3 where one would not count. A table has the first problems; JSON all, and what is there already.
    """
    if organization is not None and (file is None or not database):
        raise UsageError("--organization is for a file, and looks into the database")
    _check_usage(file, topic, topic_only=(source, last, from_time), partitions=partitions)
    settings = current_settings(needs_kafka=topic is not None, needs_database=False)
    looking = _Looking(database, organization)
    shown = _Shown(output)
    if file is not None:
        checked = asyncio.run(_of_file(settings, file, partitions, shown, looking))
    else:
        checked = asyncio.run(
            _of_topic(settings, topic or "", (source, last, from_time), shown, with_database=database)
        )
    if output is CheckOutput.TABLE:
        _show(checked, shown.first)
    else:
        shown.end(checked)
    if checked.problems or checked.unreadable:
        parts = [f"{checked.problems:,} of {plural(checked.events, 'event')} would not count"]
        raise MismatchError("; ".join(parts + checked.unreadable))
    if not checked.events:
        say("[yellow]no events[/]: the file is empty")
    elif output is CheckOutput.TABLE:
        sure = "" if checked.has_database else ", as far as it can be said without the database"
        say(f"[bold green]all {checked.events:,} would count[/]{sure}")


def _check_usage(
    file: str | None, topic: str | None, *, topic_only: tuple[object, ...], partitions: int | None
) -> None:
    if (file is None) == (topic is None):
        raise UsageError("say where the events are: a FILE (`-` is standard input), or --topic TOPIC")
    if topic is None and any(given is not None for given in topic_only):
        raise UsageError("--source, --last and --from are for --topic")
    if topic is not None and partitions is not None:
        raise UsageError("--partitions is for a file: of a topic Kafka knows it")
    if topic_only[1] is not None and topic_only[2] is not None:
        raise UsageError("say where to begin once: --last or --from")


async def _of_file(
    settings: "Settings", file: str, partitions: int | None, shown: _Shown, looking: _Looking
) -> "Checked":
    from services.operations.check_events import check_events, from_file
    from services.operations.event_files import read_items
    from services.runtime.files import open_lines

    with open_lines(file) as (stream, size), progress_of_bytes("checking", size) as advance:
        items = read_items(stream, file, advance)
        return await check_events(
            settings,
            from_file(items),
            shown.tell,
            partitions=lambda: partitions,
            with_database=looking.into_database,
            organization=looking.organization,
        )


async def _of_topic(
    settings: "Settings",
    topic: str,
    chosen: tuple[str | None, int | None, int | None],
    shown: _Shown,
    *,
    with_database: bool,
) -> "Checked":
    from services.operations.check_events import LAST, TopicRange, TopicSource, check_events

    source, last, from_ms = chosen
    reading = TopicSource(settings, TopicRange(topic, last or LAST, from_ms, source))
    with progress("reading the topic", "offsets") as advance:
        checked = await check_events(
            settings,
            reading.portions(advance),
            shown.tell,
            partitions=lambda: reading.partitions,
            with_database=with_database,
        )
    checked.unreadable = reading.unreadable
    if not checked.events:
        where = f" of {source}" if source is not None else ""
        raise UsageError(
            f"{topic} has no records{where} there ({plural(reading.read, 'record')} read): look further back "
            "with --from or --last"
        )
    return checked


# --- for people -----------------------------------------------------------------------------------------

_WORDS = {
    "counts": "would count",
    "copy": "copies of one before: they count once",
    "recorded": "recorded already",
    "covered": "covered by a correction: they do not count",
    "of-erased": "of people who were erased: nothing is kept of them",
    "refused": "refused: dead letters",
}


def _show(checked: "Checked", first: "Sequence[Finding]") -> None:
    from services.operator_cli.letter_tables import show_advice

    rows = [(_WORDS[o], checked.outcomes[o]) for o in _WORDS if checked.outcomes[o]]  # type: ignore[index]
    print_table("", ("what would become of them", "events"), rows)
    if checked.classes:
        print_table("refused, by error class", ("error class", "events"), checked.classes.most_common())
    of_sources = [
        (
            name,
            sum(of.outcomes.values()),
            sum(
                count
                for outcome, count in of.outcomes.items()
                if outcome in {"refused", "covered", "of-erased"}
            ),
            ", ".join(f"{codec} {count:,}" for codec, count in of.habits.codecs.most_common()),
        )
        for name, of in checked.sources.items()
    ]
    if len(of_sources) > 1 or any(row[3] for row in of_sources):
        print_table("by source", ("source", "events", "would not count", "records by codec"), of_sources)
    if first:
        print_table(
            "problems",
            ("where", "what", "field", "message"),
            [
                (f.place, f.error_class or f.outcome.value, f.field, f.message)
                for f in sorted(first, key=_where)
            ],
            _SHOWN,
            checked.problems,
        )
        show_advice(name for name, _ in checked.classes.most_common())
    for name, of in checked.sources.items():
        for told in of.habits.told():
            where = f"{escape(safe(name))}: " if len(checked.sources) > 1 else ""
            say(f"[yellow]look at this[/]: {where}{told}")
    if checked.rows:
        say("the events that count are " + ", ".join(_rows(checked)))
    for told in checked.not_said:
        say(f"[yellow]not looked at[/]: {escape(told)}")


def _where(finding: "Finding") -> tuple[int, int]:
    """The partitions of a topic come in any order."""
    return finding.partition or 0, finding.offset or 0


_ROWS = {
    "walkthrough_step_completions": "completion",
    "walkthrough_starts": "start",
    "walkthrough_step_skips": "skip",
    "walkthrough_step_showings": "showing",
}


def _rows(checked: "Checked") -> list[str]:
    return [plural(count, _ROWS[table.value]) for table, count in checked.rows.items()]


def _summary(checked: "Checked") -> dict[str, object]:
    return {
        "events": checked.events,
        "would_not_count": checked.problems,
        "outcomes": {outcome.value: n for outcome, n in checked.outcomes.items()},
        "error_classes": dict(checked.classes),
        "rows": {_ROWS[table.value]: count for table, count in checked.rows.items()},
        "sources": [
            {
                "source": name,
                "outcomes": {outcome.value: n for outcome, n in of.outcomes.items()},
                "codecs": dict(of.habits.codecs),
                "hints": of.habits.told(),
            }
            for name, of in checked.sources.items()
        ],
        "database": checked.has_database,
        "not_looked_at": checked.not_said,
        "unreadable": checked.unreadable,
    }
