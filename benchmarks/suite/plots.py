"""Pictures of a run."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.report import by_section
from benchmarks.suite.results import Summary

_PROCESSOR = (("service_us", "the service"), ("postgres_us", "PostgreSQL"), ("kafka_us", "Kafka"))


def draw(summaries: Sequence[Summary], folder: Path) -> list[Path]:
    """Writes what can be drawn: rates beside COPY, the processor's time an event, instances, delays."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawn = []
    sections = by_section(summaries)
    pictures = {"recorder": _beside_copy, "instances": _instances, "freshness": _delays}
    for section, paint in pictures.items():
        if section in sections:
            drawn.append((section, paint(plt, sections[section])))
    if any("postgres_us" in one.values for one in summaries):
        drawn.append(("processor", _processor(plt, summaries)))
    files = []
    for name, figure in drawn:
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=90)
        plt.close(figure)
    return files


def _beside_copy(plt: Any, lines: Sequence[Summary]) -> Any:
    """Ratios to COPY, with the least and the most of the rounds."""
    cases = list(dict.fromkeys(one.case for one in lines))
    figure, axes = plt.subplots(1, len(cases), figsize=(6.5 * len(cases), 4), layout="constrained")
    for axis, case in zip([axes] if len(cases) == 1 else axes, cases, strict=True):
        shown = [one for one in lines if one.case == case and one.ratio is not None][::-1]
        _bars(axis, [one.line for one in shown], [one.ratio for one in shown])
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"{case}: events a second, COPY = 1", fontsize=9)
    return figure


def _bars(axis: Any, names: Sequence[str], spreads: Sequence[Any]) -> None:
    medians = [one.median for one in spreads]
    errors = [[one.median - one.least for one in spreads], [one.most - one.median for one in spreads]]
    axis.barh(range(len(names)), medians, xerr=errors, color="#4477aa", ecolor="#222222", capsize=2)
    axis.set_yticks(range(len(names)), names, fontsize=8)


def _processor(plt: Any, summaries: Sequence[Summary]) -> Any:
    """What an event takes of the processor, by whom."""
    shown = [one for one in summaries if "postgres_us" in one.values][::-1]
    figure, axis = plt.subplots(figsize=(10, 1 + 0.25 * len(shown)), layout="constrained")
    left = [0.0] * len(shown)
    for name, title in _PROCESSOR:
        parts = [one.values[name].median if name in one.values else 0.0 for one in shown]
        axis.barh(range(len(shown)), parts, left=left, label=title)
        left = [so_far + part for so_far, part in zip(left, parts, strict=True)]
    names = [f"{one.section}, {one.case}: {one.line}" for one in shown]
    axis.set_yticks(range(len(shown)), names, fontsize=7)
    most = max(total for total in left if total <= 10 * statistics.median(left)) * 1.2
    axis.set_xlim(0, most)
    for place, total in enumerate(left):
        if total > most:
            axis.text(most, place, f"{total:,.0f} → ", ha="right", va="center", fontsize=7)
    axis.set_xlabel("µs of the processor an event")
    axis.legend(fontsize=8)
    return figure


def _instances(plt: Any, lines: Sequence[Summary]) -> Any:
    """The rate of all processes of a consumer together."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for service in dict.fromkeys(one.case for one in lines):
        own = [one for one in lines if one.case == service]
        axis.plot(
            [int(one.line) for one in own],
            [one.values["rate"].median for one in own],
            marker="o",
            label=service,
        )
    axis.set_ylim(bottom=0)
    axis.set_xlabel("processes")
    axis.set_ylabel("events a second")
    axis.legend(fontsize=8)
    return figure


def _delays(plt: Any, lines: Sequence[Summary]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(10, 1 + 0.25 * len(lines)), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("p50_ms", "p99_ms"), strict=True):
        shown = lines[::-1]
        _bars(axis, [f"{one.case}: {one.line}" for one in shown], [one.values[name] for one in shown])
        axis.set_xlabel(f"{name[:3]}, ms")
    return figure
