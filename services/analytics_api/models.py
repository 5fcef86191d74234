"""What is asked and what is answered: the shapes of the API, of its CSV, and of the MCP tools.

Times are milliseconds since the epoch or, where they end in `_ms` and are no `_at`, durations in
milliseconds. Days are UTC days. Shares are between 0 and 1, and null where there is nothing to share.
"""

from datetime import date
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.journeys.flow import Outcome

MAX_PAGE: Final = 500


Identifier = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]+$")]
Day = Annotated[date, Field(ge=date(1970, 1, 1), le=date(9999, 12, 30))]
ActiveDays = Annotated[
    int,
    Field(
        ge=1,
        le=366,
        description="An unfinished journey is in progress while it was active within so many days, today "
        "included; then it is dropped.",
    ),
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


# --- questions -----------------------------------------------------------------------------------------


class Cohort(BaseModel):
    """Which journeys: by the servers and the UTC days where they began."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    server: list[Identifier] = Field(
        default_factory=list, max_length=100, description="Ids of servers; none is all."
    )
    since: Day | None = Field(
        default=None, alias="from", description="First UTC day on which journeys began."
    )
    until: Day | None = Field(default=None, alias="to", description="Last UTC day on which journeys began.")
    active_days: ActiveDays = 7

    @property
    def servers(self) -> set[str]:
        """The servers that are asked about."""
        return set(self.server)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError(f"from ({self.since}) is after to ({self.until})")
        return self


class Paths(BaseModel):
    """Which part of each journey."""

    model_config = ConfigDict(extra="forbid")

    start_at: Identifier | None = Field(
        default=None, description="Only journeys that did this step, shown from it on."
    )
    end_at: Identifier | None = Field(
        default=None, description="Only journeys that did this step (after `start_at`), shown up to it."
    )
    exclude: list[Identifier] = Field(
        default_factory=list,
        max_length=100,
        description="Steps left out: the steps before and after are joined, and the times added up.",
    )

    through: list[Annotated[str, Field(pattern=r"^\d{1,4}:[^\x00]{1,64}$")]] = Field(
        default_factory=list,
        max_length=200,
        description="Only journeys with this step at this position of the view, as in `2:wts_a`; of several "
        "at the same position one is enough.",
    )

    @property
    def steps_through(self) -> dict[int, frozenset[str]]:
        """`through`, by position."""
        found: dict[int, set[str]] = {}
        for text in self.through:
            position, _, step = text.partition(":")
            found.setdefault(int(position), set()).add(step)
        return {position: frozenset(steps) for position, steps in found.items()}

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for name, step in (("start_at", self.start_at), ("end_at", self.end_at)):
            if step is not None and step in self.exclude:
                raise ValueError(f"the step `{step}` is both {name} and excluded")
        if self.start_at is not None and self.start_at == self.end_at:
            raise ValueError("start_at and end_at are the same step: nothing lies between")
        return self


class FlowQuestion(Cohort, Paths):
    """Which journeys, and which part of them."""


class SankeyQuestion(FlowQuestion):
    """Which journeys, which part of them, and how much is drawn."""

    positions: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="Show so many positions; what goes on from the last one ends there as `went_on`.",
    )
    nodes: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="Show so many steps at each position, the largest; the rest is folded into one "
        "node, `other`.",
    )
    unfold: list[Annotated[int, Field(ge=0, le=1_000)]] = Field(
        default_factory=list, max_length=200, description="Positions at which nothing is folded."
    )


class TrendsQuestion(Cohort):
    """Which journeys, and how their time is divided."""

    by: Literal["day", "week"] = Field(default="day", description="Weeks begin on Monday.")


class CompareQuestion(Paths):
    """Two cohorts of one walkthrough, A and B: two servers, two periods, or both."""

    model_config = ConfigDict(extra="forbid")

    server_a: list[Identifier] = Field(
        default_factory=list, max_length=100, description="Servers of A; none is all."
    )
    from_a: Day | None = Field(default=None, description="First day of A.")
    to_a: Day | None = Field(default=None, description="Last day of A.")
    server_b: list[Identifier] = Field(
        default_factory=list, max_length=100, description="Servers of B; none is all."
    )
    from_b: Day | None = Field(default=None, description="First day of B.")
    to_b: Day | None = Field(default=None, description="Last day of B.")
    active_days: ActiveDays = 7

    @property
    def servers(self) -> set[str]:
        """The servers that are asked about."""
        return {*self.server_a, *self.server_b}

    def side(self, which: Literal["a", "b"]) -> FlowQuestion:
        """One of the cohorts, as a question of its own.

        Raises:
            ValueError: its days are not in order.
        """
        return FlowQuestion.model_validate(
            {
                "server": getattr(self, f"server_{which}"),
                "from": getattr(self, f"from_{which}"),
                "to": getattr(self, f"to_{which}"),
                "active_days": self.active_days,
                "start_at": self.start_at,
                "end_at": self.end_at,
                "exclude": self.exclude,
                "through": self.through,
            }
        )

    @model_validator(mode="after")
    def _two_cohorts(self) -> Self:
        for which, since, until in (("a", self.from_a, self.to_a), ("b", self.from_b, self.to_b)):
            if since is not None and until is not None and since > until:
                raise ValueError(f"from_{which} ({since}) is after to_{which} ({until})")
        return self


class JourneysQuestion(FlowQuestion):
    """The journeys behind a figure: all that is given has to hold."""

    position: int | None = Field(
        default=None, ge=0, le=1_000, description="Those with a step at this position of the view."
    )
    step: list[Identifier] = Field(
        default_factory=list,
        max_length=200,
        description="At `position`, or as the last one with `ended_after`, one of these steps.",
    )
    from_step: list[Identifier] = Field(
        default_factory=list, max_length=200, description="The step before `position` is one of these."
    )
    ended_after: int | None = Field(
        default=None, ge=0, le=1_000, description="Those that stand after so many steps of the view."
    )
    outcome: list[Outcome] = Field(default_factory=list, max_length=5, description="Those that end so.")
    next_step: Identifier | None = Field(
        default=None, description="Unfinished ones to which this step would be shown next."
    )
    active_from: Day | None = Field(default=None, description="Last active on this UTC day or later.")
    active_to: Day | None = Field(default=None, description="Last active on this UTC day or before.")
    limit: int = Field(default=50, ge=1, le=MAX_PAGE, description="How many a page has at most.")
    after: str | None = Field(
        default=None, max_length=300, description="`next` of the page before, to go on behind it."
    )

    @model_validator(mode="after")
    def _figure(self) -> Self:
        if self.from_step and self.position is None:
            raise ValueError("from_step goes with position: it is the step before it")
        if self.position == 0 and self.from_step:
            raise ValueError("nothing is before position 0 but the start: leave from_step out")
        if self.step and self.position is None and self.ended_after is None:
            raise ValueError("step goes with position or with ended_after")
        if self.active_from is not None and self.active_to is not None and self.active_from > self.active_to:
            raise ValueError(f"active_from ({self.active_from}) is after active_to ({self.active_to})")
        return self


class RefusedQuestion(BaseModel):
    """Which refused events."""

    model_config = ConfigDict(extra="forbid")

    source: list[Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]+$")]] = Field(
        default_factory=list, max_length=100, description="Who sent them, as `ce_source` says; none is all."
    )
    since: Day | None = Field(
        default=None,
        description="Classes of which one was refused on this UTC day or later; without it within 30 days, "
        "today included. After 90 days without another a class is forgotten.",
    )


# --- answers -------------------------------------------------------------------------------------------


class GroupFreshness(_Model):
    """How far a consumer group is."""

    group: str
    lag: int | None = Field(description="Events that it has yet to pass; null where that is not known.")
    newest_event_at: int | None = Field(
        description="The time of the newest event of the walkthrough that it has handled: recorded (of steps "
        "alone), or counted. Null in answers about several walkthroughs, for the recorder."
    )


class Freshness(_Model):
    """How fresh the figures are."""

    version: str | None = Field(
        default=None,
        description="Whoever sees the same version sees the same figures of a walkthrough; the live "
        "stream tells of a new one.",
    )
    newest_event_at: int | None = Field(description="The time of the newest event that is counted.")
    groups: list[GroupFreshness]
    marks: int | None = Field(
        description="Journeys that wait to be counted again, after a deletion say; up to 10,000."
    )
    events_waiting: int | None = Field(
        description="Events of the walkthrough, or of the organization, that wait for rows of the database "
        "which somebody else has locked; up to 10,000 of a walkthrough."
    )
    looked_at: int | None = Field(description="When lag and marks were looked at.")
    current: bool | None = Field(
        description="Whether nothing waited then: every event of before is in the figures, exactly. "
        "Null where that is not known, as on a replica of the database."
    )
    problem: str | None = Field(default=None, description="Why it is not known.")


class Server(_Model):
    """An MCP server."""

    id: str
    name: str
    slug: str


class Step(_Model):
    """A step of a walkthrough."""

    id: str
    title: str


class Walkthrough(_Model):
    """The walkthrough that is asked about: its steps in display order, and the servers that it is on."""

    id: str
    title: str
    type: str | None
    status: str | None
    steps: list[Step]
    servers: list[Server]


class Outcomes(_Model):
    """Journeys by how they end in the view."""

    finished: int = 0
    in_progress: int = 0
    dropped: int = 0
    reached: int = Field(default=0, description="At the step at which the view ends.")
    went_on: int = Field(default=0, description="Past the positions that the view shows.")


class FoldedStep(_Model):
    """A step within an `other` node."""

    step_id: str
    title: str
    journeys: int


class SankeyNode(_Model):
    """A step at a position: in = out + ended."""

    id: str
    kind: Literal["start", "step", "other"]
    position: int = Field(description="From 0; -1 is the start.")
    step_id: str | None
    title: str
    journeys: int
    share: float | None = Field(description="Of all journeys.")
    ended: Outcomes
    folded: list[FoldedStep] = Field(default_factory=list)


class SankeyLink(_Model):
    """Journeys from a node to a node at the next position."""

    position: int = Field(description="Of the node that it leads to.")
    from_step_id: str | None = Field(description="Null at position 0, and from an `other` node.")
    to_step_id: str | None = Field(description="Null to an `other` node.")
    source: str
    target: str
    journeys: int
    share: float | None = Field(description="Of all journeys.")
    share_of_node: float | None = Field(description="Of the journeys at the node that it comes from.")
    mean_ms: float | None = Field(
        description="Mean time between the two steps; from the start where that is known."
    )
    timed_journeys: int = Field(description="Of how many journeys that is the mean.")


class SankeyEnding(_Model):
    """Journeys that end at a node."""

    steps_done: int
    step_id: str | None = Field(description="Null where no step is done, and at an `other` node.")
    outcome: Outcome
    journeys: int
    node: str
    share: float | None = Field(description="Of all journeys.")
    share_of_node: float | None = Field(description="Of the journeys at the node.")


class Sankey(_Model):
    """The flow graph of a walkthrough."""

    walkthrough: Walkthrough
    journeys: int
    outcomes: Outcomes
    nodes: list[SankeyNode]
    links: list[SankeyLink]
    endings: list[SankeyEnding]
    read_from: Literal["counts", "journeys"] = Field(
        description="Figures of paths as they are come from the counts; a view that changes paths reads "
        "the journeys."
    )
    freshness: Freshness


class FunnelStage(_Model):
    """A step in display order."""

    place: int = Field(description="From 1.")
    step_id: str
    title: str
    completed: int = Field(description="Journeys that have done this step.")
    through: int = Field(description="Journeys that have done this step and all before it, in any order.")
    share: float | None = Field(description="`through` of all journeys.")
    share_of_previous: float | None = Field(description="`through` of the stage before.")


class Funnel(_Model):
    """How many people get how far, in display order."""

    walkthrough: Walkthrough
    started: int
    stages: list[FunnelStage]
    freshness: Freshness


class StepFigures(_Model):
    """What became of a step."""

    place: int
    step_id: str
    title: str
    reached: int = Field(description="Journeys that did it, or to which it would be shown next.")
    completed: int
    dropped_here: int = Field(description="Dropped journeys to which it would be shown next.")
    in_progress_here: int = Field(description="Journeys in progress to which it would be shown next.")
    completion_rate: float | None = Field(description="`completed` of `reached`.")
    mean_ms: float | None = Field(description="Mean time before it was done, since the step before.")
    median_ms: float | None
    p90_ms: float | None
    timed: int = Field(description="Of how many journeys the times are.")


class Sampling(_Model):
    """How percentiles were computed: with `percentile_cont`, over all people or over a part of them.

    With `exact` every journey was read. Else they are those of every n-th person by a hash of the id, chosen
    without regard to what they did: with 20,000 people the median that is given lies between the 49.3rd and
    the 50.7th percentile of all (19 times in 20).
    """

    exact: bool
    every: int = Field(description="1: all people; n: every n-th.")
    journeys: int = Field(description="How many journeys the cohort has.")


class Steps(_Model):
    """The steps in display order."""

    walkthrough: Walkthrough
    started: int
    steps: list[StepFigures]
    times: Sampling
    freshness: Freshness


class EndingFigures(_Model):
    """Where journeys of an outcome stand."""

    outcome: Outcome
    step_id: str | None = Field(description="The last step done; null where none is.")
    title: str
    journeys: int
    share: float | None


class Endings(_Model):
    """How journeys end, and after which step."""

    walkthrough: Walkthrough
    journeys: int
    outcomes: Outcomes
    endings: list[EndingFigures]
    freshness: Freshness


class TrendPoint(_Model):
    """A day, or the week that begins on it."""

    since: date
    started: int = Field(description="Journeys that began then.")
    finished: int = Field(description="Of those, how many are finished by now.")
    completion_rate: float | None = Field(description="`finished` of `started`.")
    finished_then: int = Field(description="Journeys that did their last step then, whenever they began.")
    active_people: int = Field(description="People who began or did a step then.")


class Trends(_Model):
    """Figures over time; days without anything are in it with zeros."""

    walkthrough: Walkthrough
    by: Literal["day", "week"]
    points: list[TrendPoint]
    freshness: Freshness


class Summary(_Model):
    """A walkthrough in a few figures."""

    walkthrough: Walkthrough
    started: int
    finished: int
    in_progress: int
    dropped: int
    completion_rate: float | None
    average_progress: float | None = Field(description="Mean share of the steps that journeys have done.")
    mean_to_finish_ms: float | None = Field(description="From the beginning to the last step.")
    median_to_finish_ms: float | None
    p90_to_finish_ms: float | None
    steps_per_session: float | None = Field(description="Steps, by the sessions that people came with.")
    resume_rate: float | None = Field(description="Journeys with more than one session.")
    return_rate: float | None = Field(description="Journeys of people active on more than one UTC day.")
    times: Sampling
    freshness: Freshness


class Difference(_Model):
    """A share in A and in B, and whether the difference is more than chance."""

    of_a: int
    in_a: int
    share_a: float | None
    of_b: int
    in_b: int
    share_b: float | None
    difference: float | None = Field(description="share_b - share_a.")
    p_value: float | None = Field(
        description="Fisher's exact test, two-sided; with more than 1,000 journeys, Pearson's chi-squared "
        "test where every expected count is at least 5. Null where a side has no journeys."
    )
    p_adjusted: float | None = Field(
        description="Adjusted for how many were compared (Benjamini and Hochberg, 1995)."
    )
    significant: bool = Field(description="Whether `p_adjusted` is below 0.05.")


class ComparedLink(Difference):
    """A link of either side; shares are of the journeys at the node that it comes from."""

    position: int
    from_step_id: str | None
    from_title: str
    to_step_id: str
    to_title: str
    mean_ms_a: float | None
    mean_ms_b: float | None


class ComparedDrop(Difference):
    """Journeys that stopped (dropped) at a node; shares are of the journeys there."""

    position: int
    step_id: str | None
    title: str


class CompletionDifference(Difference):
    """Finished journeys of all."""


class Comparison(_Model):
    """The same walkthrough over two cohorts."""

    walkthrough: Walkthrough
    journeys_a: int
    journeys_b: int
    outcomes_a: Outcomes
    outcomes_b: Outcomes
    completion: CompletionDifference
    links: list[ComparedLink]
    drops: list[ComparedDrop]
    freshness: Freshness


class Journey(_Model):
    """Somebody's journey, as the view shows it."""

    mcp_server_user_id: str
    mcp_server_id: str
    began_at: int
    last_active_at: int
    steps_done: int
    outcome: Outcome
    step_ids: list[str] = Field(description="In the order in which they were done.")
    next_step_id: str | None = Field(description="The step that would be shown next.")
    duration_ms: int = Field(description="From the beginning to the last step.")


class Journeys(_Model):
    """A page of journeys, the last active first."""

    walkthrough: Walkthrough
    journeys: list[Journey]
    next: str | None = Field(description="Given as `after` it leads on; null on the last page.")
    freshness: Freshness


class Event(_Model):
    """Something that somebody did."""

    at: int
    since_previous_ms: int | None
    kind: Literal["started", "completed"]
    walkthrough_id: str
    walkthrough: str
    step_id: str | None
    step: str | None
    mcp_server_user_id: str
    mcp_server_id: str
    mcp_server_session_id: str


class JourneyDetail(_Model):
    """A journey with what happened in it."""

    walkthrough: Walkthrough
    journey: Journey
    sessions: int
    events: list[Event]
    freshness: Freshness


class Session(_Model):
    """A session replayed: its events in order."""

    id: str
    title: str | None
    mcp_server_id: str
    server: str
    mcp_server_user_id: str | None
    connected_at: int | None
    duration_ms: int
    events: list[Event]
    freshness: Freshness


class OverviewRow(_Model):
    """A walkthrough, over all servers or on one of them."""

    walkthrough_id: str
    title: str
    type: str | None
    status: str | None
    steps: int
    mcp_server_id: str | None = Field(description="Null in the row over all servers.")
    server: str | None
    started: int
    finished: int
    in_progress: int
    dropped: int
    completion_rate: float | None
    average_progress: float | None
    last_active_on: date | None


class OverviewWalkthrough(OverviewRow):
    """A walkthrough, and the same by server."""

    servers: list[OverviewRow]


class Organization(_Model):
    """Whose figures these are."""

    id: str
    name: str


class Overview(_Model):
    """All walkthroughs of an organization, or those of a server."""

    organization: Organization
    servers: list[Server]
    walkthroughs: list[OverviewWalkthrough]
    freshness: Freshness


class RefusedExample(_Model):
    """The last refused event of a class, without its content."""

    partition: int
    offset: int
    message: str = Field(description="What is wrong with it.")
    fields: dict[str, str] = Field(
        description="What it looks like: the names of its fields, each with its type."
    )


class RefusedClass(_Model):
    """Refused events of a source and class."""

    source: str = Field(description="Who sent them, as the header `ce_source` says.")
    rejection: str = Field(description="The error class, which their dead letters carry.")
    events: int = Field(description="How many, from `first_at` to `last_at`.")
    first_at: int
    last_at: int
    advice: str = Field(description="What to do about it.")
    example: RefusedExample


class EventSource(_Model):
    """Who sends events.

    Totals are null where events of other organizations come from the same source, and of `(no source)`.
    """

    source: str
    events: int | None = Field(description="All that it sent.")
    refused: int = Field(
        description="Those of them that were refused; where totals are null, those that are in the answer."
    )
    share: float | None = Field(description="`refused` of `events`.")
    looked_at: int | None = Field(description="How many events the sample of its habits has.")
    elsewhere: int | None = Field(
        description="Those in another partition than Kafka's default partitioner chooses for their key."
    )
    without_key: int | None = Field(description="Those without a key.")
    hints: list[str] = Field(
        description="What its producer should change of that: events without it are counted exactly, but "
        "those of a person may come out of order."
    )


class RefusedEvents(_Model):
    """What of an organization's events was refused, and who sent it."""

    since: date
    refused: list[RefusedClass] = Field(description="At most 200, the last refused first.")
    sources: list[EventSource] = Field(
        description="Those of `refused`, and those that send events of this organization alone; at most 200 "
        "of the latter."
    )
    freshness: Freshness


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = Field(
        default=None, description="Of parameters: `where` each is, and `what` is wrong with it."
    )
    request_id: str | None = Field(
        default=None, description="Of a fault of ours: what the log names it by, as in `X-Request-Id`."
    )
