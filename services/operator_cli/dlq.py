"""`stepstream dlq`: what was refused, and why; send it again or let it go."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from services.operator_cli.options import (
    ExecuteOption,
    Output,
    OutputOption,
    current_settings,
    examples,
    not_executed,
    progress,
    say,
    time_option,
)
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.text import plural

if TYPE_CHECKING:
    from services.completion_recorder.dead_letters import Filter, Letter, Staying
    from services.completion_recorder.letter_summary import Tally
    from services.completion_recorder.redriving import Redriven
    from services.operator_cli.letter_tables import Chosen, Listing
    from services.runtime.database import Connection
    from services.runtime.settings import Settings

app = typer.Typer(
    help="Dead letters: what was refused, and why; send it again or let it go.", no_args_is_help=True
)

AllOption = Annotated[bool, typer.Option("--all", help="Also those that were redriven or dropped.")]
IdOption = Annotated[
    list[str] | None, typer.Option("--id", metavar="P:O", help="Only this one; may be given several times.")
]


def _filter(
    error_class: Annotated[str | None, typer.Option("--class", help="Only of this error class.")] = None,
    partition: Annotated[
        int | None, typer.Option(min=0, help="Only of this partition of the topic of events.")
    ] = None,
    since: Annotated[
        int | None, time_option("--from", "Only those whose event came at this time or later.")
    ] = None,
    until: Annotated[int | None, time_option("--to", "Only those whose event came before this time.")] = None,
    key: Annotated[str | None, typer.Option(help="Only of this key: the user's id.")] = None,
    sender: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Only of this source: the header ce_source, or `(no source)` where none can be told.",
        ),
    ] = None,
) -> "Filter":
    from schemas import Rejection
    from services.completion_recorder.dead_letters import Filter
    from services.consumers.batches import ERROR_CLASS

    classes = [*(r.value for r in Rejection), ERROR_CLASS]
    if error_class is not None and error_class not in {*classes, "unknown"}:
        raise UsageError(f"--class: there is no error class {error_class}; there are {', '.join(classes)}")
    return Filter(error_class, partition, since, until, key, sender)


def takes_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `_filter`, in the place of its argument `wanted`."""
    options = inspect.signature(_filter).parameters
    others = dict(inspect.signature(command).parameters)
    del others["wanted"]

    @functools.wraps(command)
    def with_filter(**given: object) -> None:
        command(_filter(**{name: given.pop(name) for name in options}), **given)  # type: ignore[arg-type]

    parameters = [*options.values(), *others.values()]
    by_keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    with_filter.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    with_filter.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_filter


@app.command(
    "list",
    epilog=examples(
        "dlq list",
        "dlq list --class unknown-user --from -24h -o json",
        "dlq list --source /shop/installer",
        "dlq list --all",
    ),
)
@takes_filter
def dlq_list(
    wanted: "Filter",
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List dead letters that wait, by error class and newest first.

    With -o json all of them, as they are read.
    """
    from services.completion_recorder import dead_letters
    from services.operator_cli.letter_tables import Listing, letter_json
    from services.operator_cli.options import JsonList
    from services.runtime.database import connected

    settings = current_settings()
    listing, as_json = Listing(), JsonList()

    async def work() -> None:
        async with connected(settings) as db:
            with progress("reading", "dead letters") as advance:
                async for letters in dead_letters.read_portions(settings, db, wanted, handled=everything):
                    if output is Output.JSON:
                        as_json.add(map(letter_json, letters))
                    else:
                        listing.add(letters)
                        advance(listing.count)

    asyncio.run(work())
    if output is Output.JSON:
        as_json.end()
    else:
        listing.show(advise=True)


@app.command("summary", epilog=examples("dlq summary", "dlq summary --from -24h --json"))
@takes_filter
def dlq_summary(
    wanted: "Filter",
    as_json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Count the dead letters that wait by source and error class, with the newest of each.

    Bounded in memory for any number of letters. Of more than 5,000 sources and classes, those that come later
    are counted together, as `(other sources)`.
    """
    from services.completion_recorder import dead_letters, letter_summary
    from services.operator_cli.letter_tables import show_summary
    from services.runtime.database import connected

    settings = current_settings()

    async def work() -> "list[Tally]":
        async with connected(settings) as db:
            return await letter_summary.summarize(dead_letters.read_letters(settings, db, wanted))

    show_summary(asyncio.run(work()), as_json=as_json or output is Output.JSON)


@app.command(
    "export",
    epilog=examples("dlq export --class invalid-event", "dlq export --from -24h --to-file letters.ndjson"),
)
@takes_filter
def dlq_export(
    wanted: "Filter",
    everything: AllOption = False,
    to_file: Annotated[
        str | None, typer.Option("--to-file", metavar="FILE", help="Where to; without it, stdout.")
    ] = None,
) -> None:
    """Write dead letters that wait as lines of JSON, to be mended and given to `dlq redrive --from-file`.

    Each says where its record was, its error class and error, source, key, value and headers. What is not
    UTF-8 is base64, in `value_base64` and `key_base64`.
    """
    from services.completion_recorder import dead_letters, mending
    from services.runtime.database import connected

    settings = current_settings()

    async def work() -> int:
        async with connected(settings) as db:
            letters = dead_letters.read_letters(settings, db, wanted, handled=everything)
            return await mending.export(letters, to_file)

    say(f"{plural(asyncio.run(work()), 'letter')} written")


@app.command("show", epilog=examples("dlq show 0:4", "dlq show 0:4 -o json"))
def dlq_show(
    identifier: Annotated[
        str, typer.Argument(metavar="ID", help="Partition and offset of its event, as `dlq list` shows it.")
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one dead letter with what it holds and all that it went through."""
    from services.completion_recorder import dead_letters
    from services.operator_cli.letter_tables import show_one
    from services.runtime.database import connected

    settings = current_settings()

    async def work() -> "Letter":
        async with connected(settings) as db:
            return await dead_letters.find_one(settings, db, identifier)

    show_one(asyncio.run(work()), as_json=output is Output.JSON)


@app.command(
    "redrive",
    epilog=examples(
        "dlq redrive --class unknown-user",
        "dlq redrive --class unknown-user --rate 50 --execute",
        "dlq redrive --from-file mended.ndjson --execute",
    ),
)
@takes_filter
def dlq_redrive(
    wanted: "Filter",
    ids: IdOption = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from-file",
            metavar="FILE",
            help="Mended letters: lines of `dlq export` with other values; - is stdin. Takes no filter.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="The most that are sent in a second.")] = 200.0,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send dead letters to their topic again, once what refused them is mended.

    Key, value, headers and event id stay. With --from-file the value is the file's, as text or as a JSON
    object; all lines are held against the contract and their letters first, and where one is wrong nothing
    is sent. A letter that was cut, for its event is too large, is sent in this way alone. Interrupted, it can
    be run again: nothing is sent twice. What fails again comes back as one dead letter, with its history.
    """
    from services.completion_recorder import dead_letters
    from services.completion_recorder.mending import open_mended
    from services.runtime.crashpoints import arm

    settings = current_settings()
    arm(settings.crash_at)
    wanted = replace(wanted, ids=frozenset(ids or ()))
    as_json = output is Output.JSON
    if from_file is None:
        asyncio.run(_redrive(settings, wanted, rate, execute=execute, as_json=as_json))
        return
    if wanted != dead_letters.Filter():
        raise UsageError("--from-file says which letters: no filter goes with it")
    with open_mended(from_file) as lines:
        asyncio.run(_redrive_file(settings, lines, rate, execute=execute, as_json=as_json))


async def _redrive(
    settings: "Settings", wanted: "Filter", rate: float, *, execute: bool, as_json: bool
) -> None:
    """Sends letters as they are, or shows which."""
    from services.completion_recorder import dead_letters, redriving
    from services.operator_cli.letter_tables import Chosen, end_json, show_redriven, show_staying
    from services.runtime.alone import Act, be_alone
    from services.runtime.database import connected

    chosen = Chosen()
    async with connected(settings) as db:
        await be_alone(db, Act.HANDLE_LETTERS)
        if not execute:
            portions = dead_letters.read_portions(settings, db, wanted)
            listing, stay = await _choose(settings, portions, chosen)
            outcome = None
            if not as_json:
                listing.show()
        else:
            there = await redriving.settle_interrupted(settings, db)
            portions = dead_letters.read_portions(settings, db, wanted, also=there)
            outcome = await _send_again(settings, db, portions, rate, chosen)
            stay = outcome.stay
    if as_json:
        show_redriven(chosen, outcome, stay)
        end_json()
    show_staying(stay, settings.topic)
    _show_redriven(settings, chosen.count, outcome, rate)


async def _redrive_file(
    settings: "Settings", lines: BinaryIO, rate: float, *, execute: bool, as_json: bool
) -> None:
    """Sends letters with the values of a file, or shows which; where a line is wrong, none."""
    from services.completion_recorder import redriving
    from services.completion_recorder.mending import MendedFile, RedrivePlan
    from services.operator_cli.letter_tables import (
        Chosen,
        end_json,
        show_file,
        show_problems,
        show_redriven,
        show_staying,
    )
    from services.runtime.alone import Act, be_alone
    from services.runtime.database import connected

    chosen, plan, outcome = Chosen(), RedrivePlan(), None
    async with connected(settings) as db:
        await be_alone(db, Act.HANDLE_LETTERS)
        file = MendedFile(lines, db)
        await file.note()
        portions = file.check(settings, plan)
        listing, stay = await _choose(settings, portions, chosen)
        if execute and not plan.problems:
            there = await redriving.settle_interrupted(settings, db)
            chosen, again = Chosen(), RedrivePlan()
            portions = file.check(settings, again, there)
            outcome = await _send_again(settings, db, portions, rate, chosen)
            if again.problems:
                raise StepstreamError(
                    f"the file has changed meanwhile: {outcome.sent:,} were sent, others not"
                )
        if as_json:
            show_redriven(chosen, outcome, stay)
            await show_file(file)
            end_json()
        elif not execute and not plan.problems:
            listing.show()
        show_staying(stay, settings.topic)
        await show_problems(file, plan)
    _show_redriven(settings, chosen.count, outcome, rate)


async def _choose(
    settings: "Settings", portions: "AsyncIterator[Sequence[Letter]]", chosen: "Chosen"
) -> "tuple[Listing, Staying]":
    """The letters that can be sent, as a table; and how many of them cannot be."""
    from services.completion_recorder.dead_letters import Staying
    from services.operator_cli.letter_tables import Listing

    listing, stay = Listing(), Staying()
    async for letters in portions:
        able = stay.leave(settings.topic, letters)
        chosen.add(able)
        listing.add(able)
    return listing, stay


async def _send_again(
    settings: "Settings",
    db: "Connection",
    portions: "AsyncIterator[Sequence[Letter]]",
    rate: float,
    chosen: "Chosen",
) -> "Redriven":
    from services.completion_recorder import redriving

    with progress("sending again", "letters") as advance:

        def progressed(letters: "Iterable[Letter]", outcome: "Redriven") -> None:
            chosen.add(letters)
            advance(outcome.sent)

        return await redriving.redrive(settings, db, portions, rate, progressed)


def _show_redriven(settings: "Settings", able: int, outcome: "Redriven | None", rate: float) -> None:
    if outcome is None:
        say(f"{able:,} would be sent to {settings.topic}, at most {rate:g} a second")
        not_executed()
    else:
        again = f", {outcome.found_sent:,} had been sent before" if outcome.found_sent else ""
        say(f"[green]done[/]: {outcome.sent:,} sent again{again}")


@app.command(
    "drop", epilog=examples("dlq drop --class not-json --to -24h", "dlq drop --class not-json --execute")
)
@takes_filter
def dlq_drop(
    wanted: "Filter",
    ids: IdOption = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let dead letters go: they are neither listed nor redriven any more. Kafka removes them in its time."""
    from services.completion_recorder import dead_letters
    from services.operator_cli.letter_tables import Chosen, Listing, end_json
    from services.runtime.alone import Act, be_alone
    from services.runtime.database import connected

    settings = current_settings()
    wanted = replace(wanted, ids=frozenset(ids or ()))
    listing, chosen = Listing(), Chosen()

    async def work() -> None:
        async with connected(settings) as db:
            await be_alone(db, Act.HANDLE_LETTERS)
            async for letters in dead_letters.read_portions(settings, db, wanted):
                if execute:
                    await dead_letters.drop(db, letters)
                else:
                    listing.add(letters)
                chosen.add(letters)

    asyncio.run(work())
    if output is Output.JSON:
        chosen.show({"matching": chosen.count, "executed": execute})
        end_json()
    elif not execute:
        listing.show()
    if execute:
        say(f"[green]done[/]: {chosen.count:,} dropped")
    else:
        not_executed()
