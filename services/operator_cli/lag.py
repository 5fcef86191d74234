"""`stepstream lag`: how far the consumer groups are, partition by partition."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group as Lines
from rich.console import RenderableType

from services.operator_cli.options import (
    GroupName,
    Output,
    OutputOption,
    current_settings,
    examples,
    make_table,
    parse_duration,
)
from services.operator_cli.watch import EveryOption, WatchOption, show
from services.runtime.errors import MismatchError
from services.runtime.text import format_duration, plural

if TYPE_CHECKING:
    from services.consumers.lag import Group

app = typer.Typer()


@app.command(epilog=examples("lag", "lag --group completion-recorder", "lag --fail-above 5m -o json"))
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

    settings = current_settings()
    limits = _limits(fail_above)
    services = GROUPS if group is None else (group.value,)

    async def once() -> tuple[list["Group"], int]:
        return await read_groups(settings, services), int(time.time() * 1000)

    groups, at = show(
        once,
        lambda seen: groups_json(*seen),
        lambda seen: _tables(*seen),
        output,
        every if watch else None,
    )
    _check(groups, at, *limits)


def _limits(text: str | None) -> tuple[int | None, float | None]:
    if text is None:
        return None, None
    if text.isdigit():
        return int(text), None
    return None, parse_duration(text)


def groups_json(groups: Sequence["Group"], at: int) -> list[dict[str, Any]]:
    """Groups for programs."""
    return [_group_json(group, at) for group in groups]


def _group_json(group: "Group", at: int) -> dict[str, Any]:
    return {
        "service": group.service,
        "group": group.group,
        "state": group.state,
        "members": group.members,
        "lag": group.lag,
        "lag_seconds": _seconds(group.waiting_since, at),
        "partitions": [
            {k: v for k, v in asdict(p).items() if k != "waiting_since"}
            | {"lag_seconds": _seconds(p.waiting_since, at)}
            for p in group.positions
        ],
    }


def _tables(groups: Sequence["Group"], at: int) -> RenderableType:
    """Each group, partition by partition."""
    parts: list[RenderableType] = []
    for group in groups:
        rows = [
            (p.partition, p.committed, p.end, p.lag, format_wait(p.waiting_since, at), p.member)
            for p in group.positions
        ]
        title = f"{group.group}: {group.state}, members {len(group.members)}, lag {group.lag:,}"
        parts.append(
            make_table(title, ("partition", "committed", "end", "lag", "oldest waits", "member"), rows)
        )
    return Lines(*parts)


def _seconds(since: int | None, at: int) -> float:
    return 0.0 if since is None else max(0, at - since) / 1000


def format_wait(since: int | None, at: int) -> str:
    """How long the oldest event has waited; empty where none does."""
    return "" if since is None else format_duration(_seconds(since, at))


def _check(groups: Sequence["Group"], at: int, events: int | None, seconds: float | None) -> None:
    """Raises MismatchError when a group's lag is above a limit."""
    for group in groups:
        waited = _seconds(group.waiting_since, at)
        if events is not None and group.lag > events:
            raise MismatchError(
                f"{group.service} is behind by {plural(group.lag, 'event')}, more than {events:,}"
            )
        if seconds is not None and waited > seconds:
            raise MismatchError(
                f"{group.service}: the oldest event waits for {format_duration(waited)}, longer than "
                f"{format_duration(seconds)}"
            )
