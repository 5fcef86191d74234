"""The commands that operate a running Stepstream: see, replay, mend, verify, rebuild, forget."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.operator_cli.completions import app as completions_app
from services.operator_cli.dlq import app as dlq_app
from services.operator_cli.gone import app as gone_app
from services.operator_cli.keys import app as keys_app
from services.operator_cli.options import (
    ExecuteOption,
    GroupName,
    GroupOption,
    Output,
    OutputOption,
    current_settings,
    examples,
    parse_duration,
    progress,
    say,
    time_option,
)
from services.operator_cli.watching import lag, status
from services.runtime.errors import UsageError
from services.runtime.text import plural


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(epilog=examples("status", "status -o json"))(status)
    app.command(epilog=examples("lag", "lag --group completion-recorder", "lag --fail-above 5m -o json"))(lag)
    app.command(
        epilog=examples(
            "replay --group sankey-aggregator --from-beginning",
            "replay --group completion-recorder --from -2h --execute",
            "replay --group completion-recorder --from 2026-11-24T09:00:00Z --to 2026-11-24T10:00:00Z",
            "replay --group completion-recorder --from-offset 0 --to-offset 5 --partitions 0,1 --execute",
        )
    )(replay)
    app.command(
        epilog=examples(
            "skip --partition 2",
            "skip --partition 2 --execute",
            "skip --group completion-recorder --partition 2 --to-offset 4",
            "skip --group sankey-aggregator --partition 2 --to-offset 4 -o json",
        )
    )(skip)
    app.command("move-cluster", epilog=examples("move-cluster", "move-cluster --execute"))(move_cluster)
    app.command(
        epilog=examples(
            "verify",
            "verify --sample 5 -o json",
            "verify --against-topic",
            "verify --against-topic --from -2h --partitions 0,1 -o json",
        )
    )(verify)
    app.command(epilog=examples("rebuild", "rebuild --execute"))(rebuild)
    app.command(epilog=examples("erase mcpu_k3Jd82LsQ0aZ", "erase mcpu_k3Jd82LsQ0aZ --execute -o json"))(
        erase
    )
    app.command(
        epilog=examples(
            "backfill completions.csv",
            "backfill completions.csv --server docs --execute",
            "backfill --from-progress",
        )
    )(backfill)
    app.add_typer(dlq_app, name="dlq")
    app.add_typer(gone_app, name="gone")
    app.add_typer(keys_app, name="keys")
    app.add_typer(completions_app, name="completions")


# --- replay --------------------------------------------------------------------------------------------


def replay(
    group: GroupOption,
    from_time: Annotated[
        int | None, time_option("--from", "From events that came to Kafka at this time or later.")
    ] = None,
    from_offset: Annotated[
        int | None, typer.Option(min=0, help="From this offset of each partition.")
    ] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="From the first event.")] = False,
    to_time: Annotated[
        int | None,
        time_option("--to", "Up to events that came before this time; the group stays where it is."),
    ] = None,
    to_offset: Annotated[
        int | None, typer.Option(min=0, help="Up to this offset, exclusively; the group stays where it is.")
    ] = None,
    partitions: Annotated[
        str | None, typer.Option(metavar="N,N", help="Only these partitions; else all.")
    ] = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read events again: move a stopped group back, or feed a bounded range through once more.

    The tables are the same afterwards. Refused (exit 4) while the group has members. Nothing is skipped: a
    partition of which the group has not yet come so far stays where it is.
    """
    from services.operator_cli import replay as replaying

    if [from_time is not None, from_offset is not None, from_beginning].count(True) != 1:
        raise UsageError("say where to begin: one of --from, --from-offset and --from-beginning")
    if to_time is not None and to_offset is not None:
        raise UsageError("say where to stop once: --to or --to-offset")
    settings = current_settings()
    numbers = _numbers(partitions)

    async def work() -> tuple[Any, int]:
        start = replaying.ReplayStart(from_time, from_offset, from_beginning)
        end = replaying.ReplayEnd(to_time, to_offset)
        plan = await replaying.make_plan(settings, group.value, start, end, numbers)
        await replaying.refuse_gaps(settings, plan)
        if not execute:
            return plan, 0
        with progress("reading again", "events", plan.events) as advance:
            return plan, await replaying.execute(settings, plan, advance)

    plan, fed = asyncio.run(work())
    replaying.show_plan(plan, as_json=output is Output.JSON, executed=execute, fed=fed)
    if not execute and plan.members:
        say(
            f"[yellow]the group has {plural(plan.members, 'member')} now[/]: stop every {group.value} before "
            "--execute, "
            "which is refused until then"
        )


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--partitions: `{text}` is no list of numbers like 0,3")
    return [int(part) for part in parts]


def skip(
    partition: Annotated[int, typer.Option(min=0, help="The partition.")],
    group: Annotated[
        GroupName | None, typer.Option("--group", help="The service whose group it is; else both.")
    ] = None,
    to_offset: Annotated[
        int | None,
        typer.Option(min=1, help="The offset to go on at; else behind a batch that cannot be read."),
    ] = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Leave events behind that cannot be handled: the one way to move a service forward.

    Without --to-offset, it is the batch at which the services stand because nobody can read it: the plan
    shows it, its bytes become a dead letter, and services that run go on within seconds. With --to-offset,
    anything: then --group is needed, and it is refused (exit 4) while the group has members. What is left
    behind is named in `status` until it is acknowledged. An offset that is moved forward in Kafka alone is
    not believed. One at a time: a second one is refused (exit 4), and told who is at it.
    """
    from services.operator_cli import relocate, unreadable
    from services.runtime.alone import Act, alone

    settings = current_settings()
    as_json = output is Output.JSON

    async def of_events(service: str, to: int) -> None:
        plan = await relocate.plan_skip(settings, service, partition, to)
        if execute:
            async with alone(settings, Act.SKIP):
                plan = await relocate.plan_skip(settings, service, partition, to)
                await relocate.skip(settings, plan)
        relocate.show_skip(plan, as_json=as_json, executed=execute)

    async def of_a_batch(services: Sequence[str]) -> None:
        plan, taken_up = await unreadable.plan_skip(settings, partition, services), False
        if execute:
            async with alone(settings, Act.SKIP):  # whoever was at it may have moved the services
                plan = await unreadable.plan_skip(settings, partition, services)
                taken_up = await unreadable.skip(settings, plan)
        unreadable.show_skip(plan, as_json=as_json, executed=execute, taken_up=taken_up)
        if execute and not taken_up:
            raise typer.Exit(1)

    if to_offset is None:
        asyncio.run(of_a_batch([g.value for g in ([group] if group else GroupName)]))
    elif group is None:
        raise UsageError("--to-offset goes with --group: each service is where it is")
    else:
        asyncio.run(of_events(group.value, to_offset))


def move_cluster(execute: ExecuteOption = False, output: OutputOption = Output.TABLE) -> None:
    """Go on in another Kafka cluster: the one that STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS names now.

    The services refuse to start where the database's positions are of another cluster. This makes them read
    the new one from its beginning. Refused (exit 4) while a group has members there; stop those of the old
    cluster first.
    """
    from services.operator_cli import relocate

    settings = current_settings()

    async def work() -> Any:
        plan = await relocate.plan_relocation(settings)
        if execute and plan.is_needed:
            await relocate.relocate(settings, plan)
        return plan

    plan = asyncio.run(work())
    relocate.show_relocation(plan, as_json=output is Output.JSON, executed=execute)


# --- verify and rebuild --------------------------------------------------------------------------------


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
            help="Hold completions, starts and erasures against the events that Kafka holds, instead.",
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
        _verify_against_topic(settings, from_time, from_offset, _numbers(partitions), output)
        return
    if from_time is not None or from_offset is not None or partitions is not None:
        raise UsageError("--from, --from-offset and --partitions are for --against-topic")
    from services.operator_cli.verify import report
    from services.sankey_aggregator.verify import verify as compare

    with progress("comparing journeys", "parts") as advance:
        verdict = asyncio.run(compare(settings, sample=sample, wait=wait, progress=advance))
    report(verdict, as_json=output is Output.JSON)


def _verify_against_topic(
    settings: Any,
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


def rebuild(execute: ExecuteOption = False, output: OutputOption = Output.TABLE) -> None:
    """Make the Sankey tables what completions and starts say, beside running services.

    Shows what differs first. The aggregator waits for the last transaction alone; what changes meanwhile is
    kept; interrupted, it leaves nothing behind. Refused (exit 4) while somebody else rebuilds.
    """
    from services.operator_cli.verify import report_rebuilt, show_differing
    from services.sankey_aggregator.rebuild import rebuild as build

    settings = current_settings()
    as_json = output is Output.JSON
    with progress("counting anew", "parts") as advance:
        found = asyncio.run(
            build(
                settings, execute=execute, progress=advance, before_swap=None if as_json else show_differing
            )
        )
    report_rebuilt(found, as_json=as_json)


# --- people and keys -----------------------------------------------------------------------------------


def erase(
    user: Annotated[str, typer.Argument(help="A person: id, tracking id or e-mail address.")],
    execute: ExecuteOption = False,
    even_if_unknown: Annotated[
        bool, typer.Option("--even-if-unknown", help="Also where nothing is known of such an id (any more).")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget a person: completions, progress, sessions, journeys and counts, outbox and dead letters.

    A `user-erased` event in the topic keeps it so under replay and on other consumers. Doing it again is
    harmless.
    """
    from services.operator_cli import erase as erasing
    from services.runtime.crashpoints import arm

    settings = current_settings()
    arm(settings.crash_at)
    work = (
        erasing.erase(settings, user, unknown_too=even_if_unknown)
        if execute
        else erasing.plan(settings, user)
    )
    erasing.report(asyncio.run(work), as_json=output is Output.JSON)


# --- backfill ---------------------------------------------------------------------------------------------


def backfill(
    file: Annotated[
        Path | None,
        typer.Argument(help="CSV (.csv) or NDJSON: one completed step a line, with the fields of the event."),
    ] = None,
    from_progress: Annotated[
        bool,
        typer.Option("--from-progress", help="From the platform's walkthrough_progress, without a file."),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="SLUG", help="Where people went of whom no session is known; one is made for each."
        ),
    ] = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send completions from before Stepstream, as events with stable ids: doing it again changes nothing.

    Without --execute it says what it would send, and what it cannot know.
    """
    from services.operator_cli import backfill as filling

    if (file is None) != from_progress:
        raise UsageError("name a file, or say --from-progress")
    outcome = asyncio.run(filling.backfill(current_settings(), file, server, execute=execute))
    filling.report(outcome, as_json=output is Output.JSON)
