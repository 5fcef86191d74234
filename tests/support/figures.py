"""What the figures must be, from the rows alone: a plain walk over completions and starts, for whoever tests.

It shares nothing with the project's own code but the rules: docs and design say what each figure is.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from statistics import median
from typing import Any

DAY = 86_400_000


def day_of(ms: int) -> date:
    return datetime.fromtimestamp(ms / 1000, UTC).date()


@dataclass
class Walk:
    """Somebody's journey."""

    user: str
    server: str
    started_at: int | None
    steps: list[str]
    times: list[int]
    sessions: set[str]
    skipped: set[str] = field(default_factory=set)
    #: What was shown last and is not passed; None where no showing says.
    shown: str | None = None

    @property
    def done(self) -> list[str]:
        return [step for step in self.steps if step not in self.skipped]

    @property
    def began_at(self) -> int:
        return self.started_at if self.started_at is not None else self.times[0]

    @property
    def last_at(self) -> int:
        return self.times[-1] if self.times else self.began_at


@dataclass
class Shown:
    """What a view shows of it."""

    walk: Walk
    steps: list[str]
    times: list[int]
    from_start: int | None
    outcome: str


@dataclass
class Figures:
    """The truth about one walkthrough."""

    order: list[str]
    walks: list[Walk]
    today: date = field(default_factory=lambda: datetime.now(UTC).date())
    active_days: int = 7

    @classmethod
    async def read(cls, db: Any, walkthrough: str, **other: Any) -> "Figures":
        order = [
            r["id"]
            for r in await db.fetch(
                "select id from walkthrough_steps where walkthrough_id = $1 order by display_order, id",
                walkthrough,
            )
        ]
        rows = await db.fetch(
            "select * from walkthrough_step_completions where walkthrough_id = $1"
            ' order by completed_at, id collate "C"',
            walkthrough,
        )
        done: defaultdict[str, list[Any]] = defaultdict(list)
        for row in rows:
            done[row["mcp_server_user_id"]].append(row)
        skipped: defaultdict[str, set[str]] = defaultdict(set)
        visits: defaultdict[str, set[str]] = defaultdict(set)
        for row in await db.fetch(
            "select *, skipped_at as completed_at from walkthrough_step_skips where walkthrough_id = $1",
            walkthrough,
        ):
            user = row["mcp_server_user_id"]
            visits[user].add(row["mcp_server_session_id"])
            if row["step_id"] not in {r["step_id"] for r in done[user]}:
                done[user].append(row)
                skipped[user].add(row["step_id"])
        for passed in done.values():
            passed.sort(key=lambda r: (r["completed_at"], r["id"].encode()))
        showings: defaultdict[str, list[Any]] = defaultdict(list)
        for row in await db.fetch(
            "select * from walkthrough_step_showings where walkthrough_id = $1"
            ' order by last_shown_at, last_id collate "C"',
            walkthrough,
        ):
            showings[row["mcp_server_user_id"]].append(row)
        starts = {
            r["mcp_server_user_id"]: r
            for r in await db.fetch("select * from walkthrough_starts where walkthrough_id = $1", walkthrough)
        }
        walks = []
        for user in sorted(done.keys() | starts.keys()):
            mine, start = done[user], starts.get(user)
            sessions = {r["mcp_server_session_id"] for r in mine} | visits[user]
            if start is not None:
                sessions.add(start["mcp_server_session_id"])
                if mine and start["started_at"] > mine[0]["completed_at"]:
                    start = None
            server = (start or mine[0])["mcp_server_id"]
            walks.append(
                Walk(
                    user,
                    server,
                    start["started_at"] if start else None,
                    [r["step_id"] for r in mine],
                    [r["completed_at"] for r in mine],
                    sessions,
                    skipped[user],
                    next(
                        (
                            r["step_id"]
                            for r in reversed(showings[user])
                            if r["step_id"] not in {m["step_id"] for m in mine}
                        ),
                        None,
                    ),
                )
            )
        return cls(order, walks, **other)

    def only(self, condition: Callable[[Walk], bool]) -> "Figures":
        return Figures(self.order, [w for w in self.walks if condition(w)], self.today, self.active_days)

    def outcome(self, walk: Walk) -> str:
        if self.order and len(walk.steps) == len(self.order):
            return "finished"
        recent = day_of(walk.last_at) > self.today - timedelta(days=self.active_days)
        return "in_progress" if recent else "dropped"

    def shown(
        self,
        start_at: str | None = None,
        end_at: str | None = None,
        exclude: Iterable[str] = (),
        through: Iterable[str] = (),
    ) -> list[Shown]:
        """Step by step, the slow way."""
        result = []
        for walk in self.walks:
            pairs, outcome, from_start = (
                list(zip(walk.steps, walk.times, strict=True)),
                self.outcome(walk),
                walk.started_at,
            )
            if start_at is not None:
                while pairs and pairs[0][0] != start_at:
                    pairs.pop(0)
                if not pairs:
                    continue
                from_start = None
            if end_at is not None:
                if end_at not in [step for step, _ in pairs]:
                    continue
                while pairs[-1][0] != end_at:
                    pairs.pop()
                outcome = "reached"
            pairs = [pair for pair in pairs if pair[0] not in set(exclude)]
            at = {int(text.split(":")[0]) for text in through}
            if any(p >= len(pairs) or f"{p}:{pairs[p][0]}" not in set(through) for p in at):
                continue
            result.append(Shown(walk, [s for s, _ in pairs], [t for _, t in pairs], from_start, outcome))
        return result

    def links(self, **view: Any) -> dict[tuple[int, str | None, str, bool], tuple[int, int, int]]:
        """(position, from, to, whether it was skipped) to (journeys, elapsed, timed)."""
        cells: defaultdict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
        for shown in self.shown(**view):
            before, at = None, shown.from_start
            for position, (step, time) in enumerate(zip(shown.steps, shown.times, strict=True)):
                cell = cells[position, before, step, step in shown.walk.skipped]
                cell[0] += 1
                if at is not None:
                    cell[1] += time - at
                    cell[2] += 1
                before, at = step, time
        return {key: tuple(cell) for key, cell in cells.items()}  # type: ignore[misc]

    def endings(self, **view: Any) -> Counter[tuple[int, int, str | None, str]]:
        """(steps done, steps skipped, step, outcome) to journeys."""
        return Counter(
            (
                sum(step not in s.walk.skipped for step in s.steps),
                sum(step in s.walk.skipped for step in s.steps),
                s.steps[-1] if s.steps else None,
                s.outcome,
            )
            for s in self.shown(**view)
        )

    def next_step(self, walk: Walk) -> str | None:
        if walk.shown is not None:
            return walk.shown
        left = [s for s in self.order if s not in walk.steps]
        return left[0] if left else None

    def steps(self) -> dict[str, dict[str, Any]]:
        """By step: completed, dropped here, in progress here, mean and median time."""
        found: dict[str, dict[str, Any]] = {}
        for step in self.order:
            times, completed, skipped = [], 0, 0
            waiting: Counter[str] = Counter()
            for walk in self.walks:
                if step in walk.skipped:
                    skipped += 1
                elif step in walk.steps:
                    completed += 1
                    i = walk.steps.index(step)
                    before = walk.times[i - 1] if i else walk.started_at
                    if before is not None:
                        times.append(walk.times[i] - before)
                elif self.next_step(walk) == step:
                    waiting[self.outcome(walk)] += 1
            found[step] = {
                "completed": completed,
                "skipped": skipped,
                "dropped_here": waiting["dropped"],
                "in_progress_here": waiting["in_progress"],
                "reached": completed + skipped + waiting["dropped"] + waiting["in_progress"],
                "mean_ms": sum(times) / len(times) if times else None,
                "median_ms": float(median(times)) if times else None,
                "timed": len(times),
            }
        return found

    def through(self) -> list[int]:
        """How many did each step and all before it."""
        return [
            sum(1 for w in self.walks if set(self.order[: i + 1]) <= set(w.steps))
            for i in range(len(self.order))
        ]
