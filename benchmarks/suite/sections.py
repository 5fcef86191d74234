"""The sections of the bench: each measures one round, and returns what it found."""

import time
from collections.abc import Sequence
from typing import TypeVar

from benchmarks.suite import contest
from benchmarks.suite.results import Measurement
from benchmarks.suite.stack import AGGREGATOR, COUNTED, RECORDED, RECORDER, Bench, Options, Running, World
from benchmarks.suite.workloads import Workload, again, distinct, real_log, shuffled

_T = TypeVar("_T")
#: How much the aggregator follows at once.
TURN = 20_000
INSTANCES = (1, 2, 4)
RECORDER_LINE = "Stepstream, recorder"
COPY, TWO_COPIES = "COPY", "two COPYs at once"


def rotated(items: Sequence[_T], by: int) -> list[_T]:
    """The same in another order each round, so that none always comes after the same one."""
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def stays_in_group(bench: Bench) -> dict[str, float]:
    """Settings with which a process that is stopped for a while stays in its group.

    Its heartbeats are a quarter of that apart, and so long a group takes at most to have one member more.
    """
    return {"session_timeout_seconds": 24 if bench.options.quick else 120}


async def recorder(bench: Bench, number: int) -> list[Measurement]:
    """The recorder on a backlog, beside COPY and beside what could be used instead."""
    base = distinct(bench.options.events, number)
    log = real_log("receipt" if bench.options.quick else "bpic2013_incidents")
    if log is None and not number:
        print("the real event logs are not beside this checkout: the workload `log` is skipped", flush=True)
    found = []
    for workload in (base, again(base, number), log):
        if workload is not None:
            found += await _contest(bench, number, workload)
    return found


def _lines(options: Options, workload: Workload) -> list[contest.Peer | str]:
    """What is measured of a workload: quickly, others only where their tables may be wrong."""
    floors = [RECORDER_LINE, COPY, TWO_COPIES]
    if options.quick and workload.name != "again":
        return [*floors]
    return [*floors, *contest.FASTSTREAM, *(contest.CONNECT if options.connect else ())]


async def _contest(bench: Bench, number: int, workload: Workload) -> list[Measurement]:
    lines = _lines(bench.options, workload)
    found: dict[str, Measurement] = {}
    for line in rotated(lines, number):
        values = await _contestant(bench, line, workload)
        name = line if isinstance(line, str) else line.line
        against = None if name == COPY else COPY
        found[name] = Measurement("recorder", workload.name, name, values, against)
    return [found[line if isinstance(line, str) else line.line] for line in lines]


async def _contestant(bench: Bench, line: contest.Peer | str, workload: Workload) -> dict[str, float]:
    async with bench.world(workload) as world:
        if isinstance(line, contest.Peer):
            part = workload.first(max(500, int(len(workload.events) * line.share)))
            return await contest.run_peer(world, line, part)
        if line != RECORDER_LINE:
            return await contest.copy(world, workload, 2 if line == TWO_COPIES else 1)
        await world.produce(workload.events)
        await world.settle()
        values = await drained(world, RECORDER, RECORDED, len(workload.events))
        await world.must_be_right(workload)
        return values | {"wrong": 0.0}


async def drained(world: World, service: str, query: str, goal: int, events: int = 0) -> dict[str, float]:
    """A service from when it has its partitions until the query reaches the goal."""
    (running,) = await world.start_ready(service)
    values = await _until(world, query, goal, events or goal, running)
    world.stop(running)
    return values


async def _until(world: World, query: str, goal: int, events: int, *running: Running) -> dict[str, float]:
    began, meter = time.monotonic(), world.meter(*running)
    await world.reached(query, goal)
    seconds = time.monotonic() - began
    return {"rate": events / seconds} | meter.values(events)


async def following(bench: Bench, number: int) -> list[Measurement]:
    """Recorder and aggregator in turns, each alone: neither takes the other's processor."""
    base = distinct(bench.options.events, number)
    found = []
    for name, workload in rotated([("time-ordered", base), ("shuffled", shuffled(base, number))], number):
        async with bench.world(workload, **stays_in_group(bench)) as world:
            ours = await _in_turns(world, workload)
        found.append(Measurement("following", name, "recorder", ours[RECORDER]))
        found.append(Measurement("following", name, "aggregator", ours[AGGREGATOR], "recorder"))
    return sorted(found, key=lambda one: one.case, reverse=True)


async def _in_turns(world: World, workload: Workload) -> dict[str, dict[str, float]]:
    running = dict(zip((RECORDER, AGGREGATOR), await world.start_ready(RECORDER, AGGREGATOR), strict=True))
    events = workload.events
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for one in running.values():
        one.freeze()
    for first in range(0, len(events), TURN):
        part = events[first : first + TURN]
        await world.produce(part)
        for name, query in ((RECORDER, RECORDED), (AGGREGATOR, COUNTED)):
            running[name].thaw()
            spent[name].append(await _until(world, query, first + len(part), len(part), running[name]))
            running[name].freeze()
    world.stop(*running.values())
    await world.must_be_right(workload)
    await world.must_be_exact()
    sizes = [len(events[first : first + TURN]) for first in range(0, len(events), TURN)]
    return {name: _joined(turns, sizes) for name, turns in spent.items()}


def _joined(turns: Sequence[dict[str, float]], sizes: Sequence[int]) -> dict[str, float]:
    """Several measurements one after another, as one."""
    all_ = sum(sizes)
    pairs = list(zip(turns, sizes, strict=True))
    found = {
        name: sum(turn[name] * size for turn, size in pairs) / all_ for name in turns[0] if name[-3:] == "_us"
    }
    found["rate"] = all_ / sum(size / turn["rate"] for turn, size in pairs)
    return found | {"memory_mib": max(turn["memory_mib"] for turn in turns)}


async def together(bench: Bench, number: int) -> list[Measurement]:
    """Recorder and aggregator on a backlog: one after another, and at once."""
    workload = distinct(bench.options.events, number)
    goal = len(workload.events)
    async with bench.world(workload) as world:
        await world.produce(workload.events)
        await world.settle()
        alone = await drained(world, RECORDER, RECORDED, goal)
        await world.settle()
        replay = await drained(world, AGGREGATOR, COUNTED, goal)
        await world.must_be_exact()
    async with bench.world(workload) as world:
        await world.produce(workload.events)
        await world.settle()
        running = await world.start_ready(RECORDER, AGGREGATOR)
        both = await _until(world, COUNTED, goal, goal, *running)
        world.stop(*running)
        await world.must_be_right(workload)
        await world.must_be_exact()
    slower = min((alone, "recorder alone"), (replay, "aggregator, replay"), key=lambda one: one[0]["rate"])
    return [
        Measurement("together", "backlog", "recorder alone", alone),
        Measurement("together", "backlog", "aggregator, replay", replay, "recorder alone"),
        Measurement("together", "backlog", "both at once", both, slower[1]),
    ]


async def duplicates(bench: Bench, number: int) -> list[Measurement]:
    """Events that are all recorded already, sent again."""
    workload = distinct(bench.options.events, number)
    count = len(workload.events)
    async with bench.world(workload) as world:
        await world.produce(workload.events)
        await world.settle()
        first = await drained(world, RECORDER, RECORDED, count)
        await world.produce(workload.events)
        await world.settle()
        second = await drained(world, RECORDER, RECORDED, 2 * count, count)
        await world.must_be_right(workload)
    return [
        Measurement("duplicates", "backlog", "recorded first", first),
        Measurement("duplicates", "backlog", "sent again", second, "recorded first"),
    ]


async def instances(bench: Bench, number: int) -> list[Measurement]:
    """One, two and four processes of each consumer on eight partitions: all of them together."""
    counts = INSTANCES[:2] if bench.options.quick else INSTANCES
    workload = distinct(bench.options.events, number)
    found: dict[tuple[str, int], Measurement] = {}
    for count in rotated(counts, number):
        async with bench.world(workload, 8, **stays_in_group(bench)) as world:
            values = await _with_instances(world, workload, count)
        for service, value in values.items():
            against = None if count == 1 else "1"
            found[service, count] = Measurement("instances", service, str(count), value, against)
    return [found[service, count] for service in (RECORDER, AGGREGATOR) for count in counts]


async def _with_instances(world: World, workload: Workload, count: int) -> dict[str, dict[str, float]]:
    everybody = await world.start_ready(*[RECORDER] * count, *[AGGREGATOR] * count)
    running = {RECORDER: everybody[:count], AGGREGATOR: everybody[count:]}
    for one in everybody:
        one.freeze()
    await world.produce(workload.events)
    await world.settle()
    found = {}
    for name, query in ((RECORDER, RECORDED), (AGGREGATOR, COUNTED)):
        for one in running[name]:
            one.thaw()
        found[name] = await _until(world, query, len(workload.events), len(workload.events), *running[name])
        for one in running[name]:
            one.freeze()
    world.stop(*everybody)
    await world.must_be_right(workload)
    await world.must_be_exact()
    return found
