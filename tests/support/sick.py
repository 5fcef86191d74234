"""The real recorder with one injury, as a process: `python -m tests.support.sick INJURY`."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from services.completion_recorder.app import RecorderShell, build
from services.runtime.environment import load_settings
from services.runtime.telemetry import configure_logging


async def fetching(shell: RecorderShell) -> None:
    shell.consumer._fetcher._fetch_task.cancel()


async def coordinating(shell: RecorderShell) -> None:
    shell.consumer._coordinator._coordination_task.cancel()


async def consuming(shell: RecorderShell) -> None:
    for task in shell.subscriber.tasks:
        task.cancel()


async def deaf(shell: RecorderShell) -> None:
    """It fetches no more, although nothing waits: as after a bug in the client."""
    shell.consumer.pause(*shell.consumer.assignment())


async def stuck(shell: RecorderShell) -> None:
    async def for_ever(*_: Any) -> None:
        await asyncio.Event().wait()

    shell.handler.handle = for_ever  # type: ignore[method-assign]


async def blocked(shell: RecorderShell) -> None:
    async def for_ever(*_: Any) -> None:
        time.sleep(3600)  # noqa: ASYNC251

    shell.handler.handle = for_ever  # type: ignore[method-assign]


INJURIES: dict[str, Callable[[RecorderShell], Awaitable[None]]] = {
    f.__name__: f for f in (fetching, coordinating, consuming, deaf, stuck, blocked)
}


async def main(injury: str) -> int:
    settings = load_settings()
    configure_logging(settings.log_level)
    shell = build(settings)

    async def injure() -> None:
        while not (shell.subscriber.tasks and shell.consumer.assignment()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await INJURIES[injury](shell)

    task = asyncio.create_task(injure())
    code = await shell.run(0)
    await task
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
