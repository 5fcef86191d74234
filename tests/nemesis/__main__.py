"""`make nemesis`, or `python -m tests.nemesis --seed N --rounds M --faults name,name+name`.

Each round draws a fault, or two, from the seed; plays it against a deployment of its own; and compares the tables and
the API's answers with what producers were acknowledged. The same seed gives the same plan. Exits 1 when anything
differs, with the seed, the timeline, the rows, and the folder of the logs.
"""

import argparse
import asyncio
import logging
import os
import sys
import traceback

from tests.nemesis.deployment import Bench
from tests.nemesis.faults import FAULTS
from tests.nemesis.plan import Plan, draw
from tests.nemesis.rounds import Verdict, play

#: How many findings of a kind are printed.
_MOST = 6


def tell(verdict: Verdict, *, timeline: bool) -> None:
    """The round in a line; and all that was found."""
    plan, counts = verdict.plan, verdict.counts
    for name, why in verdict.skipped.items():
        print(f"skipped: {name}: {why}")
    if verdict.is_skipped:
        return
    found = ", ".join(f"{kind} {n}" for kind, n in kinds(verdict).items())
    print(
        f"{'NOT EXACT' if verdict.findings else 'exact'}: seed {plan.seed}, round {plan.number}, {plan.title}: "
        f"{counts['acknowledged']} of {counts['events']} events acknowledged, {counts['rows']} rows, "
        f"{counts['answers called current']} of {counts['answers']} answers called current, {counts['steps led']} steps led, {counts['steps told']} of them told, "
        f"{len(verdict.exits)} services ended by themselves, {verdict.seconds:.0f} s"
        + (f"; {found}" * bool(found)),
        flush=True,
    )
    if not verdict.findings:
        return
    for planned in plan.faults:
        print(f"  planned: {planned}")
    for line in verdict.timeline if timeline else ():
        print(f"  {line}")
    for kind, count in kinds(verdict).items():
        for finding in [f for f in verdict.findings if f.kind == kind][:_MOST]:
            print(f"  {finding}")
        if count > _MOST:
            print(f"  {kind}: {count - _MOST} more, in round.json")
    print(f"  logs: {verdict.logs}")
    print(f"  again: {plan.command}", flush=True)


def kinds(verdict: Verdict) -> dict[str, int]:
    """How many findings there are of each kind."""
    found: dict[str, int] = {}
    for finding in verdict.findings:
        found[finding.kind] = found.get(finding.kind, 0) + 1
    return found


async def run(plans: list[Plan], *, aloud: bool, keep: bool) -> int:
    """Plays them; returns how many found something."""
    bench = Bench()
    wrong = 0
    try:
        for plan in plans:
            if aloud:
                print(f"round {plan.number}: {', '.join(map(str, plan.faults))}", file=sys.stderr, flush=True)
            try:
                verdict = await play(bench, plan, aloud=aloud, keep=keep)
            except Exception:  # the harness itself: the next round has servers of its own again
                print(f"BROKEN OFF: {plan.title}; again: {plan.command}", flush=True)
                traceback.print_exc()
                wrong += 1
                await bench.renew()
                continue
            tell(verdict, timeline=not aloud)
            wrong += bool(verdict.findings)
    finally:
        await bench.close()
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(prog="nemesis", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round", type=int, default=0, help="the first round")
    parser.add_argument("--faults", default="", help="of which to draw: names, or pairs as name+name")
    parser.add_argument("--each", action="store_true", help="each fault once, alone")
    parser.add_argument("--list", action="store_true", help="all faults, and no round")
    parser.add_argument("--plan", action="store_true", help="what would be played, and no round")
    parser.add_argument("--keep", action="store_true", help="keep the logs of each round")
    parser.add_argument("--quiet", action="store_true", help="no timeline while it runs")
    args = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that Kafka is away is the point
    if args.list:
        for fault in FAULTS.values():
            print(f"{fault.name}: {fault.what}" + ("; events may be gone, and are named" * fault.may_lose))
        return
    among = [name for name in args.faults.split(",") if name]
    unknown = {part for name in among for part in name.split("+")} - FAULTS.keys()
    if unknown:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; --list has all")
    if args.each:
        plans = [draw(args.seed, n, FAULTS, [name]) for n, name in enumerate(among or FAULTS)]
    else:
        plans = [draw(args.seed, args.round + n, FAULTS, among) for n in range(args.rounds)]
    if args.plan:
        for plan in plans:
            print(f"seed {plan.seed}, round {plan.number}: {', '.join(map(str, plan.faults))}")
        return
    print(f"nemesis: seed {args.seed}, {len(plans)} rounds", file=sys.stderr, flush=True)
    wrong = asyncio.run(run(plans, aloud=not args.quiet, keep=args.keep))
    print(f"{len(plans)} rounds, {wrong} not exact")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
