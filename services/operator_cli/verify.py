"""`stepstream verify`: the tables held against completions and starts, or against the topic."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.cells import SHOWN, format_cell, show_cells, show_journeys
from services.operator_cli.options import (
    Output,
    OutputOption,
    current_settings,
    examples,
    parse_duration,
    parse_partitions,
    print_json,
    print_table,
    progress,
    say,
    time_option,
)
from services.runtime.errors import MismatchError, UsageError
from services.runtime.text import plural

if TYPE_CHECKING:
    from services.runtime.settings import Settings
    from services.sankey_aggregator.verify import Verification

app = typer.Typer()


@app.command(
    epilog=examples(
        "verify",
        "verify --sample 5 -o json",
        "verify --against-topic",
        "verify --against-topic --from -2h --partitions 0,1 -o json",
    )
)
def verify(
    sample: Annotated[
        float,
        typer.Option(
            min=0.0001,
            max=100,
            metavar="PERCENT",
            help="Hold only so many people's journeys against their rows.",
        ),
    ] = 100.0,
    wait: Annotated[
        float,
        typer.Option(
            metavar="DURATION",
            parser=parse_duration,
            help="How long to wait for what is on its way to be counted.",
        ),
    ] = 30.0,
    against_topic: Annotated[
        bool,
        typer.Option(
            "--against-topic",
            help="Hold what the recorder writes, and erasures, against the events that Kafka holds, instead.",
        ),
    ] = False,
    from_time: Annotated[
        int | None,
        time_option("--from", "With --against-topic: from events that came to Kafka at this time or later."),
    ] = None,
    from_offset: Annotated[
        int | None, typer.Option(min=0, help="With --against-topic: from this offset of each partition.")
    ] = None,
    partitions: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="With --against-topic: only these partitions; else all."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Hold the Sankey tables against one SQL over completions and starts, from one snapshot.

    Also while traffic flows: counts are held against journeys as they are at any moment, and journeys
    whose rows differ are looked at again until the aggregator has passed them. Exit 3 with the differing
    cells, and a guess at why; also where recorder and aggregator have read different events.

    With --against-topic the completions themselves are held against the topic, up to where the recorder was
    when it began. Exit 3 with each event that they do not show.
    """
    settings = current_settings()
    if against_topic:
        if sample < 100:
            raise UsageError("--sample is of the comparison without --against-topic")
        _verify_against_topic(settings, from_time, from_offset, parse_partitions(partitions), output)
        return
    if from_time is not None or from_offset is not None or partitions is not None:
        raise UsageError("--from, --from-offset and --partitions are for --against-topic")
    from services.sankey_aggregator.verify import verify as compare

    with progress("comparing journeys", "parts") as advance:
        verdict = asyncio.run(compare(settings, sample=sample, wait=wait, progress=advance))
    _report(verdict, as_json=output is Output.JSON)


def _verify_against_topic(
    settings: "Settings",
    from_time: int | None,
    from_offset: int | None,
    partitions: list[int] | None,
    output: Output,
) -> None:
    from services.completion_recorder.against_topic import verify_against_topic
    from services.completion_recorder.topic_parts import TopicStart
    from services.operator_cli.against_topic import report

    if from_time is not None and from_offset is not None:
        raise UsageError("say where to begin once: --from or --from-offset")
    start = TopicStart(from_time, from_offset)
    with progress("reading the topic", "offsets") as advance:
        outcome = asyncio.run(verify_against_topic(settings, start, partitions, advance))
    report(outcome, as_json=output is Output.JSON)


def _report(verdict: "Verification", *, as_json: bool) -> None:
    """Prints the verdict.

    Raises:
        MismatchError: something differs.
    """
    if as_json:
        print_json(asdict(verdict))
    else:
        show_cells(verdict.transitions, verdict.endings)
        show_journeys(verdict.journeys)
        if verdict.nodes and not verdict.transitions and not verdict.endings:
            rows = [(format_cell(n), n["arrived"], n["went_on_or_ended"]) for n in verdict.nodes]
            print_table("nodes that keep or make people", ("node", "in", "out"), rows, SHOWN)
        totals = verdict.totals
        say(
            f"{totals['completions']:,} completions, {totals['starts']:,} starts, "
            f"{totals['skips']:,} skips, {totals['showings']:,} showings, "
            f"{totals['journeys']:,} journeys, "
            f"{totals['transition_cells']:,} transition cells, {totals['ending_cells']:,} ending cells"
        )
        if verdict.in_flight:
            say(f"{verdict.in_flight:,} journeys were in flight, and right when looked at again")
        if verdict.events_waiting:
            say(
                f"[yellow]{plural(verdict.events_waiting, 'event')} wait for rows that somebody else has "
                "locked[/], and are no completions yet: `stepstream status` says which rows"
            )
    if verdict.differing:
        cells = verdict.differing - len(verdict.apart)
        parts = [f"{plural(cells, 'cell')} and journeys differ"] if cells else []
        raise MismatchError("; ".join([*parts, *verdict.why]))
    if not as_json:
        say("[bold green]exact[/]: every cell equals what the rows of events say")
