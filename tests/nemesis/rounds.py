"""A round: everything starts, breaks, is mended, drains, and is judged."""

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from services.consumers.lag import read_groups
from services.runtime.database import load_queries
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.errors import StepstreamError
from tests.nemesis.checker import (
    Finding,
    check_answers,
    check_erased,
    check_gone,
    check_led,
    check_rows,
    check_told,
)
from tests.nemesis.deployment import LED, WALKTHROUGHS, Bench, Deployment, Timeline
from tests.nemesis.faults import FAULTS, Fault
from tests.nemesis.history import Answer, Gone, History, Key, Kind, Rank, Row
from tests.nemesis.plan import Plan, Planned
from tests.nemesis.tools import Missing
from tests.nemesis.workload import Workload
from tests.support.truth import differences
from tests.support.world import AGGREGATOR, RECORDER

SQL = load_queries(__file__)
#: How long traffic goes on after the last fault is healed.
_AFTERWARDS = 2.0
#: How long what waits may stay the same, and how long it may take in all.
_STALLED, _DRAIN = 20.0, 90.0
#: How long the tables may differ after everything is drained.
_SETTLE = 4.0


@dataclass
class Verdict:
    """What became of a round."""

    plan: Plan
    findings: list[Finding] = field(default_factory=list)
    afterwards: list[Finding] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    logs: Path | None = None
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    exits: list[tuple[str, int, str]] = field(default_factory=list)

    @property
    def is_skipped(self) -> bool:
        return len(self.skipped) == len(self.plan.faults)


async def play(
    bench: Bench,
    plan: Plan,
    *,
    aloud: bool = False,
    keep: bool = False,
    afterwards: Callable[[Deployment], Awaitable[None]] | None = None,
) -> Verdict:
    """Plays a round; logs are kept where something was found, or when they are to be.

    `afterwards` is done once all is judged; then the tables are judged again.
    """
    began = time.monotonic()
    verdict = Verdict(plan)
    planned = []
    for each in plan.faults:
        try:
            await asyncio.to_thread(FAULTS[each.fault].require)
            planned.append(each)
        except Missing as reason:
            verdict.skipped[each.fault] = str(reason)
    if verdict.is_skipped:
        return verdict
    folder = Path(tempfile.mkdtemp(prefix=f"nemesis-{plan.seed}-{plan.number}-"))
    timeline = Timeline(aloud=aloud)
    needs = {need for each in planned for need in FAULTS[each.fault].needs}
    deployment = await Deployment.open(bench, needs, folder, timeline)
    history = History()
    workload = Workload(deployment, history, plan.chance)
    try:
        timeline.began = time.monotonic()
        workload.start()
        await _break(deployment, workload, planned)
        timeline.note("all is mended")
        await asyncio.sleep(_AFTERWARDS)
        await workload.quieten()
        timeline.note(f"nobody writes any more: {len(history.sent)} events")
        verdict.findings += await _drain(deployment)
        verdict.findings += await _judge(deployment, workload, planned, verdict.counts)
        if afterwards is not None:
            await afterwards(deployment)
            verdict.afterwards = await _look(deployment, history, Counter())
    except BaseException:
        timeline.note(f"the round breaks off; logs in {folder}")
        print("\n".join(timeline.lines))
        raise
    finally:
        verdict.exits = deployment.exits
        with contextlib.suppress(Exception):
            await workload.close()
        await deployment.close()
    verdict.timeline, verdict.seconds = timeline.lines, time.monotonic() - began
    _note_history(folder, verdict)
    if verdict.findings or keep:
        verdict.logs = folder
    else:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return verdict


async def _break(deployment: Deployment, workload: Workload, planned: Sequence[Planned]) -> None:
    """Each fault at its time, beside the others."""
    began = time.monotonic()

    async def one(each: Planned) -> None:
        fault: Fault = FAULTS[each.fault](deployment, workload, each.choices)
        await asyncio.sleep(max(0.0, began + each.begins - time.monotonic()))
        fault.note(f"{each.fault} begins")
        try:
            await fault.inject()
            await asyncio.sleep(each.lasts)
        finally:
            await fault.heal()
        fault.note(f"{each.fault} is healed")

    await asyncio.gather(*(one(each) for each in planned))


# --- until nothing waits ------------------------------------------------------------------------------


async def _drain(deployment: Deployment) -> list[Finding]:
    """Waits until nothing waits, twice in a row; else says what does."""
    began = changed = time.monotonic()
    last: dict[str, int] | str = {}
    times = 0
    while True:
        try:
            waits: dict[str, int] | str = {k: n for k, n in (await _waiting(deployment)).items() if n}
        except (*DATABASE_ERRORS, StepstreamError, KafkaError, OSError, TimeoutError) as error:
            waits = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        times = times + 1 if not waits else 0
        if times == 2:
            deployment.timeline.note(f"drained after {now - began:.1f} s")
            return []
        if waits != last:
            last, changed = waits, now
        if now - changed > _STALLED or now - began > _DRAIN:
            deployment.timeline.note(f"not drained: {waits}")
            return [Finding("not drained", f"for {now - changed:.0f} s nothing moves: {waits}")]
        await asyncio.sleep(0.4)


async def _waiting(deployment: Deployment) -> dict[str, int]:
    """What has yet to be done, by what it is."""
    topic = deployment.world.settings.topic
    waits: dict[str, int] = {}
    positions = {}
    for group in await read_groups(deployment.world.settings):
        waits[f"lag of {group.service}"] = group.lag
        waits[f"{group.service} past the end"] = sum(
            p.committed is not None and p.committed > p.end for p in group.positions
        )
        positions[group.service] = {p.partition: p.committed or 0 for p in group.positions}
    (row,) = await deployment.sql(SQL["waiting"])
    waits |= dict(row)
    for service, table, query in (
        (RECORDER, "recorded_offsets", "recorded"),
        (AGGREGATOR, "counted_offsets", "counted"),
    ):
        if not await _is_there(deployment, table):
            continue
        stored = {r["partition"]: r["next_offset"] for r in await deployment.sql(SQL[query], topic)}
        waits[f"{table} behind the group"] = sum(
            max(0, at - stored.get(partition, 0)) for partition, at in positions[service].items()
        )
    return waits


async def _is_there(deployment: Deployment, table: str) -> bool:
    (row,) = await deployment.sql(SQL["is_there"], table)
    return bool(row["is_there"])


# --- the verdict --------------------------------------------------------------------------------------


async def _judge(
    deployment: Deployment, workload: Workload, planned: Sequence[Planned], counts: Counter[str]
) -> list[Finding]:
    """What differs, once it no longer changes."""
    there = await workload.read_to_the_end()
    deadline = time.monotonic() + _SETTLE
    while True:
        findings = await _look(deployment, workload.history, counts)
        if not findings or time.monotonic() > deadline:
            break
        await asyncio.sleep(1.0)
    findings += await _last_answers(deployment, workload)
    gone = await _gone(deployment)
    findings += check_gone(workload.history, gone, there)
    findings += check_answers(workload.history, gone)
    sessions = {(r["session"], r["person"]) for r in await deployment.sql(SQL["known_led"])}
    done_by_id = {(r["person"], r["step_id"]) for r in await deployment.sql(SQL["led_by_id"], LED)}
    findings += check_led(workload.history, sessions, done_by_id)
    if not any(FAULTS[p.fault].forgets or FAULTS[p.fault].may_lose for p in planned):
        done = {(r["person"], r["step_id"]) for r in await deployment.sql(SQL["led"], LED)}
        findings += check_told(workload.history, done)
    if not any("the primary" in FAULTS[p.fault].touches or FAULTS[p.fault].may_lose for p in planned):
        sent = workload.history.sent
        known = {e for e, its in sent.items() if its.copies or its.key.user in workload.history.erasing}
        lost = sorted(workload.committed - known - {event for event, *_ in there})
        if lost:
            findings.append(
                Finding("never sent", f"{len(lost)} committed rows of the outbox, {lost[0]} for one")
            )
    history = workload.history
    counts["events"] = len(history.sent)
    counts["acknowledged"] = sum(bool(sent.copies) for sent in history.sent.values())
    counts["answers called current"] = sum(bool(answer.current) for answer in history.answers)
    counts["answers"] = len(history.answers)
    counts["steps told"] = len(history.told)
    counts["steps led"] = len(history.led)
    counts["named as gone"] = len(gone)
    return findings


async def _look(deployment: Deployment, history: History, counts: Counter[str]) -> list[Finding]:
    """The tables as they are, in one transaction."""
    rows: dict[Key, Row] = {}
    gone = await _gone(deployment)
    db = deployment.world.db
    async with db.transaction(isolation="repeatable_read", readonly=True):
        for row in await db.fetch(SQL["rows"], LED):
            key = Key(Kind(row["kind"]), row["mcp_server_user_id"], row["thing"])
            rank = Rank(row["at"], row["id"].partition("_")[2])
            rows[key] = Row(rank, row["walkthrough_id"], row["mcp_server_id"], row["mcp_server_session_id"])
        left = {
            r["mcp_server_user_id"]: r["rows"] for r in await db.fetch(SQL["left"], sorted(history.erased))
        }
        findings = check_rows(history, rows, gone) + check_erased(history, left, gone)
        for name, rows_ in (await differences(db)).items():
            findings.append(Finding(name.replace("_", " "), f"{len(rows_)} rows, for one {rows_[0]}"))
    counts["rows"] = len(rows)
    return findings


async def _gone(deployment: Deployment) -> list[Gone]:
    """What the database names as gone; nothing where there is no such table."""
    if not await _is_there(deployment, "gone_events"):
        return []
    rows = await deployment.sql(SQL["gone"])
    return [Gone(r["topic"], r["partition"], r["cause"], r["from_offset"], r["until_offset"]) for r in rows]


async def _last_answers(deployment: Deployment, workload: Workload) -> list[Finding]:
    """The API says soon that figures are current, and they are what the tables say."""
    findings = []
    for walkthrough in WALKTHROUGHS:
        answer: Answer | None = None
        deadline = time.monotonic() + 10
        while not (answer and answer.current) and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, TimeoutError, Exception):
                answer = await asyncio.wait_for(workload.ask(walkthrough), 5)
            await asyncio.sleep(0.2)
        if answer is None or not answer.current:
            findings.append(Finding("never current", f"{walkthrough}: {answer}"))
            continue
        rows = await deployment.sql(SQL["steps"], walkthrough)
        steps = {row["step_id"]: row["people"] for row in rows}
        if steps != answer.steps:
            findings.append(
                Finding("wrong and called current", f"{walkthrough}: {answer.steps} and not {steps}")
            )
    return findings


def _note_history(folder: Path, verdict: Verdict) -> None:
    """What was planned and found, beside the logs."""
    told: dict[str, Any] = {
        "seed": verdict.plan.seed,
        "round": verdict.plan.number,
        "faults": [str(p) for p in verdict.plan.faults],
        "timeline": verdict.timeline,
        "counts": dict(verdict.counts),
        "findings": [str(f) for f in verdict.findings],
        "exits": verdict.exits,
    }
    (folder / "round.json").write_text(json.dumps(told, indent=1))
