"""The questions and their answers, the same for HTTP, the dashboard and the MCP tools."""

import base64
import binascii
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg

from schemas import advice_on
from services.analytics_api import comparison
from services.analytics_api.fair import Turn
from services.analytics_api.freshness import FreshnessWatch, Look, Newest
from services.analytics_api.models import (
    Cohort,
    ComparedDrop,
    ComparedLink,
    CompareQuestion,
    Comparison,
    CompletionDifference,
    EndingFigures,
    Endings,
    Event,
    EventSource,
    FlowQuestion,
    FoldedStep,
    Freshness,
    Funnel,
    FunnelStage,
    Journey,
    JourneyDetail,
    Journeys,
    JourneysQuestion,
    Organization,
    Outcomes,
    Overview,
    OverviewRow,
    OverviewWalkthrough,
    Paths,
    RefusedClass,
    RefusedEvents,
    RefusedExample,
    RefusedQuestion,
    Sampling,
    Sankey,
    SankeyEnding,
    SankeyLink,
    SankeyNode,
    SankeyQuestion,
    Session,
    StepFigures,
    Steps,
    Summary,
    TrendPoint,
    Trends,
    TrendsQuestion,
)
from services.analytics_api.problems import not_found, unanswerable
from services.analytics_api.store import Context, Store, day_ms, outcome_of
from services.journeys import utc_day
from services.journeys.flow import (
    START,
    Edge,
    Flows,
    Graph,
    NodeKey,
    Outcome,
    Variant,
    View,
    first_positions,
    graph,
)
from services.runtime.database import can_be_stored
from services.runtime.sources import habits

START_TITLE = "Start"
#: How many days or weeks an answer may have.
_MOST_POINTS = 3_700
#: Comparing a link takes so many times as long as drawing it.
_COMPARING = 10
#: How many events of a session are answered: more keep everybody waiting while they are written.
_MOST_EVENTS = 5_000
#: Without a first day, what was refused on so many days is answered, today's included.
_REFUSED_DAYS = 30


class Answers:
    """Answers questions about what belongs to an organization."""

    def __init__(
        self,
        store: Store,
        freshness: FreshnessWatch,
        topic: str,
        sample_people: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._freshness = freshness
        self._topic = topic
        self._sample_people = sample_people
        self._clock = clock

    @property
    def today(self) -> date:
        """The UTC day that it is."""
        return datetime.fromtimestamp(self._clock(), UTC).date()

    async def context(self, turn: Turn, walkthrough: str, servers: Collection[str] = ()) -> Context:
        """The walkthrough that is asked about.

        Raises:
            ProblemError: it, or one of the servers, does not belong to the organization.
        """
        look = await self._look(turn)
        organization = turn.asker.organization
        context = await self.store.walkthrough(walkthrough, turn, look)
        if context is None:
            raise not_found("walkthrough", walkthrough)
        foreign = set(servers) - {server.id for server in context.walkthrough.servers}
        if foreign and (foreign := await self.store.foreign_servers(sorted(foreign), organization)):
            raise not_found("server", min(foreign))
        return context

    async def _look(self, turn: Turn) -> Look:
        if self._freshness.is_looking:
            return await self.look()
        async with turn.away():  # it may take seconds
            return await self.look()

    async def look(self) -> Look:
        """What waits: to be taken before figures are read."""
        return await self._freshness.look()

    def fresh(self, context: Context) -> Freshness:
        """How fresh the figures of a walkthrough are."""
        organization = context.turn.asker.organization
        return self.fresh_of(organization, context.id, context.look, context.newest, context.version)

    def fresh_of(
        self, organization: str, walkthrough: str, look: Look, newest: Newest, version: str
    ) -> Freshness:
        """As `fresh`. What is in progress is dropped on some later day, so the day is in the version."""
        return look.freshness(newest, organization, walkthrough, f"{version}-{self.today:%Y%m%d}")

    # --- flows --------------------------------------------------------------------------------------

    async def flows(self, context: Context, question: FlowQuestion) -> Flows:
        """Links and endings: from the counts, or from the journeys where the view changes paths."""
        view = view_of(context, question)
        if view.changes_paths:
            variants = await self.store.variants(context, question, self.today)
            return await self.store.compute(context, view.flows, variants)
        return await self.store.counts(context, question, self.today)

    async def sankey(self, context: Context, question: SankeyQuestion) -> Sankey:
        """The flow graph."""
        flows = await self.flows(context, question)
        if question.positions is not None:
            flows = first_positions(flows, question.positions)
        work = partial(_sankey, context, question, flows, self.fresh(context))
        return await self.store.work(context, work, len(flows.links))

    async def endings(self, context: Context, question: FlowQuestion) -> Endings:
        """How journeys end, and after which step."""
        flows = await self.flows(context, question)
        titles = _titles(context)
        counts: Counter[tuple[Outcome, str | None]] = Counter()
        for ending in flows.endings:
            counts[ending.outcome, ending.step_id] += ending.journeys
        return Endings(
            walkthrough=context.walkthrough,
            journeys=flows.journeys,
            outcomes=_outcomes(flows),
            endings=[
                EndingFigures(
                    outcome=outcome,
                    step_id=step,
                    title=titles(step),
                    journeys=journeys,
                    share=_share(journeys, flows.journeys),
                )
                for (outcome, step), journeys in counts.most_common()
            ],
            freshness=self.fresh(context),
        )

    async def compare(self, context: Context, question: CompareQuestion) -> Comparison:
        """Two cohorts side by side."""
        a = await self.flows(context, question.side("a"))
        b = await self.flows(context, question.side("b"))
        work = partial(_comparison, context, a, b, self.fresh(context))
        return await self.store.work(context, work, _COMPARING * (len(a.links) + len(b.links)))

    # --- steps --------------------------------------------------------------------------------------

    async def funnel(self, context: Context, cohort: Cohort) -> Funnel:
        """How many get how far in display order."""
        variants = await self.store.variants(context, cohort, self.today)
        order = [step.id for step in context.steps]
        started, completed, through = await self.store.compute(context, partial(_funnel, order), variants)
        before = [started, *through]
        return Funnel(
            walkthrough=context.walkthrough,
            started=started,
            stages=[
                FunnelStage(
                    place=i + 1,
                    step_id=step.id,
                    title=step.title,
                    completed=completed[step.id],
                    through=through[i],
                    share=_share(through[i], started),
                    share_of_previous=_share(through[i], before[i]),
                )
                for i, step in enumerate(context.steps)
            ],
            freshness=self.fresh(context),
        )

    async def steps(self, context: Context, cohort: Cohort) -> Steps:
        """What became of each step."""
        variants = await self.store.variants(context, cohort, self.today)
        journeys, every = await self.store.every(context, cohort, self._sample_people)
        times = await self.store.step_times(context, cohort, every)
        order = [step.id for step in context.steps]
        completed, waiting = await self.store.compute(context, partial(_by_step, order), variants)
        return Steps(
            walkthrough=context.walkthrough,
            started=sum(v.journeys for v in variants),
            steps=[
                _step_figures(i + 1, step.id, step.title, completed[step.id], waiting, times.get(step.id))
                for i, step in enumerate(context.steps)
            ],
            times=Sampling(exact=every == 1, every=every, journeys=journeys),
            freshness=self.fresh(context),
        )

    # --- over time ----------------------------------------------------------------------------------

    async def trends(self, context: Context, question: TrendsQuestion) -> Trends:
        """Figures by day or week."""
        rows = {row["since"]: row for row in await self.store.trends(context, question, question.by)}
        people = await self.store.active_people(context, question, question.by)
        points = []
        for since in _days_between(rows.keys() | people.keys(), question, self.today):
            row = rows.get(since)
            started, finished = (row["started"], row["finished"] or 0) if row else (0, 0)
            points.append(
                TrendPoint(
                    since=since,
                    started=started,
                    finished=finished,
                    completion_rate=_share(finished, started),
                    finished_then=row["finished_then"] if row else 0,
                    active_people=people.get(since, 0),
                )
            )
        return Trends(
            walkthrough=context.walkthrough,
            by=question.by,
            points=points,
            freshness=self.fresh(context),
        )

    async def summary(self, context: Context, cohort: Cohort) -> Summary:
        """A walkthrough in a few figures."""
        flows = await self.store.counts(context, cohort, self.today)
        journeys, every = await self.store.every(context, cohort, self._sample_people)
        finish = await self.store.time_to_finish(context, cohort, every)
        active = await self.store.sessions_and_days(context, cohort, every)
        started, steps = flows.journeys, len(context.steps)
        finished = flows.ended(Outcome.FINISHED)
        done = sum(min(e.steps_done, steps) * e.journeys for e in flows.endings)
        median, p90 = finish["percentiles"] or (None, None)
        return Summary(
            walkthrough=context.walkthrough,
            started=started,
            finished=finished,
            in_progress=flows.ended(Outcome.IN_PROGRESS),
            dropped=flows.ended(Outcome.DROPPED),
            completion_rate=_share(finished, started),
            average_progress=_share(done, started * steps),
            mean_to_finish_ms=finish["mean_ms"],
            median_to_finish_ms=median,
            p90_to_finish_ms=p90,
            steps_per_session=_share(active["steps"], active["sessions"]),
            resume_rate=_share(active["resumed"], active["journeys"]),
            return_rate=_share(active["returned"], active["journeys"]),
            times=Sampling(exact=every == 1, every=every, journeys=journeys),
            freshness=self.fresh(context),
        )

    # --- people -------------------------------------------------------------------------------------

    async def journeys(self, context: Context, question: JourneysQuestion) -> Journeys:
        """The journeys behind a figure, a page of them."""
        view = view_of(context, question)
        rows: list[asyncpg.Record] = []
        found: list[Journey] = []
        last: str | None = None
        async with self.store.journeys(context, *_narrowed(context, question)) as candidates:
            async for row in candidates:
                journey = _journey(context, question, view, row, self.today)
                if journey is None:
                    continue
                if len(found) == question.limit:
                    last = _cursor_of(rows[-1])
                    break
                found.append(journey)
                rows.append(row)
        return Journeys(
            walkthrough=context.walkthrough, journeys=found, next=last, freshness=self.fresh(context)
        )

    async def journey(self, context: Context, user: str) -> JourneyDetail:
        """Somebody's journey, with what happened in it."""
        row = await self.store.journey(context, user, _servers_of(context))
        journey = row and _journey(context, JourneysQuestion(), View(), row, self.today)
        if not journey:
            raise not_found(f"journey in `{context.id}` of a person", user)
        events = await self.store.journey_events(context, user)
        titles = {step.id: step.title for step in context.steps}
        told = [
            {**dict(e), "walkthrough": context.walkthrough.title, "step": titles.get(e["step_id"])}
            for e in events
        ]
        return JourneyDetail(
            walkthrough=context.walkthrough,
            journey=journey,
            sessions=len({e["mcp_server_session_id"] for e in events}),
            events=list(_events(told)),
            freshness=self.fresh(context),
        )

    async def session(self, turn: Turn, identifier: str) -> Session:
        """A session, replayed."""
        look = await self._look(turn)
        organization = turn.asker.organization
        found = await self.store.session(identifier, organization, _MOST_EVENTS + 1)
        if found is None:
            raise not_found("session", identifier)
        row, events = found
        if len(events) > _MOST_EVENTS:
            raise unanswerable(
                f"the session has more than {_MOST_EVENTS:,} events; look at the journeys of its people",
                "path.session_id",
            )
        return Session(
            id=row["id"],
            title=row["title"],
            mcp_server_id=row["mcp_server_id"],
            server=row["server"],
            mcp_server_user_id=row["mcp_server_user_id"],
            connected_at=row["connection_timestamp"],
            duration_ms=events[-1]["at"] - events[0]["at"] if events else 0,
            events=list(_events([dict(e) for e in events])),
            freshness=look.freshness(Newest(), organization),
        )

    # --- overviews ----------------------------------------------------------------------------------

    async def overview(self, turn: Turn, cohort: Cohort, server: str | None = None) -> Overview:
        """All walkthroughs of an organization; with a server, those that it offers or that began there."""
        look = await self._look(turn)
        organization = turn.asker.organization
        row = await self.store.organization(organization)
        servers = await self.store.servers(organization)
        known = {s.id: s.name for s in servers}
        asked = set(cohort.server) | ({server} if server is not None else set())
        if foreign := asked - known.keys():
            raise not_found("server", min(foreign))
        offered = None if server is None else await self.store.offered_by(server)
        if server is not None:
            cohort = cohort.model_copy(update={"server": [server]})
        rows = await self.store.overview(organization, cohort, self.today)
        newest = max((r["newest_at"] for r in rows if r["newest_at"] is not None), default=None)
        walkthroughs = _overview(rows, known)
        if offered is not None:
            walkthroughs = [w for w in walkthroughs if w.started or w.walkthrough_id in offered]
        return Overview(
            organization=Organization(**dict(row)),
            servers=[s for s in servers if server is None or s.id == server],
            walkthroughs=walkthroughs,
            freshness=look.freshness(Newest(newest), organization),
        )

    # --- producers ----------------------------------------------------------------------------------

    async def refused(self, turn: Turn, question: RefusedQuestion) -> RefusedEvents:
        """What of the organization's events was refused, and who sent it."""
        look = await self._look(turn)
        since = question.since or self.today - timedelta(days=_REFUSED_DAYS - 1)
        rows = await self.store.refused(self._topic, turn.asker.organization, since, question.source)
        return RefusedEvents(
            since=since,
            refused=[_refused_class(row) for row in rows if row["rejection"] is not None],
            sources=_sources(rows),
            freshness=look.freshness(Newest(), turn.asker.organization),
        )


def view_of(context: Context, paths: Paths) -> View:
    """The view that is asked for.

    Raises:
        ProblemError: it names a step that the walkthrough does not have.
    """
    known = {step.id for step in context.steps}
    for where, step in (
        ("start_at", paths.start_at),
        ("end_at", paths.end_at),
        *(("exclude", step) for step in paths.exclude),
    ):
        if step is not None and step not in known:
            raise unanswerable(f"the walkthrough has no step `{step}`", where)
    return View(paths.start_at, paths.end_at, frozenset(paths.exclude), paths.steps_through)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _titles(context: Context) -> Callable[[str | None], str]:
    """Titles of steps; a step that was deleted a moment ago goes by its id."""
    titles = {step.id: step.title for step in context.steps}
    return lambda step: START_TITLE if step is None else titles.get(step, step)


def _outcomes(flows: Flows) -> Outcomes:
    return Outcomes(**{outcome.value: flows.ended(outcome) for outcome in Outcome})


# --- the Sankey ----------------------------------------------------------------------------------------


def node_id(key: NodeKey) -> str:
    """A node's name within an answer."""
    if key.position == START:
        return "start"
    return f"{key.position}:other" if key.step_id is None else f"{key.position}:step:{key.step_id}"


def _sankey(context: Context, question: SankeyQuestion, flows: Flows, freshness: Freshness) -> Sankey:
    drawn = graph(flows, question.nodes, frozenset(question.unfold))
    total = flows.journeys
    return Sankey(
        walkthrough=context.walkthrough,
        journeys=total,
        outcomes=_outcomes(flows),
        nodes=list(_nodes(context, drawn, total)),
        links=[_link(drawn, edge, total) for edge in drawn.edges],
        endings=[
            SankeyEnding(
                steps_done=stop.node.position + 1,
                step_id=stop.node.step_id,
                outcome=stop.outcome,
                journeys=stop.journeys,
                node=node_id(stop.node),
                share=_share(stop.journeys, total),
                share_of_node=_share(stop.journeys, drawn.nodes[stop.node].journeys),
            )
            for stop in drawn.stops
        ],
        read_from="journeys" if view_of(context, question).changes_paths else "counts",
        freshness=freshness,
    )


def _nodes(context: Context, drawn: Graph, total: int) -> Iterator[SankeyNode]:
    titles = _titles(context)
    ended: dict[NodeKey, dict[str, int]] = {}
    for stop in drawn.stops:
        ended.setdefault(stop.node, {})[stop.outcome.value] = stop.journeys
    for key, node in drawn.nodes.items():
        folded = [FoldedStep(step_id=s, title=titles(s), journeys=n) for s, n in node.folded]
        yield SankeyNode(
            id=node_id(key),
            kind="start" if key.position == START else "step" if key.step_id is not None else "other",
            position=key.position,
            step_id=key.step_id,
            title=f"{len(folded)} other steps" if folded else titles(key.step_id),
            journeys=node.journeys,
            share=_share(node.journeys, total),
            ended=Outcomes(**ended.get(key, {})),
            folded=folded,
        )


def _link(drawn: Graph, edge: Edge, total: int) -> SankeyLink:
    return SankeyLink(
        position=edge.target.position,
        from_step_id=edge.source.step_id,
        to_step_id=edge.target.step_id,
        source=node_id(edge.source),
        target=node_id(edge.target),
        journeys=edge.journeys,
        share=_share(edge.journeys, total),
        share_of_node=_share(edge.journeys, drawn.nodes[edge.source].journeys),
        mean_ms=_share(edge.elapsed_ms, edge.timed_journeys),
        timed_journeys=edge.timed_journeys,
    )


def _comparison(context: Context, a: Flows, b: Flows, freshness: Freshness) -> Comparison:
    titles = _titles(context)
    links, drops = comparison.link_shares(a, b), comparison.drop_shares(a, b)
    whole = comparison.Shares(a.journeys, a.ended(Outcome.FINISHED), b.journeys, b.ended(Outcome.FINISHED))
    (completion,) = comparison.compare([whole])
    # Links and drops are one family: what leaves a node goes on or drops.
    compared = comparison.compare([*links.values(), *drops.values()])
    means = [{link[:3]: link.mean_ms for link in side.links} for side in (a, b)]
    return Comparison(
        walkthrough=context.walkthrough,
        journeys_a=a.journeys,
        journeys_b=b.journeys,
        outcomes_a=_outcomes(a),
        outcomes_b=_outcomes(b),
        completion=CompletionDifference(**completion.figures()),
        links=[
            ComparedLink(
                position=key[0],
                from_step_id=key[1],
                from_title=titles(key[1]),
                to_step_id=key[2],
                to_title=titles(key[2]),
                mean_ms_a=means[0].get(key),
                mean_ms_b=means[1].get(key),
                **result.figures(),
            )
            for key, result in zip(links, compared, strict=False)
        ],
        drops=[
            ComparedDrop(position=key[0], step_id=key[1], title=titles(key[1]), **result.figures())
            for key, result in zip(drops, compared[len(links) :], strict=True)
        ],
        freshness=freshness,
    )


# --- steps ---------------------------------------------------------------------------------------------


def next_step(order: Sequence[str], done: Iterable[str]) -> str | None:
    """The first step in display order that is not done: what would be shown next."""
    done = set(done)
    return next((step for step in order if step not in done), None)


def _funnel(order: Sequence[str], variants: Iterable[Variant]) -> tuple[int, Counter[str], list[int]]:
    """How many began, how many did each step, and how many did it and all before it."""
    started = 0
    completed: Counter[str] = Counter()
    through = [0] * len(order)
    for variant in variants:
        started += variant.journeys
        done = set(variant.step_ids)
        for step in done:
            completed[step] += variant.journeys
        for place, step in enumerate(order):
            if step not in done:
                break
            through[place] += variant.journeys
    return started, completed, through


def _by_step(
    order: Sequence[str], variants: Iterable[Variant]
) -> tuple[Counter[str], Counter[tuple[str | None, Outcome]]]:
    """How many did each step, and how many unfinished journeys would be shown it next."""
    completed: Counter[str] = Counter()
    waiting: Counter[tuple[str | None, Outcome]] = Counter()
    for variant in variants:
        for step in variant.step_ids:
            completed[step] += variant.journeys
        if variant.outcome is not Outcome.FINISHED:
            waiting[next_step(order, variant.step_ids), variant.outcome] += variant.journeys
    return completed, waiting


def _step_figures(
    place: int,
    step: str,
    title: str,
    completed: int,
    waiting: Counter[tuple[str | None, Outcome]],
    times: asyncpg.Record | None,
) -> StepFigures:
    dropped, in_progress = waiting[step, Outcome.DROPPED], waiting[step, Outcome.IN_PROGRESS]
    reached = completed + dropped + in_progress
    return StepFigures(
        place=place,
        step_id=step,
        title=title,
        reached=reached,
        completed=completed,
        dropped_here=dropped,
        in_progress_here=in_progress,
        completion_rate=_share(completed, reached),
        mean_ms=times["mean_ms"] if times else None,
        median_ms=times["percentiles"][0] if times else None,
        p90_ms=times["percentiles"][1] if times else None,
        timed=times["timed"] if times else 0,
    )


def _days_between(known: Collection[date], question: TrendsQuestion, today: date) -> list[date]:
    """Every day, or Monday, of what is asked for and of what there is."""
    if not known and question.since is None:
        return []
    first = question.since or min(known)
    last = question.until or max([*known, min(today, first + timedelta(days=366))])
    step = timedelta(days=7 if question.by == "week" else 1)
    if question.by == "week":
        first -= timedelta(days=first.weekday())
    if (last - first) // step > _MOST_POINTS:
        raise unanswerable(
            f"from {first} to {last} there are more than {_MOST_POINTS:,} {question.by}s", "query.from"
        )
    return [first + step * i for i in range((last - first) // step + 1)]


# --- people --------------------------------------------------------------------------------------------


def _narrowed(context: Context, question: JourneysQuestion) -> list[Any]:
    """What the database can tell of the journeys behind a figure: each holds for all of them."""
    all_of = [step for step in (question.start_at, question.end_at) if step is not None]
    if len(question.from_step) == 1:
        all_of += question.from_step
    at, user = _read_cursor(question.after)
    return [
        context.id,
        question.server or _servers_of(context),
        day_ms(question.since),
        day_ms(question.until, 1),
        day_ms(question.active_from),
        day_ms(question.active_to, 1),
        all_of,
        question.step,
        at,
        user,
    ]


def _servers_of(context: Context) -> list[str]:
    """The organization's servers: journeys that began on another's, before either moved, are not shown."""
    return [server.id for server in context.walkthrough.servers]


def _journey(
    context: Context, question: JourneysQuestion, view: View, row: asyncpg.Record, today: date
) -> Journey | None:
    """The journey, if it is behind the figure."""
    steps = row["step_ids"]
    path = view.path(steps)
    if path is None:
        return None
    order = [step.id for step in context.steps]
    last_at = row["last_active_at"]
    recent = utc_day(last_at) > today - timedelta(days=question.active_days)
    outcome = path.cut or outcome_of(len(steps), recent, len(order))
    shown = [steps[i] for i in path.shown]
    following = (
        None if outcome_of(len(steps), recent, len(order)) is Outcome.FINISHED else next_step(order, steps)
    )
    if not _is_behind(question, shown, outcome, following):
        return None
    began_at = row["started_at"] if row["started_at"] is not None else row["completed_at"][0]
    return Journey(
        mcp_server_user_id=row["mcp_server_user_id"],
        mcp_server_id=row["mcp_server_id"],
        began_at=began_at,
        last_active_at=last_at,
        steps_done=len(shown),
        outcome=outcome,
        step_ids=shown,
        next_step_id=following,
        duration_ms=last_at - began_at,
    )


def _is_behind(
    question: JourneysQuestion, shown: Sequence[str], outcome: Outcome, following: str | None
) -> bool:
    position = question.position
    if position is not None:
        if position >= len(shown) or (question.step and shown[position] not in question.step):
            return False
        if question.from_step and shown[position - 1] not in question.from_step:
            return False
    if question.ended_after is not None:
        if len(shown) != question.ended_after:
            return False
        if question.step and (not shown or shown[-1] not in question.step):
            return False
    if question.outcome and outcome not in question.outcome:
        return False
    return question.next_step is None or following == question.next_step


def _cursor_of(row: asyncpg.Record) -> str:
    text = json.dumps([row["last_active_at"], row["mcp_server_user_id"]], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(text: str | None) -> tuple[int | None, str]:
    if text is None:
        return None, ""
    try:
        at, user = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
        if type(at) is int and 0 <= at < 2**63 and isinstance(user, str) and can_be_stored(user):
            return at, user
    except (ValueError, TypeError, binascii.Error):
        pass
    raise unanswerable("after: take it from `next` of the page before, as it is", "query.after")


def _events(rows: Sequence[dict[str, Any]]) -> Iterator[Event]:
    before: int | None = None
    for row in rows:
        yield Event(
            at=row["at"],
            since_previous_ms=None if before is None else row["at"] - before,
            kind="started" if row["step_id"] is None else "completed",
            walkthrough_id=row["walkthrough_id"],
            walkthrough=row["walkthrough"],
            step_id=row["step_id"],
            step=row["step"],
            mcp_server_user_id=row["mcp_server_user_id"],
            mcp_server_id=row["mcp_server_id"],
            mcp_server_session_id=row["mcp_server_session_id"],
        )
        before = row["at"]


# --- overviews -----------------------------------------------------------------------------------------


def _overview(rows: Sequence[asyncpg.Record], servers: dict[str, str]) -> list[OverviewWalkthrough]:
    by_walkthrough: dict[str, list[asyncpg.Record]] = {}
    for row in rows:
        by_walkthrough.setdefault(row["id"], []).append(row)
    return [
        OverviewWalkthrough(
            **_overview_row(of, None, None),
            servers=[
                OverviewRow(**_overview_row([row], row["mcp_server_id"], servers.get(row["mcp_server_id"])))
                for row in of
                if row["mcp_server_id"] in servers
            ],
        )
        for of in by_walkthrough.values()
    ]


def _overview_row(rows: Sequence[asyncpg.Record], server: str | None, name: str | None) -> dict[str, Any]:
    sums = {
        key: sum(row[key] for row in rows) for key in ("started", "finished", "in_progress", "steps_done")
    }
    one, started, finished = rows[0], sums["started"], sums["finished"]
    return {
        "walkthrough_id": one["id"],
        "title": one["title"],
        "type": one["type"],
        "status": one["status"],
        "steps": one["steps"],
        "mcp_server_id": server,
        "server": name,
        "started": started,
        "finished": finished,
        "in_progress": sums["in_progress"],
        "dropped": started - finished - sums["in_progress"],
        "completion_rate": _share(finished, started),
        "average_progress": _share(sums["steps_done"], started * one["steps"]),
        "last_active_on": max((r["last_active_on"] for r in rows if r["last_active_on"]), default=None),
    }


# --- producers -----------------------------------------------------------------------------------------


def _refused_class(row: asyncpg.Record) -> RefusedClass:
    return RefusedClass(
        source=row["source"],
        rejection=row["rejection"],
        events=row["events"],
        first_at=row["first_at"],
        last_at=row["last_at"],
        advice=advice_on(row["rejection"]),
        example=RefusedExample(
            partition=row["partition"],
            offset=row["last_offset"],
            message=row["message"],
            fields=json.loads(row["fields"]),
        ),
    )


def _sources(rows: Sequence[asyncpg.Record]) -> list[EventSource]:
    """Each source once, in the order of its first row."""
    by_source: dict[str, list[asyncpg.Record]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    return [_source(source, of) for source, of in by_source.items()]


def _source(source: str, rows: Sequence[asyncpg.Record]) -> EventSource:
    one = rows[0]
    is_alone = one["sent"] is not None
    refused = one["sent_refused"] if is_alone else sum(row["events"] for row in rows)
    return EventSource(
        source=source,
        events=one["sent"],
        refused=refused,
        share=_share(refused, one["sent"]) if is_alone else None,
        looked_at=one["looked_at"],
        elsewhere=one["elsewhere"],
        without_key=one["without_key"],
        hints=habits(one["looked_at"], one["elsewhere"], one["without_key"]) if is_alone else [],
    )
