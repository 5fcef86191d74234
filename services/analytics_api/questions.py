"""Every question that is asked over HTTP and as an MCP tool: one table for both.

A question about a walkthrough is `GET /v1/walkthroughs/{walkthrough_id}/PATH` with its fields as parameters,
and a tool that takes the same fields and `walkthrough_id`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, Field

from services.analytics_api.answers import Answers
from services.analytics_api.models import (
    Breakdown,
    BreakdownQuestion,
    Cohort,
    CompareQuestion,
    Comparison,
    DiagnoseQuestion,
    Diagnosis,
    Endings,
    FlowQuestion,
    FrequentPaths,
    Funnel,
    Identifier,
    JourneyDetail,
    Journeys,
    JourneysQuestion,
    Overview,
    PathsQuestion,
    Sankey,
    SankeyQuestion,
    Segments,
    SegmentsQuestion,
    Session,
    Steps,
    Summary,
    SummaryQuestion,
    TimeToFinish,
    Trends,
    TrendsQuestion,
    VersionedCohort,
    WalkthroughVersions,
)
from services.analytics_api.store import Context

#: Answers a question about a walkthrough; `Any` is the question's own model.
Answer: TypeAlias = Callable[[Answers, Context, Any], Awaitable[BaseModel]]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, by the name of its tool.

    `path` is what follows the walkthrough in its address; None where the address is not of this form. `call`
    is None where it is not about a walkthrough. Where it is no tool (`is_tool`), agents get its main figures
    with another one: they read the list of tools before they ask anything, so that has to be short.
    """

    title: str
    description: str
    question: type[BaseModel]
    answer: type[BaseModel]
    call: Answer | None = None
    path: str | None = None
    is_tool: bool = True


class OfWalkthrough(BaseModel):
    """Which walkthrough a tool is asked about."""

    walkthrough_id: Identifier = Field(description="Id or title of the walkthrough.")


class OfPerson(BaseModel):
    """Whose journey get_journey is asked for."""

    mcp_server_user_id: Identifier = Field(description="Id of the person, from find_journeys.")


class OfSession(BaseModel):
    """Which session get_session is asked for."""

    mcp_server_session_id: Identifier = Field(description="Id of the session, from get_journey.")


async def _journey(answers: Answers, context: Context, person: OfPerson) -> BaseModel:
    return await answers.journey(context, person.mcp_server_user_id)


QUESTIONS: Final[dict[str, Question]] = {
    "get_overview": Question(
        "Overview of all walkthroughs",
        "Every walkthrough of the organization, over all servers and by server: started, finished, "
        "completion rate, average progress, last activity.",
        Cohort,
        Overview,
    ),
    "diagnose": Question(
        "What to look at",
        "Where people stop, what is slowest, what changed, and what to look at, with numbers. Concludes only "
        "what enough people show who had the time to go on.",
        DiagnoseQuestion,
        Diagnosis,
        Answers.diagnose,
        "/diagnose",
    ),
    "get_summary": Question(
        "A walkthrough in a few figures",
        "Completion rate, now and of those who had the time; time to finish (median, 90th percentile), steps "
        "per session, how many resume or come back; its versions.",
        SummaryQuestion,
        Summary,
        Answers.summary,
        "",
    ),
    "get_sankey": Question(
        "Where people go and where they stop",
        "The flow graph: links between steps by position, with mean times, and endings by outcome. Can start "
        "or end at a step, leave steps out, and fold small ones.",
        SankeyQuestion,
        Sankey,
        Answers.sankey,
        "/sankey",
    ),
    "get_funnel": Question(
        "How many get how far",
        "The steps in display order, today's or a version's, with how many did each and all before it.",
        VersionedCohort,
        Funnel,
        Answers.funnel,
        "/funnel",
    ),
    "get_steps": Question(
        "What became of each step",
        "By step: reached, completed, dropped here, and mean, median and 90th percentile of the time before "
        "it; the median since it was shown. The step with the most dropped_here is where most people stop.",
        VersionedCohort,
        Steps,
        Answers.steps,
        "/steps",
    ),
    "get_endings": Question(
        "How journeys end",
        "How many finished, are in progress or dropped, and after which step.",
        FlowQuestion,
        Endings,
        Answers.endings,
        "/endings",
    ),
    "get_paths": Question(
        "The most frequent whole paths",
        "Whole paths by how many took them: steps in order, outcome, share, median and 90th percentile of "
        "the time; and how many other paths there are.",
        PathsQuestion,
        FrequentPaths,
        Answers.paths,
        "/paths",
    ),
    "get_trends": Question(
        "Figures over time",
        "By day or week: started, finished, completion rate, people active.",
        TrendsQuestion,
        Trends,
        Answers.trends,
        "/trends",
    ),
    "get_versions": Question(
        "What edits changed",
        "Each edit of the steps made a version: when, what it changed, and how many journeys began with it.",
        Cohort,
        WalkthroughVersions,
        Answers.versions,
        "/versions",
        is_tool=False,  # get_summary tells the newest
    ),
    "get_time_to_finish": Question(
        "How long journeys take to finish",
        "The share of journeys that have finished, by the time since their beginning (Kaplan-Meier): those "
        "that are not finished count for as long as they have been on their way.",
        VersionedCohort,
        TimeToFinish,
        Answers.time_to_finish,
        "/time-to-finish",
        is_tool=False,
    ),
    "get_segments": Question(
        "What tells apart who stops",
        "By agent, its version, metadata of the first event and steps done before: how many of each finished "
        "or, with a step, came to it and did not get past it, beside the others; the largest certain "
        "differences first.",
        SegmentsQuestion,
        Segments,
        Answers.segments,
        "/segments",
        is_tool=False,  # the list of tools has no room for it; compare takes segments
    ),
    "get_breakdown": Question(
        "A figure for each part",
        "A summary, the funnel, the steps, trends or the Sankey for each agent, version of it, value of "
        "metadata, server or version of the walkthrough, or for who completed a step and who did not.",
        BreakdownQuestion,
        Breakdown,
        Answers.breakdown,
        "/breakdown",
        is_tool=False,  # as segments: every question takes a `segment`
    ),
    "compare": Question(
        "Compare servers, periods, versions, segments",
        "The same walkthrough over cohorts A and B, each journey after the same time: completion, steps, "
        "links and drop-offs, with the difference and whether it is more than chance.",
        CompareQuestion,
        Comparison,
        Answers.compare,
        "/compare",
    ),
    "find_journeys": Question(
        "The people behind a figure",
        "Journeys that took a link, came through a node, ended somewhere, or wait at a step; the last active "
        "first, in pages.",
        JourneysQuestion,
        Journeys,
        Answers.journeys,
    ),
    "get_journey": Question(
        "What somebody did",
        "A person's journey in a walkthrough: every event in order, with the time between.",
        OfPerson,
        JourneyDetail,
        _journey,
    ),
    "get_session": Question(
        "Replay a session",
        "The events of a session in order, with the time between.",
        OfSession,
        Session,
    ),
}
