"""`stepstream produce`: events of a file."""

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.options import (
    JsonObject,
    Output,
    OutputOption,
    current_settings,
    examples,
    progress_of_bytes,
    say,
    tell_refused,
)
from services.operator_cli.stopping import nothing_begun, run_until_stopped
from services.runtime.errors import StepstreamError, StoppedError

if TYPE_CHECKING:
    from services.operations.produce import ProduceResult
    from services.operations.tally import Refused

app = typer.Typer()

_AGAIN = "send the file again: what is there already counts once"


@app.command(
    epilog=examples(
        "produce events.ndjson", "produce events.json.gz --dry-run", "produce events.ndjson -o json"
    )
)
def produce(
    file: Annotated[
        str,
        typer.Argument(
            help="Events as NDJSON, a JSON array, or objects over several lines; gzip or not; `-` is "
            "standard input."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Hold each event against the contract, and send none.")
    ] = False,
    source: Annotated[
        str, typer.Option(metavar="NAME", help="The `ce_source` under which what is refused is shown.")
    ] = "/stepstream/produce",
    output: OutputOption = Output.TABLE,
) -> None:
    """Send contract events, keyed by user and acknowledged by all replicas.

    What is no event is named with its line and reason, and everything else is sent. Whoever ends it by
    Ctrl-C or SIGTERM is told what was sent.
    """
    with nothing_begun():
        from services.operations.produce import ProduceResult

    outcome = ProduceResult()
    stream = JsonObject("not_sent") if output is Output.JSON else None
    if stream is not None:
        outcome.not_sent.tell = lambda refused: stream.add(_json_of(refused))
    if dry_run:
        _check(file, outcome)
        report_checked(outcome, stream)
        return
    early = run_until_stopped(_send(file, source, outcome))
    if early is not None and not outcome.read_to and not isinstance(early, StoppedError):
        raise early
    if stream is not None:
        ended = {} if early is None else {"ended": str(early), "read_to": outcome.read_to}
        stream.end({"sent": outcome.sent} | ended)
    report(outcome, early, source)


def _check(file: str, outcome: "ProduceResult") -> None:
    from services.operations.event_files import read_values
    from services.operations.produce import check_values
    from services.runtime.files import open_lines

    with open_lines(file) as (lines, size), progress_of_bytes("checking", size) as advance:
        check_values(read_values(lines, file, advance), outcome)


async def _send(file: str, source: str, outcome: "ProduceResult") -> None:
    from services.operations.event_files import read_values
    from services.operations.in_thread import in_thread
    from services.operations.produce import bulk_producer, send_batches
    from services.runtime.files import open_unbuffered

    settings = current_settings()
    rate = lambda: f"{outcome.rate:,.0f}/s"  # noqa: E731 - what is shown beside the bar
    with open_unbuffered(file) as (lines, size), progress_of_bytes("sending", size, rate) as advance:
        async with (
            bulk_producer(settings, source) as producer,
            aclosing(in_thread(read_values(lines, file, advance))) as batches,
        ):
            await send_batches(producer, batches, outcome)


def _json_of(refused: "Refused") -> dict[str, object]:
    """With its line, element or object: what a file consists of."""
    word, _, number = refused.place.partition(" ")
    return {word: int(number) if number.isdigit() else number, "error": refused.reason}


def report_checked(outcome: "ProduceResult", stream: JsonObject | None) -> None:
    """Tells what would be sent.

    Raises:
        StepstreamError: something would not.
    """
    bad = outcome.not_sent.total
    if stream is not None:
        stream.end({"dry_run": True, "would_send": outcome.good})
    say(
        f"{outcome.good:,} events would be sent; nothing was sent. Whether what they refer to is there, "
        "`stepstream check-events` says"
    )
    tell_refused(outcome.not_sent)
    if bad:
        raise StepstreamError(f"{bad:,} of {outcome.good + bad:,} are no events. Mend them first")


def report(outcome: "ProduceResult", early: StepstreamError | None = None, source: str | None = None) -> None:
    """Tells what was sent, and what has ended it early; with a source also where one sees what became of it.

    Raises:
        StepstreamError: what has ended it; or an event was not sent.
    """
    lost = outcome.not_sent.total
    say(f"{outcome.sent:,} events sent and acknowledged, {outcome.rate:,.0f} a second")
    tell_refused(outcome.not_sent)
    if source is not None and outcome.sent:
        topic = current_settings().topic
        say(
            f"whether they count: `stepstream check-events --topic {topic} --source {source} --from -1h`; "
            f"what was refused: `stepstream dlq summary --source {source}`",
            markup=False,
        )
    if early is not None:
        where = f"read up to {outcome.read_to}" if outcome.read_to else "before anything was read"
        early.args = (f"{early}, {where}. To go on, {_AGAIN}",)
        raise early
    if lost:
        raise StepstreamError(
            f"{lost:,} of {outcome.sent + lost:,} events were not sent. Mend them and {_AGAIN}"
        )
