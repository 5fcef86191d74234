"""The Sankey tables against one SQL over completions and starts, from one snapshot."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from services.runtime.database import Connection, load_queries
from services.runtime.errors import MismatchError

SQL = load_queries(__file__)
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was compared, and every cell that differs."""

    totals: dict[str, int]
    transitions: list[dict[str, Any]]
    endings: list[dict[str, Any]]
    journeys: list[dict[str, Any]]

    @property
    def differing(self) -> int:
        """How many cells differ."""
        return len(self.transitions) + len(self.endings) + len(self.journeys)


async def verify(connection: Connection) -> Verdict:
    """Compares every cell; all queries see the same snapshot."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute("set local work_mem = '128MB'")
        totals = await connection.fetchrow(SQL["totals"])
        assert totals is not None  # noqa: S101 - one row, always
        found = [
            [dict(row) for row in await connection.fetch(SQL[name])]
            for name in ("differing_transitions", "differing_endings", "differing_journeys")
        ]
    return Verdict(dict(totals), *found)


def report(verdict: Verdict, *, as_json: bool) -> None:
    """Prints the verdict.

    Raises:
        MismatchError: a cell differs.
    """
    console = Console(highlight=False)
    if as_json:
        print(json.dumps({**asdict(verdict), "differing": verdict.differing}, default=str))  # noqa: T201
    else:
        for name in ("transitions", "endings", "journeys"):
            _print_table(console, name, getattr(verdict, name))
        totals = verdict.totals
        console.print(
            f"{totals['completions']:,} completions, {totals['starts']:,} starts, "
            f"{totals['journeys']:,} journeys, "
            f"{totals['transition_cells']:,} transition cells, {totals['ending_cells']:,} ending cells"
        )
    if verdict.differing:
        raise MismatchError(
            f"{verdict.differing:,} cells differ from the completions. If the lag is not zero, or marks are "
            f"left ({verdict.totals['marks']:,} now), wait for the aggregator and verify again"
        )
    if not as_json:
        console.print("[bold green]exact[/]: every cell equals what completions and starts say")


def _print_table(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(*rows[0], title=f"{name} that differ", title_justify="left")
    for row in rows[:_SHOWN]:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table)
    if len(rows) > _SHOWN:
        console.print(f"and {len(rows) - _SHOWN:,} more; -o json lists them all")
