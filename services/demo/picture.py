"""The Sankey in a terminal: transitions with bars, drop-offs, finished."""

from collections import Counter
from collections.abc import Sequence

import asyncpg
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from services.runtime.database import Connection, load_queries

SQL = load_queries(__file__)
_WIDTH = 16
_TRANSITIONS = 12


async def draw(connection: Connection, console: Console, walkthrough: str, today_ms: int) -> None:
    """Draws one walkthrough from the Sankey tables."""
    steps = await connection.fetch(SQL["steps"], walkthrough)
    transitions = await connection.fetch(SQL["transitions"], walkthrough)
    endings = await connection.fetch(SQL["endings"], walkthrough, len(steps), today_ms)
    titles = {row["id"]: row["title"] for row in steps}
    people = sum(row["journeys"] for row in endings)
    outcome = {
        name: sum(row["journeys"] for row in endings if row["outcome"] == name)
        for name in ("finished", "in progress", "dropped")
    }
    console.print()
    console.rule(f"[bold]{steps[0]['walkthrough']}[/]", align="left")
    console.print(
        f"{people:,} people started · [green]{outcome['finished']:,} finished "
        f"({outcome['finished'] / max(people, 1):.0%})[/] · {outcome['in progress']:,} in progress · "
        f"[red]{outcome['dropped']:,} dropped out[/]"
    )
    console.print(_transitions(transitions, titles, people))
    console.print(_stops(endings, titles))


def _transitions(rows: Sequence[asyncpg.Record], titles: dict[str, str], people: int) -> Table:
    table = Table("at", "from", "to", "people", "", "mean time", box=None, pad_edge=False, header_style="dim")
    table.columns[3].justify = table.columns[5].justify = "right"
    for row in rows[:_TRANSITIONS]:
        table.add_row(
            str(row["position"]),
            titles.get(row["from_step_id"], "(start)") if row["from_step_id"] else "(start)",
            titles.get(row["to_step_id"], row["to_step_id"]),
            f"{row['journeys']:,}",
            Bar(people, 0, row["journeys"], width=_WIDTH, color="cyan"),
            "" if row["mean_ms"] is None else _duration(row["mean_ms"]),
        )
    if len(rows) > _TRANSITIONS:
        table.caption = f"the {_TRANSITIONS} largest of {len(rows)} transitions"
        table.caption_justify = "left"
    return table


def _stops(rows: Sequence[asyncpg.Record], titles: dict[str, str]) -> Table:
    table = Table("not finished, now after", "people", "", box=None, pad_edge=False, header_style="dim")
    table.columns[1].justify = "right"
    standing: Counter[str | None] = Counter()
    for row in rows:
        if row["outcome"] != "finished":
            standing[row["step_id"]] += row["journeys"]
    most = max(standing.values(), default=1)
    for step, count in standing.most_common(5):
        name = "(only opened it)" if step is None else titles.get(step, step)
        table.add_row(name, f"{count:,}", Bar(most, 0, count, width=_WIDTH, color="red"))
    return table


def _duration(ms: float) -> str:
    seconds = float(ms) / 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{float(ms):.0f} ms"
