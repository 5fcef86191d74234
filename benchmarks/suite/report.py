"""What a run comes to, as tables: for the terminal, and as Markdown for the page."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.suite.results import Spread, Summary

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
#: The column of a value, how it is written, and by which values of a section it is there.
_COLUMNS = (
    ("rate", "a second", "{:,.0f}"),
    ("p50_ms", "p50 ms", "{:,.1f}"),
    ("p99_ms", "p99 ms", "{:,.1f}"),
    ("ratio", "to its floor", "{:.2f}"),
    ("service_us", "µs of it", "{:,.1f}"),
    ("postgres_us", "µs of PostgreSQL", "{:,.1f}"),
    ("kafka_us", "µs of Kafka", "{:,.1f}"),
    ("memory_mib", "most MiB", "{:,.0f}"),
    ("wrong", "wrong rows", "{:.1%}"),
)
#: Of these the least and the most are told as well.
_WITH_SPREAD = frozenset({"rate", "ratio", "p50_ms", "p99_ms"})


def told(spread: Spread | None, name: str, form: str) -> str:
    """The median, and in brackets the least and the most."""
    if spread is None:
        return ""
    text = form.format(spread.median)
    if name in _WITH_SPREAD and spread.rounds > 1:
        text += f" ({form.format(spread.least)} to {form.format(spread.most)})"
    return text


def table(lines: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a section's table; columns that nothing fills are left out."""
    there = [column for column in _COLUMNS if any(_value(line, column[0]) is not None for line in lines)]
    head = ["case", "what", *(title for _, title, _ in there)]
    rows = [
        [line.case, _what(line), *(told(_value(line, name), name, form) for name, _, form in there)]
        for line in lines
    ]
    return head, rows


def _what(line: Summary) -> str:
    return f"{line.line} (to {line.against})" if line.against else line.line


def _value(line: Summary, name: str) -> Spread | None:
    return line.ratio if name == "ratio" else line.values.get(name)


def by_section(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    found: dict[str, list[Summary]] = {}
    for one in summaries:
        found.setdefault(one.section, []).append(one)
    return found


def show(summaries: Sequence[Summary], environment: dict[str, Any]) -> None:
    """Prints tables for people."""
    console = Console(width=None if Console().is_terminal else 180)
    for section, lines in by_section(summaries).items():
        head, rows = table(lines)
        shown = Table(title=section, title_justify="left", box=None, header_style="bold")
        for number, title in enumerate(head):
            shown.add_column(title, justify="left" if number < 2 else "right")
        last = ""
        for case, *row in rows:
            shown.add_row("" if case == last else case, *row)
            last = case
        console.print(shown)
        console.print()
    console.print(sentence(environment))


def sentence(environment: dict[str, Any]) -> str:
    """The environment in a line."""
    start, end = environment["load_at_start"][0], environment.get("load_at_end", ["?"])[0]
    options = environment["bench"]
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['memory_gib']} GiB, Linux "
        f"{environment['kernel']}; Python {environment['python']}, PostgreSQL {environment['postgresql']}, "
        f"Kafka {environment['kafka']}; commit {environment['commit'][:12]}; {options['rounds']} rounds of "
        f"{options['events']:,} events; load {start} at the start and {end} at the end"
    )


def markdown(summaries: Sequence[Summary], environment: dict[str, Any]) -> str:
    """The same for the page."""
    parts = [f"{sentence(environment)}."]
    for section, lines in by_section(summaries).items():
        head, rows = table(lines)
        body = [head, ["---", "---", *["--:"] * (len(head) - 2)], *rows]
        parts.append(f"**{section}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in body))
    return "\n\n".join(parts) + "\n"


def put_between(page: str, text: str) -> str:
    """The page with the text between its two markers.

    Raises:
        ValueError: the page does not have each of them once, in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs {BEGIN} and {END} once, in this order")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}"


def write_docs(file: Path, text: str) -> None:
    file.write_text(put_between(file.read_text(), text))
