"""`stepstream produce`: events of a file."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, BinaryIO

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
from services.runtime.errors import StepstreamError

if TYPE_CHECKING:
    from services.operations.produce import ProduceResult
    from services.runtime.settings import Settings

app = typer.Typer()

#: Bad lines that are told one by one.
_TOLD = 20


@app.command(epilog=examples("produce events.ndjson", "produce events.ndjson -o json"))
def produce(
    file: Annotated[str, typer.Argument(help="Events as NDJSON, one a line; `-` is standard input.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Send contract events, keyed by user and acknowledged by all replicas.

    A line that is no event is named with its number and reason, and everything else is sent.
    """
    report(asyncio.run(_send(current_settings(), file)), as_json=output is Output.JSON)


async def _send(settings: "Settings", file: str) -> "ProduceResult":
    from services.operations.produce import ProduceResult, bulk_producer, send_values
    from services.runtime.files import open_lines

    outcome = ProduceResult()
    began = time.monotonic()
    with open_lines(file) as (lines, size), progress_of_bytes("sending", size) as advance:
        async with bulk_producer(settings) as producer:
            await send_values(producer, settings.topic, _values(lines, advance), outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def report(outcome: "ProduceResult", *, as_json: bool) -> None:
    """Tells what was sent.

    Raises:
        StepstreamError: a line was not.
    """
    lost = outcome.bad + outcome.not_acknowledged
    if as_json:
        problems = [{"line": number, "error": reason} for number, reason in sorted(lost)]
        print_json({"sent": outcome.sent, "not_sent": problems})
    rate = outcome.sent / outcome.seconds if outcome.seconds else 0
    say(f"{outcome.sent:,} events sent and acknowledged, {rate:,.0f} a second")
    if not lost:
        return
    for number, reason in sorted(lost)[:_TOLD]:
        console.print(f"  line {number}: {reason}", markup=False, soft_wrap=True)
    if len(lost) > _TOLD:
        console.print(f"  and {len(lost) - _TOLD:,} more; -o json lists them all")
    raise StepstreamError(
        f"{len(lost):,} of {outcome.sent + len(lost):,} lines were not sent. Mend them and send the "
        "file again: what is there already counts once"
    )


def _values(lines: BinaryIO, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        advance(len(line))
        if value := line.strip():
            yield number, value
