"""The questions and their answers, the same for HTTP, the dashboard and the MCP tools."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, timedelta
from functools import partial

import asyncpg

from services.analytics_api.fair import Turn
from services.analytics_api.figures import flows as flow_figures
from services.analytics_api.figures import overviews, people, producers, steps
from services.analytics_api.figures.common import outcomes_of, share, titles_of, view_of
from services.analytics_api.freshness import Backlog, FreshnessWatch, Newest
from services.analytics_api.models import (
    Cohort,
    CompareQuestion,
    Comparison,
    EndingFigures,
    Endings,
    FlowQuestion,
    Freshness,
    Funnel,
    FunnelStage,
    Journey,
    JourneyDetail,
    Journeys,
    JourneysQuestion,
    Organization,
    Overview,
    RefusedEvents,
    RefusedQuestion,
    Sampling,
    Sankey,
    SankeyQuestion,
    Session,
    Steps,
    Summary,
    TrendPoint,
    Trends,
    TrendsQuestion,
)
from services.analytics_api.problems import not_found, unanswerable
from services.analytics_api.store import Context, Store
from services.journeys.flow import Flows, Outcome, View, first_positions

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
        backlog = await self._read_backlog(turn)
        organization = turn.asker.organization
        context = await self.store.walkthrough(walkthrough, turn, backlog)
        if context is None:
            raise not_found("walkthrough", walkthrough)
        foreign = set(servers) - {server.id for server in context.walkthrough.servers}
        if foreign and (foreign := await self.store.foreign_servers(sorted(foreign), organization)):
            raise not_found("server", min(foreign))
        return context

    async def _read_backlog(self, turn: Turn) -> Backlog:
        if self._freshness.is_watching:
            return await self.read_backlog()
        async with turn.away():  # it may take seconds
            return await self.read_backlog()

    async def read_backlog(self) -> Backlog:
        """What waits: to be taken before figures are read."""
        return await self._freshness.read_backlog()

    def fresh(self, context: Context) -> Freshness:
        """How fresh the figures of a walkthrough are."""
        organization = context.turn.asker.organization
        return self.fresh_of(organization, context.id, context.backlog, context.newest, context.version)

    def fresh_of(
        self, organization: str, walkthrough: str, backlog: Backlog, newest: Newest, version: str
    ) -> Freshness:
        """As `fresh`. What is in progress is dropped on some later day, so the day is in the version."""
        return backlog.freshness(newest, organization, walkthrough, f"{version}-{self.today:%Y%m%d}")

    # --- flows --------------------------------------------------------------------------------------

    async def flows(self, context: Context, question: FlowQuestion) -> Flows:
        """Links and endings: from the counts, or from the journeys where the view changes paths."""
        view = view_of(context, question)
        if view.changes_paths:
            variants = await self.store.variants(context, question, self.today)
            return await self.store.compute(context, view.flows, variants)
        return await self.store.counts(context, question, self.today)

    async def sankey(self, context: Context, question: SankeyQuestion) -> Sankey:
        flows = await self.flows(context, question)
        if question.positions is not None:
            flows = first_positions(flows, question.positions)
        work = partial(flow_figures.sankey, context, question, flows, self.fresh(context))
        return await self.store.work(context, work, len(flows.links))

    async def endings(self, context: Context, question: FlowQuestion) -> Endings:
        """How journeys end, and after which step."""
        flows = await self.flows(context, question)
        titles = titles_of(context)
        counts: Counter[tuple[Outcome, str | None]] = Counter()
        for ending in flows.endings:
            counts[ending.outcome, ending.step_id] += ending.journeys
        return Endings(
            walkthrough=context.walkthrough,
            journeys=flows.journeys,
            outcomes=outcomes_of(flows),
            endings=[
                EndingFigures(
                    outcome=outcome,
                    step_id=step,
                    title=titles(step),
                    journeys=journeys,
                    share=share(journeys, flows.journeys),
                )
                for (outcome, step), journeys in counts.most_common()
            ],
            freshness=self.fresh(context),
        )

    async def compare(self, context: Context, question: CompareQuestion) -> Comparison:
        """Two cohorts side by side."""
        a = await self.flows(context, question.side("a"))
        b = await self.flows(context, question.side("b"))
        work = partial(flow_figures.compare, context, a, b, self.fresh(context))
        return await self.store.work(context, work, _COMPARING * (len(a.links) + len(b.links)))

    # --- steps --------------------------------------------------------------------------------------

    async def funnel(self, context: Context, cohort: Cohort) -> Funnel:
        """How many get how far in display order."""
        variants = await self.store.variants(context, cohort, self.today)
        order = [step.id for step in context.steps]
        count = partial(steps.count_funnel, order)
        started, completed, through = await self.store.compute(context, count, variants)
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
                    share=share(through[i], started),
                    share_of_previous=share(through[i], before[i]),
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
        completed, waiting = await self.store.compute(context, partial(steps.count_by_step, order), variants)
        return Steps(
            walkthrough=context.walkthrough,
            started=sum(v.journeys for v in variants),
            steps=[
                steps.step_figures(
                    place, step.id, step.title, completed[step.id], waiting, times.get(step.id)
                )
                for place, step in enumerate(context.steps, start=1)
            ],
            times=Sampling(exact=every == 1, every=every, journeys=journeys),
            freshness=self.fresh(context),
        )

    # --- over time ----------------------------------------------------------------------------------

    async def trends(self, context: Context, question: TrendsQuestion) -> Trends:
        """Figures by day or week."""
        rows = {row["since"]: row for row in await self.store.trends(context, question, question.by)}
        active = await self.store.active_people(context, question, question.by)
        points = []
        for since in steps.days_between(rows.keys() | active.keys(), question, self.today):
            row = rows.get(since)
            started, finished = (row["started"], row["finished"] or 0) if row else (0, 0)
            points.append(
                TrendPoint(
                    since=since,
                    started=started,
                    finished=finished,
                    completion_rate=share(finished, started),
                    finished_then=row["finished_then"] if row else 0,
                    active_people=active.get(since, 0),
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
            completion_rate=share(finished, started),
            average_progress=share(done, started * steps),
            mean_to_finish_ms=finish["mean_ms"],
            median_to_finish_ms=median,
            p90_to_finish_ms=p90,
            steps_per_session=share(active["steps"], active["sessions"]),
            resume_rate=share(active["resumed"], active["journeys"]),
            return_rate=share(active["returned"], active["journeys"]),
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
        async with self.store.journeys(context, *people.narrowed(context, question)) as candidates:
            async for row in candidates:
                journey = people.journey_of(context, question, view, row, self.today)
                if journey is None:
                    continue
                if len(found) == question.limit:
                    last = people.cursor_of(rows[-1])
                    break
                found.append(journey)
                rows.append(row)
        return Journeys(
            walkthrough=context.walkthrough, journeys=found, next=last, freshness=self.fresh(context)
        )

    async def journey(self, context: Context, user: str) -> JourneyDetail:
        """Somebody's journey, with what happened in it."""
        row = await self.store.journey(context, user, people.servers_of(context))
        journey = row and people.journey_of(context, JourneysQuestion(), View(), row, self.today)
        if not journey:
            raise not_found(f"journey in `{context.id}` of a person", user)
        events = await self.store.journey_events(context, user)
        titles = {step.id: step.title for step in context.steps}
        shown = [
            {**dict(e), "walkthrough": context.walkthrough.title, "step": titles.get(e["step_id"])}
            for e in events
        ]
        return JourneyDetail(
            walkthrough=context.walkthrough,
            journey=journey,
            sessions=len({e["mcp_server_session_id"] for e in events}),
            events=list(people.events_of(shown)),
            freshness=self.fresh(context),
        )

    async def session(self, turn: Turn, identifier: str) -> Session:
        backlog = await self._read_backlog(turn)
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
            events=list(people.events_of([dict(e) for e in events])),
            freshness=backlog.freshness(Newest(), organization),
        )

    # --- overviews ----------------------------------------------------------------------------------

    async def overview(self, turn: Turn, cohort: Cohort, server: str | None = None) -> Overview:
        """All walkthroughs of an organization; with a server, those that it offers or that began there."""
        backlog = await self._read_backlog(turn)
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
        walkthroughs = overviews.overview_of(rows, known)
        if offered is not None:
            walkthroughs = [w for w in walkthroughs if w.started or w.walkthrough_id in offered]
        return Overview(
            organization=Organization(**dict(row)),
            servers=[s for s in servers if server is None or s.id == server],
            walkthroughs=walkthroughs,
            freshness=backlog.freshness(Newest(newest), organization),
        )

    # --- producers ----------------------------------------------------------------------------------

    async def refused(self, turn: Turn, question: RefusedQuestion) -> RefusedEvents:
        """What of the organization's events was refused, and who sent it."""
        backlog = await self._read_backlog(turn)
        since = question.since or self.today - timedelta(days=_REFUSED_DAYS - 1)
        rows = await self.store.refused(self._topic, turn.asker.organization, since, question.source)
        return RefusedEvents(
            since=since,
            refused=[producers.refused_class(row) for row in rows if row["rejection"] is not None],
            sources=producers.sources_of(rows),
            freshness=backlog.freshness(Newest(), turn.asker.organization),
        )
