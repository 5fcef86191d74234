"""`stepstream produce`: events of a file."""

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.options import (
    Output,
    OutputOption,
    console,
    current_settings,
    examples,
    print_json,
    progress_of_bytes,
    say,
)
from services.operator_cli.stopping import nothing_begun, run_until_stopped
from services.runtime.errors import StepstreamError, StoppedError

if TYPE_CHECKING:
    from services.operations.produce import ProduceResult

app = typer.Typer()

#: Bad lines that are told one by one.
_TOLD = 20
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
    if dry_run:
        _check(file, outcome)
        report_checked(outcome, as_json=output is Output.JSON)
        return
    early = run_until_stopped(_send(file, source, outcome))
    if early is not None and not outcome.read_to and not isinstance(early, StoppedError):
        raise early
    if output is Output.JSON:
        ended = {} if early is None else {"ended": str(early), "read_to": outcome.read_to}
        print_json({"sent": outcome.sent, "not_sent": _not_sent(outcome)} | ended)
    report(outcome, early)


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


def _not_sent(outcome: "ProduceResult") -> list[dict[str, object]]:
    """Each with its line, element or object: what a file consists of."""
    found = []
    for place, reason in _in_order(outcome):
        word, _, number = place.partition(" ")
        found.append({word: int(number), "error": reason})
    return found


def _in_order(outcome: "ProduceResult") -> "list[tuple[str, str]]":
    def order(pair: tuple[str, str]) -> tuple[int, str]:
        number = pair[0].partition(" ")[2]
        return int(number) if number.isdigit() else 0, pair[1]

    return sorted(outcome.not_sent, key=order)


def report_checked(outcome: "ProduceResult", *, as_json: bool) -> None:
    """Tells what would be sent.

    Raises:
        StepstreamError: something would not.
    """
    bad = len(outcome.not_sent)
    if as_json:
        print_json({"dry_run": True, "would_send": outcome.good, "not_sent": _not_sent(outcome)})
    say(
        f"{outcome.good:,} events would be sent; nothing was sent. Whether what they refer to is there, "
        "`stepstream check-events` says"
    )
    _tell_not_sent(outcome)
    if bad:
        raise StepstreamError(f"{bad:,} of {outcome.good + bad:,} are no events. Mend them first")


def report(outcome: "ProduceResult", early: StepstreamError | None = None) -> None:
    """Tells what was sent, and what has ended it early.

    Raises:
        StepstreamError: what has ended it; or an event was not sent.
    """
    lost = len(outcome.not_sent)
    say(f"{outcome.sent:,} events sent and acknowledged, {outcome.rate:,.0f} a second")
    _tell_not_sent(outcome)
    if early is not None:
        where = f"read up to {outcome.read_to}" if outcome.read_to else "before anything was read"
        early.args = (f"{early}, {where}. To go on, {_AGAIN}",)
        raise early
    if lost:
        raise StepstreamError(
            f"{lost:,} of {outcome.sent + lost:,} events were not sent. Mend them and {_AGAIN}"
        )


def _tell_not_sent(outcome: "ProduceResult") -> None:
    for place, reason in _in_order(outcome)[:_TOLD]:
        console.print(f"  {place}: {reason}", markup=False, soft_wrap=True)
    if len(outcome.not_sent) > _TOLD:
        console.print(f"  and {len(outcome.not_sent) - _TOLD:,} more; -o json lists them all")
