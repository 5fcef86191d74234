"""The matrix, printed after the tests of clients."""

from collections.abc import Iterator

from _pytest.terminal import TerminalReporter

from tests.clients.catalogue import CLIENTS


def _rows(reporter: TerminalReporter) -> Iterator[tuple[str, ...]]:
    for reports in reporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "cell" and report.when in {"setup", "call"}:
                    yield value


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """One line for each client, codec and partitioner."""
    head = ("client", "codec", "partitioner", "events", "elsewhere", "apart", "result")
    order = [client.name for client in CLIENTS]
    found = sorted(_rows(terminalreporter), key=lambda row: order.index(row[0]))
    if not found:
        return
    rows = [head, *dict.fromkeys(tuple(map(str, row)) for row in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section("clients")
    for row in rows:
        terminalreporter.write_line("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip())
    terminalreporter.write_line(
        "elsewhere: events that are not where Kafka's own client puts their key;"
        " apart: people whose events are in several partitions"
    )
