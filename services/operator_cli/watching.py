"""`stepstream status` and `stepstream lag`: see how far everything is, once or again and again."""

import asyncio
import time
from typing import Annotated, Any

import typer
from rich.live import Live

from services.operator_cli.options import (
    GroupName,
    Output,
    OutputOption,
    console,
    current_settings,
    parse_duration,
    parse_some_time,
    print_json,
    print_result,
)

WatchOption = Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")]
EveryOption = Annotated[
    float,
    typer.Option("--every", metavar="DURATION", parser=parse_some_time, help="With --watch: how often."),
]


def status(output: OutputOption = Output.TABLE, watch: WatchOption = False, every: EveryOption = 2.0) -> None:
    """See how far everything is: groups, dead letters, outbox, and which services are down.

    Works while services, Kafka or the database are down, and says which; also before `migrate`. Exit 1 when
    Kafka or the database does not answer, a part of either is missing or may not be read, or migrations are
    pending; exit 3 when the database, the topic and the groups' offsets do not agree, a batch cannot be read,
    or events are gone from Kafka and nobody has acknowledged that.
    """
    from services.operator_cli import status_tables as page
    from services.operator_cli.status import status as read_status

    settings = current_settings()

    async def once() -> Any:
        return await read_status(settings)

    seen = _look(once, page.as_json, page.status_page, output, every if watch else None)
    if seen.is_incomplete:
        raise typer.Exit(1)
    if seen.is_apart:
        raise typer.Exit(3)


def lag(
    group: Annotated[GroupName | None, typer.Option("--group", help="Only this one.")] = None,
    fail_above: Annotated[
        str | None,
        typer.Option(metavar="N|DURATION", help="Exit 3 when more events wait, or the oldest waits longer."),
    ] = None,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
) -> None:
    """See each group partition by partition: committed, end, lag in events and in time, and who reads it."""
    from services.consumers.lag import GROUPS, read_groups
    from services.operator_cli import status_tables as page

    settings = current_settings()
    limits = _limits(fail_above)
    services = GROUPS if group is None else (group.value,)

    async def once() -> Any:
        return await read_groups(settings, services), int(time.time() * 1000)

    groups, at = _look(
        once,
        lambda seen: page.groups_json(*seen),
        lambda seen: page.lag_tables(*seen),
        output,
        every if watch else None,
    )
    page.check_lag(groups, at, *limits)


def _limits(text: str | None) -> tuple[int | None, float | None]:
    if text is None:
        return None, None
    if text.isdigit():
        return int(text), None
    return None, parse_duration(text)


def _look(once: Any, as_json: Any, page: Any, output: Output, every: float | None) -> Any:
    """Prints what `once` sees: once, or again and again."""
    if every is None:
        seen = asyncio.run(once())
        if output is Output.JSON:
            print_json(as_json(seen))
        else:
            print_result(page(seen))
        return seen

    async def forever() -> None:
        if output is Output.JSON or not console.is_terminal:
            while True:
                seen = await once()
                print_json(as_json(seen)) if output is Output.JSON else print_result(page(seen))
                await asyncio.sleep(every)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(page(await once()), refresh=True)
                await asyncio.sleep(every)

    try:
        asyncio.run(forever())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
