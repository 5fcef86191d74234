"""Looking once, or again and again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Never, TypeVar

import typer
from rich.console import RenderableType
from rich.live import Live

from services.operator_cli.options import Output, Safe, console, parse_some_time, print_json, print_result

T = TypeVar("T")

WatchOption = Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")]
EveryOption = Annotated[
    float,
    typer.Option("--every", metavar="DURATION", parser=parse_some_time, help="With --watch: how often."),
]


def show(
    once: Callable[[], Awaitable[T]],
    as_json: Callable[[T], object],
    page: Callable[[T], RenderableType],
    output: Output,
    every: float | None,
) -> T:
    """Prints what `once` sees: once, or again and again."""
    if every is None:
        seen = asyncio.run(_awaited(once))
        if output is Output.JSON:
            print_json(as_json(seen))
        else:
            print_result(page(seen))
        return seen

    async def forever() -> Never:
        if output is Output.JSON or not console.is_terminal:
            while True:
                seen = await once()
                print_json(as_json(seen)) if output is Output.JSON else print_result(page(seen))
                await asyncio.sleep(every)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(Safe(page(await once())), refresh=True)
                await asyncio.sleep(every)

    try:
        asyncio.run(forever())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _awaited(once: Callable[[], Awaitable[T]]) -> T:
    return await once()
