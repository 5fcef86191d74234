"""The questions and their answers, the same for HTTP, the dashboard and the MCP tools."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeVar

import asyncpg
from pydantic import BaseModel

from services.analytics_api.fair import Turn
from services.analytics_api.figures import (
    breakdowns,
    comparisons,
    diagnoses,
    overviews,
    people,
    producers,
    steps,
)
from services.analytics_api.figures import flows as flow_figures
from services.analytics_api.figures import paths as path_figures
from services.analytics_api.figures import segments as segment_figures
from services.analytics_api.figures import within as within_figures
from services.analytics_api.figures.common import outcomes_of, share, titles_of, view_of
from services.analytics_api.figures.segments import of_segment
from services.analytics_api.figures.versions import (
    newest_versions,
    of_versions,
    order_asked,
    versions_of,
)
from services.analytics_api.freshness import Backlog, FreshnessWatch, Newest
from services.analytics_api.models import (
    Breakdown,
    BreakdownPart,
    BreakdownQuestion,
    Cohort,
    CompareQuestion,
    Comparison,
    DiagnoseQuestion,
    Diagnosis,
    EndingFigures,
    Endings,
    FinishRule,
    FinishRuleQuestion,
    FlowQuestion,
    FrequentPaths,
    Freshness,
    Funnel,
    FunnelStage,
    Journey,
    JourneyDetail,
    Journeys,
    JourneysQuestion,
    Organization,
    Overview,
    Paths,
    PathsQuestion,
    Period,
    RefusedEvents,
    RefusedQuestion,
    Sampling,
    Sankey,
    SankeyQuestion,
    Segments,
    SegmentsQuestion,
    Session,
    Steps,
    Summary,
    SummaryQuestion,
    TimeToFinish,
    TrendPoint,
    Trends,
    TrendsQuestion,
    VersionedCohort,
    WalkthroughVersions,
)
from services.analytics_api.problems import ProblemError, not_found, unanswerable
from services.analytics_api.store import Context, Store, day_ms
from services.analytics_api.writing import READS_ALONE
from services.journeys.diagnosis import Progress, progress_of
from services.journeys.flow import Flows, Outcome, View, first_positions
from services.journeys.paths import count_paths
from services.journeys.survival import Curve
from services.journeys.times import BOUNDS_MS, Timed, link_durations, path_durations, step_durations
from services.journeys.within import side_of
from services.runtime.errors import UsageError
from services.runtime.finish_rules import FinishRuleOf, GivenRule, read_finish_rule, set_finish_rule
from services.runtime.version import VERSION

T = TypeVar("T")

#: Comparing a link takes so many times as long as drawing it.
_COMPARING = 10
#: The figures that judge journeys after some days.
_JUDGED = frozenset({"summary", "trends"})
#: How many events of a session are answered: more keep everybody waiting while they are written.
_MOST_EVENTS = 5_000
#: Without a first day, what was refused on so many days is answered, today's included.
_REFUSED_DAYS = 30


#: A standby, or a role without the right to write.
_LOCKED = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)


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

    @property
    def judged_at(self) -> int:
        """When it began, in milliseconds: who began so many days before that has had the time."""
        return day_ms(self.today) or 0

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

    @staticmethod
    def asked(context: Context, question: BaseModel) -> Context:
        """The walkthrough, with the journeys alone of the versions and the segment that a question names.

        Raises:
            ProblemError: it has no version of a number, or no such step.
        """
        if not isinstance(question, VersionedCohort):
            return context
        return of_segment(of_versions(context, question.version), question.segment)

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

    async def flows(self, context: Context, question: FlowQuestion, *, with_active: bool = False) -> Flows:
        """Links and endings: from the counts, or from the journeys where the view changes paths.

        Those from journeys have the time since steps were shown where it is asked for.
        """
        return await self._flows(context, question, view_of(context, question), with_active=with_active)

    async def _flows(
        self, context: Context, cohort: Cohort, view: View, *, with_active: bool = False
    ) -> Flows:
        if view.changes_paths or not context.only.is_all:
            variants = await self.store.variants(context, cohort, self.today, with_active=with_active)
            return await self.store.compute(context, view.flows, variants)
        return await self.store.counts(context, cohort, self.today)

    async def sankey(self, context: Context, question: SankeyQuestion) -> Sankey:
        flows = await self.flows(context, question, with_active=True)
        if question.positions is not None:
            flows = first_positions(flows, question.positions)
        timing = await self._timing(context, question)
        work = partial(flow_figures.sankey, context, question, flows, self.fresh(context), timing)
        return await self.store.work(context, work, len(flows.links))

    async def _timing(self, context: Context, question: SankeyQuestion) -> flow_figures.Timing | None:
        """How long links took, where that is asked for."""
        if not question.times:
            return None
        return flow_figures.Timing(
            *await self._timed(
                context, question, question, partial(link_durations, view_of(context, question))
            )
        )

    async def _timed(
        self, context: Context, cohort: Cohort, paths: Paths, work: Callable[[list[Timed]], T]
    ) -> tuple[T, Sampling]:
        """What `work` makes of the times of a cohort's journeys, or of every n-th of them, in such a view."""
        journeys, every = await self.store.every(context, cohort, self._sample_people)
        made = await self.store.timed(context, cohort, paths, self.today, every, work)
        return made, Sampling(exact=every == 1, every=every, journeys=journeys)

    async def paths(self, context: Context, question: PathsQuestion) -> FrequentPaths:
        """The most frequent paths from beginning to end."""
        view = view_of(context, question)
        variants = await self.store.variants(context, question, self.today)
        durations, sampling = await self._timed(context, question, question, partial(path_durations, view))
        counts = await self.store.compute(context, partial(count_paths, view), variants)
        return path_figures.frequent_paths(
            context, counts, question.limit, durations, sampling, self.fresh(context)
        )

    async def sankey_that_fits(
        self, context: Context, questions: Sequence[SankeyQuestion], fits: Callable[[Sankey], bool]
    ) -> tuple[SankeyQuestion, Sankey]:
        """The first of questions that differ in how much they draw whose answer fits; or the last."""
        flows = await self.flows(context, questions[0], with_active=True)
        timing = await self._timing(context, questions[0])
        fresh = self.fresh(context)

        def first() -> tuple[SankeyQuestion, Sankey]:
            for question in questions:
                shown = flows if question.positions is None else first_positions(flows, question.positions)
                answer = flow_figures.sankey(context, question, shown, fresh, timing)
                if fits(answer):
                    break
            return question, answer

        return await self.store.work(context, first, len(questions) * len(flows.links))

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
        """Two cohorts side by side, each journey as it stood so many days after its beginning."""
        view, order = view_of(context, question), [step.id for step in context.steps]
        cohorts = [_side(context, question, "a"), _side(context, question, "b")]
        within = await self._within(question.within_days, cohorts, question.active_days)
        sides = []
        for began, cohort in cohorts:
            read = await self.store.variants_within(began, cohort, within.days, self.judged_at)
            work = partial(side_of, view, order, context.versions.orders)
            side = await self.store.compute(context, work, read.variants)
            sides.append(comparisons.Cohort(read, side))
        a, b = sides
        of = comparisons.Cohorts(within, a, b, await self.store.steps_since(context))
        tell = partial(comparisons.comparison, context, question, of, self.fresh(context))
        return await self.store.work(context, tell, _COMPARING * (len(a.flows.links) + len(b.flows.links)))

    async def segments(self, context: Context, question: SegmentsQuestion) -> Segments:
        """What tells apart those who finish, or who come to a step and do not get past it."""
        began = await self.store.days_to_finish(context, question, self.judged_at)
        within = within_figures.within_of(question.within_days, [began], question.active_days, self.judged_at)
        keys = segment_figures.Keys(*segment_figures.key_asked(question))
        if question.by is None:
            keys = await self._metadata_keys(context, question)
        by = segment_figures.divided(context, question, keys)
        found = await self.store.by_segment(context, question, within.days, self.judged_at, by)
        rows = [dict(row) for row in found]
        tell = partial(
            segment_figures.segments, context, question, within, began, keys, rows, self.fresh(context)
        )
        return await self.store.work(context, tell, _COMPARING * len(rows))

    async def _metadata_keys(self, context: Context, cohort: Cohort) -> segment_figures.Keys:
        """The keys of metadata by which journeys are told apart."""
        _, every = await self.store.every(context, cohort, self._sample_people)
        found = await self.store.metadata_keys(context, cohort, every)
        return segment_figures.keys_of([tuple(row) for row in found])

    async def breakdown(self, context: Context, question: BreakdownQuestion) -> Breakdown:
        """A figure of each part of the journeys, all judged after the same time."""
        parts = await self._parts(context, question)
        keys = await self._metadata_keys(context, question) if question.by is None else segment_figures.Keys()
        days = None
        if question.of in _JUDGED and parts.parts:
            within = await self._within(question.within_days, [(context, question)], question.active_days)
            days = within.days
        answered = [
            BreakdownPart(
                value=part.value,
                title=part.title,
                journeys=part.journeys,
                server=list(part.server),
                version=list(part.version),
                segment=list(part.segment),
                answer=await self._figure(context, question, part, days),
            )
            for part in parts.parts
        ]
        return Breakdown(
            walkthrough=context.walkthrough,
            of=question.of,
            by=question.by,
            keys=list(keys.taken),
            within_days=days,
            parts=answered,
            others=parts.others,
            unknown=parts.unknown,
            freshness=self.fresh(context),
        )

    async def _parts(self, context: Context, question: BreakdownQuestion) -> breakdowns.Parts:
        if question.by is None:
            return breakdowns.Parts(())
        if question.by == "version":
            began = await self.store.began_with_version(context, question)
            return breakdowns.parts_by_version(question, began)
        if (subject := breakdowns.subject_of(question)) is not None:
            asked = subject.what, subject.key, question.most, subject.longest
            rows = await self.store.values_of(context, question, *asked)
            return breakdowns.parts_of(context, question, subject, [dict(row) for row in rows])
        found = []
        for part in breakdowns.by_step(context, question, question.by):
            asked_for = question.model_copy(update=part.asked(question))
            journeys, _ = await self.store.every(self.asked(context, asked_for), asked_for, 1)
            found.append(replace(part, journeys=journeys))
        return breakdowns.Parts(found)

    async def _figure(
        self, context: Context, question: BreakdownQuestion, part: breakdowns.Part, days: int | None
    ) -> Summary | Funnel | Steps | Trends | Sankey:
        """The figure of one part."""
        asked = question.model_copy(update={**part.asked(question), "within_days": days})
        narrowed = self.asked(context, asked)
        match question.of:
            case "funnel":
                return await self.funnel(narrowed, asked)
            case "steps":
                return await self.steps(narrowed, asked)
            case "sankey":
                return await self.sankey(narrowed, asked)
        # The others may have more conditions than can be asked for.
        cohort = {name: getattr(asked, name) for name in SummaryQuestion.model_fields}
        if question.of == "summary":
            return await self.summary(narrowed, SummaryQuestion.model_construct(**cohort))
        return await self.trends(narrowed, TrendsQuestion.model_construct(**cohort, by=question.period))

    async def _within(
        self, days: int | None, cohorts: Sequence[tuple[Context, Cohort]], otherwise: int
    ) -> within_figures.Within:
        """After how many days journeys are judged: as many as are asked for, or proposed."""
        sides = []
        if days is None:
            sides = [await self.store.days_to_finish(*cohort, self.judged_at) for cohort in cohorts]
        return within_figures.within_of(days, sides, otherwise, self.judged_at)

    # --- steps --------------------------------------------------------------------------------------

    async def funnel(self, context: Context, cohort: VersionedCohort) -> Funnel:
        """How many get how far in display order: today's, or that of the newest version asked about."""
        variants = await self.store.variants(context, cohort, self.today)
        version, there, removed = order_asked(context, cohort.version)
        count = partial(steps.count_funnel, [step.id for step in there])
        counted = await self.store.compute(context, count, variants)
        started, through = counted.started, counted.through
        before = [started, *through]
        return Funnel(
            walkthrough=context.walkthrough,
            started=started,
            order_of=version.number,
            order_since=None if len(cohort.version) == 1 else context.versions.order_since(version),
            removed=removed,
            stages=[
                FunnelStage(
                    place=i + 1,
                    step_id=step.id,
                    title=step.title,
                    completed=counted.completed[step.id],
                    skipped=counted.skipped[step.id],
                    through=through[i],
                    share=share(through[i], started),
                    share_of_previous=share(through[i], before[i]),
                )
                for i, step in enumerate(there)
            ],
            freshness=self.fresh(context),
        )

    async def versions(self, context: Context, cohort: Cohort) -> WalkthroughVersions:
        """What edits made of the walkthrough, and how many journeys of the cohort began with each version."""
        journeys = await self.store.began_with_version(context, cohort)
        return versions_of(context, journeys, self.fresh(context))

    async def steps(self, context: Context, cohort: Cohort) -> Steps:
        """What became of each step."""
        variants = await self.store.variants(context, cohort, self.today)
        times, sampling = await self._timed(context, cohort, Paths(), step_durations)
        count = partial(steps.count_by_step, context.versions)
        counted = await self.store.compute(context, count, variants)
        figures = [
            steps.step_figures(place, step.id, step.title, counted, times.get(step.id))
            for place, step in enumerate(context.steps, start=1)
        ]
        return Steps(
            walkthrough=context.walkthrough,
            started=sum(v.journeys for v in variants),
            steps=figures,
            most_stop=await asyncio.to_thread(steps.most_stop, figures),
            assumed=counted.assumed,
            times=sampling,
            bounds_ms=list(BOUNDS_MS),
            freshness=self.fresh(context),
        )

    async def diagnose(self, context: Context, question: DiagnoseQuestion) -> Diagnosis:
        """Where people stop, what is slowest and what changed, of those alone who had the time to go on."""
        settled = self.today - timedelta(days=question.active_days + 1)
        until = min(settled, question.until or settled)
        if question.since is not None and question.since > until:
            raise unanswerable(
                f"nobody who began after {settled} can have stopped yet, by {question.active_days} days "
                "without activity: ask for earlier days, or fewer active_days",
                "query.from",
            )
        judged = question.model_copy(update={"until": until})
        asked, _ = await self.store.every(context, question, self._sample_people)
        earlier, recent = diagnoses.periods(until, question.days)
        figures = diagnoses.Figures(
            period=Period(since=question.since, until=until),
            steps=await self.steps(context, judged),
            flows=await self._flows(context, judged, View()),
            asked=asked,
            earlier=earlier,
            recent=recent,
            before=await self._progress(context, question, earlier),
            after=await self._progress(context, question, recent),
            steps_since={step: since.at for step, since in (await self.store.steps_since(context)).items()},
        )
        judge = partial(diagnoses.diagnosis, context, question, figures, self.fresh(context))
        return await self.store.work(context, judge, len(context.steps))

    async def _progress(self, context: Context, question: DiagnoseQuestion, period: Period) -> Progress:
        """How far journeys of a period had come after `active_days` each."""
        cohort = question.model_copy(update={"since": period.since, "until": period.until})
        within = await self.store.variants_within(context, cohort, question.active_days, self.judged_at)
        order = [step.id for step in context.steps]
        work = partial(progress_of, order, context.versions.orders)
        return await self.store.compute(context, work, within.variants)

    # --- over time ----------------------------------------------------------------------------------

    async def trends(self, context: Context, question: TrendsQuestion) -> Trends:
        """Figures by day or week."""
        rows = {row["since"]: row for row in await self.store.trends(context, question, question.by)}
        active = await self.store.active_people(context, question, question.by)
        began = await self.store.days_to_finish(context, question, self.judged_at)
        within = within_figures.within_of(question.within_days, [began], question.active_days, self.judged_at)
        had_time = within_figures.by_period(began, question.by)
        days = 7 if question.by == "week" else 1
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
                    **within_figures.period_figures(had_time.get(since, ()), since, days, within),
                    finished_then=row["finished_then"] if row else 0,
                    active_people=active.get(since, 0),
                )
            )
        return Trends(
            walkthrough=context.walkthrough,
            **within.figures(),
            by=question.by,
            points=points,
            freshness=self.fresh(context),
        )

    async def summary(self, context: Context, cohort: SummaryQuestion) -> Summary:
        """A walkthrough in a few figures."""
        flows = await self._flows(context, cohort, View())
        journeys, every = await self.store.every(context, cohort, self._sample_people)
        finish = await self.store.time_to_finish(context, cohort, every)
        active = await self.store.sessions_and_days(context, cohort, every)
        began = await self.store.days_to_finish(context, cohort, self.judged_at)
        within = within_figures.within_of(cohort.within_days, [began], cohort.active_days, self.judged_at)
        curve, as_of = await self._finish_curve(context, cohort, every)
        started, steps = flows.journeys, len(context.steps)
        finished = flows.ended(Outcome.FINISHED)
        done = sum(min(e.steps_passed - e.steps_skipped, steps) * e.journeys for e in flows.endings)
        median, p90 = finish["percentiles"] or (None, None)
        return Summary(
            walkthrough=context.walkthrough,
            started=started,
            finished=finished,
            in_progress=flows.ended(Outcome.IN_PROGRESS),
            dropped=flows.ended(Outcome.DROPPED),
            completion_rate=share(finished, started),
            **within.figures(),
            **within_figures.rate_figures(began, within.days),
            time_to_finish=within_figures.finish_times(curve, as_of),
            average_progress=share(done, started * steps),
            mean_to_finish_ms=finish["mean_ms"],
            median_to_finish_ms=median,
            p90_to_finish_ms=p90,
            steps_per_session=share(active["steps"], active["sessions"]),
            resume_rate=share(active["resumed"], active["journeys"]),
            return_rate=share(active["returned"], active["journeys"]),
            times=Sampling(exact=every == 1, every=every, journeys=journeys),
            version_count=context.versions.newest.number,
            newest_versions=newest_versions(context),
            freshness=self.fresh(context),
        )

    async def time_to_finish(self, context: Context, cohort: Cohort) -> TimeToFinish:
        """The share of journeys that have finished, by the time since their beginning."""
        journeys, every = await self.store.every(context, cohort, self._sample_people)
        curve, as_of = await self._finish_curve(context, cohort, every)
        return TimeToFinish(
            walkthrough=context.walkthrough,
            **within_figures.finish_times(curve, as_of).model_dump(),
            journeys=curve.finished + curve.censored,
            points=within_figures.finish_points(curve),
            points_in_all=len(curve.points),
            times=Sampling(exact=every == 1, every=every, journeys=journeys),
            freshness=self.fresh(context),
        )

    async def _finish_curve(self, context: Context, cohort: Cohort, every: int) -> tuple[Curve, int]:
        """The curve, and until when unfinished journeys were observed. It changes when figures do."""
        as_of = max(self.judged_at, context.newest.counted_at or 0)
        return await self.store.finish_curve(context, cohort, every, as_of), as_of

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
            walkthrough=context.walkthrough,
            journeys=found,
            next=last,
            of=await self._journeys_in_all(context, question, len(found), is_last=last is None),
            freshness=self.fresh(context),
        )

    async def _journeys_in_all(
        self, context: Context, question: JourneysQuestion, found: int, *, is_last: bool
    ) -> int | None:
        """How many journeys all pages have, where the first one has all or the counts say it."""
        if is_last and question.after is None:
            return found
        if not question.is_cohort:
            return None
        servers = question.server or people.servers_of(context)
        return await self.store.journeys_counted(context, servers, question)

    async def export(
        self,
        context: Context,
        question: JourneysQuestion,
        today: date,
        after: str,
        write: Callable[[Sequence[Journey]], str],
    ) -> tuple[str, str | None]:
        """A part of the journeys behind a figure, those of the next people after one by their ids.

        Returns:
            what `write` makes of them, and after whom the next part begins; None where this is the last.
        """
        view = view_of(context, question)
        rows, following = await self.store.journeys_after(context, after, people.narrowed(context, question))

        def written() -> str:
            found = (people.journey_of(context, question, view, row, today) for row in rows)
            return write([journey for journey in found if journey is not None])

        return await asyncio.to_thread(written), following

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
            sessions=len({e["mcp_server_session_id"] for e in events if e["kind"] != "shown"}),
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
            client=row["client"],
            client_version=row["client_version"],
            connected_at=row["connection_timestamp"],
            duration_ms=events[-1]["at"] - events[0]["at"] if events else 0,
            events=list(people.events_of([dict(e) for e in events])),
            freshness=backlog.freshness(Newest(), organization),
        )

    # --- finish rules -------------------------------------------------------------------------------

    async def finish_rule(self, turn: Turn, walkthrough: str) -> FinishRule:
        """When journeys of a walkthrough count as finished.

        Raises:
            ProblemError: it does not belong to the organization.
        """
        await turn.begin()
        if not await self.store.has_walkthrough(walkthrough, turn.asker.organization):
            raise not_found("walkthrough", walkthrough)
        return _finish_rule(walkthrough, await read_finish_rule(self.store.pool, walkthrough))

    async def set_finish_rule(self, turn: Turn, walkthrough: str, given: FinishRuleQuestion) -> FinishRule:
        """Sets it.

        Raises:
            ProblemError: the key may read alone; the walkthrough does not belong to the organization, or has
                no such step.
        """
        if not turn.asker.may_edit:
            raise ProblemError(
                403,
                "Not allowed",
                "this key may read alone: use one of `stepstream keys create --may-edit`",
            )
        await turn.begin()
        rule = GivenRule(given.goal_step_ids, given.optional_step_ids, given.end_step_ids)
        try:
            async with self.store.writing() as connection:
                if not await self.store.has_walkthrough(walkthrough, turn.asker.organization, connection):
                    raise not_found("walkthrough", walkthrough)
                await set_finish_rule(connection, walkthrough, rule)
                return _finish_rule(walkthrough, await read_finish_rule(connection, walkthrough))
        except UsageError as error:
            raise unanswerable(str(error), "body") from None
        except READS_ALONE:
            raise ProblemError(
                501,
                "Not implemented",
                "this API may read alone, as on a replica: set it with `stepstream walkthroughs finish-rule`",
            ) from None
        except _LOCKED:
            raise ProblemError(
                503,
                "Locked",
                "somebody else has locked the walkthrough: try again soon",
                {"Retry-After": "5"},
            ) from None

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
        rows = [row async for row in self._overview_rows(turn, backlog, cohort)]
        newest = max((r["newest_at"] for r in rows if r["newest_at"] is not None), default=None)
        walkthroughs = overviews.overview_of(rows, known)
        if offered is not None:
            walkthroughs = [w for w in walkthroughs if w.started or w.walkthrough_id in offered]
        return Overview(
            organization=Organization(**dict(row)),
            servers=[s for s in servers if server is None or s.id == server],
            walkthroughs=walkthroughs,
            version=VERSION,
            freshness=backlog.freshness(Newest(newest), organization),
        )

    async def _overview_rows(
        self, turn: Turn, backlog: Backlog, cohort: Cohort
    ) -> AsyncIterator[Mapping[str, Any]]:
        for row in await self.store.overview(turn.asker.organization, cohort, self.today):
            context = row["needs_journeys"] and await self.store.walkthrough(row["id"], turn, backlog)
            found = context and await self.store.overview_by_rule(context, cohort, self.today)
            for by_server in found or [{}]:
                means = context.walkthrough.finished_means if context else None
                yield {**row, **by_server, "finished_means": means}

    # --- producers ----------------------------------------------------------------------------------

    async def refused(self, turn: Turn, question: RefusedQuestion) -> RefusedEvents:
        """What of the organization's events was refused, and who sent it."""
        backlog = await self._read_backlog(turn)
        since = question.since or self.today - timedelta(days=_REFUSED_DAYS - 1)
        asked = self._topic, turn.asker.organization, since, question.source
        rows = await self.store.refused(*asked)
        classes, sources = await self.store.refused_in_all(*asked)
        refused = [producers.refused_class(row) for row in rows if row["rejection"] is not None]
        alone = {row["source"] for row in rows if row["sent"] is not None}
        return RefusedEvents(
            since=since,
            refused=refused,
            sources=producers.sources_of(rows),
            classes_left_out=max(0, classes - len(refused)),
            sources_left_out=max(0, sources - len(alone)),
            freshness=backlog.freshness(Newest(), turn.asker.organization),
        )


def _side(
    context: Context, question: CompareQuestion, which: Literal["a", "b"]
) -> tuple[Context, FlowQuestion]:
    """One of two cohorts, and the walkthrough with its journeys alone."""
    side = question.side(which)
    began = of_versions(context, side.version, f"query.version_{which}")
    return of_segment(began, side.segment, f"query.segment_{which}"), side


def _finish_rule(walkthrough: str, of: FinishRuleOf) -> FinishRule:
    return FinishRule(
        walkthrough_id=walkthrough,
        finished_means=of.says,
        goal_step_ids=list(of.given.goal),
        optional_step_ids=list(of.given.optional),
        end_step_ids=list(of.given.ends),
    )
