"""One run that measures everything on one machine, each thing beside a floor that is taken in the same run.

    make bench [QUICK=1] [ARGS="--only recorder,freshness --events 100000"]

On an embedded stack of its own, with the real services as processes. The rounds of all sections alternate,
and so do the lines within a section, so that a busy minute hits everything alike. A ratio is of two
measurements of one round; told are medians, with the least and the most of the rounds. What each line means
is in docs/performance.md. Leaves bench.json with every round and the environment, bench.md with the tables,
and pictures. Exits 1 where a service fails, or a table of ours is not what the events come to.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.suite import environment, report, sections
from benchmarks.suite.freshness import freshness
from benchmarks.suite.relay import relay
from benchmarks.suite.results import BenchError, Measurement, Results, summarise
from benchmarks.suite.stack import Bench, Options
from services.devstack import down, up

Section = Callable[[Bench, int], Awaitable[list[Measurement]]]
SECTIONS: dict[str, Section] = {
    "recorder": sections.recorder,
    "following": sections.following,
    "together": sections.together,
    "duplicates": sections.duplicates,
    "freshness": freshness,
    "relay": relay,
    "instances": sections.instances,
}
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="how often each is measured: 5, with --quick 2")
    parser.add_argument("--events", type=int, help="how many are drained: 200,000, with --quick 4,000")
    parser.add_argument("--only", type=_names, default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="shows that all works; its rates say little")
    parser.add_argument("--no-connect", action="store_true", help="leave Kafka Connect out, as --quick does")
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/performance.md")
    parser.add_argument("--dir", type=Path, default=Path(".stepstream-bench"), help="of the embedded stack")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="where the results go")
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    args.events = args.events or (4_000 if args.quick else 200_000)
    if args.rounds < 1 or args.events < 1_000:
        parser.error("--rounds is at least 1, and --events at least 1000")
    return args


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


async def measure(bench: Bench, names: list[str], rounds: int, results: Results) -> None:
    """Round by round; in each the sections begin with another one."""
    for number in range(rounds):
        found: dict[str, list[Measurement]] = {}
        for name in sections.rotated(names, number):
            began = time.monotonic()
            found[name] = await SECTIONS[name](bench, number)
            seconds = time.monotonic() - began
            print(f"round {number + 1} of {rounds}: {name} {seconds:.0f} s", file=sys.stderr, flush=True)
        results.rounds.append([one for name in names for one in found[name]])


def has_connect() -> bool:
    """Fetches Kafka Connect; whether that is to be had."""
    from benchmarks.peers import connect

    try:
        connect.fetch()
    except Exception as error:  # noqa: BLE001 - whatever the resolver raises, the bench can do without
        print(f"Kafka Connect is left out: its artifacts cannot be fetched: {error}", flush=True)
        return False
    return True


async def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results()
    addresses = await asyncio.to_thread(up, args.dir)
    try:
        known = await environment.describe(addresses.database_url, args.dir)
        known["bench"] = {
            "rounds": args.rounds,
            "events": args.events,
            "quick": args.quick,
            "only": args.only,
        }
        wants_connect = not (args.quick or args.no_connect) and "recorder" in args.only
        options = Options(args.events, args.quick, wants_connect and await asyncio.to_thread(has_connect))
        bench = await Bench.on(addresses, args.dir, options)
        try:
            await measure(bench, args.only, args.rounds, results)
        finally:
            known["load_at_end"] = environment.load()
            kept = {"environment": known, "rounds": results.raw()}
            (args.out / "bench.json").write_text(json.dumps(kept, indent=1) + "\n")
        tell(results, known, args)
    finally:
        await asyncio.to_thread(down, args.dir, purge=True)


def tell(results: Results, known: dict[str, Any], args: argparse.Namespace) -> None:
    from benchmarks.suite.plots import draw

    summaries = summarise(results.rounds)
    report.show(summaries, known)
    text = report.markdown(summaries, known)
    (args.out / "bench.md").write_text(text)
    if args.write_docs:
        report.write_docs(PAGE, text)
    files = draw(summaries, args.out)
    print(f"{args.out}: bench.json, bench.md, {', '.join(file.name for file in files)}")


def main() -> None:
    args = arguments()
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    try:
        asyncio.run(run(args))
    except BenchError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
