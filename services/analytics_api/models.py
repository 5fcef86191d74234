"""What is asked and what is answered: the shapes of the API, of its CSV, and of the MCP tools.

Times are milliseconds since the epoch or, where they end in `_ms` and are no `_at`, durations in
milliseconds. Days are UTC days. Shares are between 0 and 1, and null where there is nothing to share.
"""

from datetime import date
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.journeys.flow import Outcome
from services.journeys.segments import Kind as SegmentKind
from services.journeys.segments import parsed
from services.journeys.versions import Kind
from services.runtime.database import can_be_stored

MAX_PAGE: Final = 500
#: How long a condition of a segment may be, in characters.
MAX_SEGMENT: Final = 200


def _segment_text(text: str) -> str:
    if not can_be_stored(text):
        raise ValueError("it is no text that can be stored")
    parsed(text)
    return text


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
WithinDays = Annotated[
    int,
    Field(
        ge=1,
        le=366,
        description="Each journey is judged as it stood so many days after it began, those alone that began "
        "so many days ago. Without it a number is proposed: 90 % of those who finish have done so by then.",
    ),
]


#: The figures that can be broken down.
BreakdownOf = Literal["summary", "funnel", "steps", "trends", "sankey"]
VersionNumber = Annotated[int, Field(ge=1, le=1_000_000)]
#: One condition of a segment. `Segment.of` says what they are.
SegmentText = Annotated[
    str, Field(min_length=1, max_length=MAX_SEGMENT, pattern=r"^[^\x00]+$"), AfterValidator(_segment_text)
]
SegmentTexts = Annotated[list[SegmentText], Field(max_length=20)]


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


class VersionedCohort(Cohort):
    """Which journeys of a walkthrough: by the version, too, with which they began, and by segment."""

    version: list[VersionNumber] = Field(
        default_factory=list,
        max_length=100,
        description="Only journeys that began with these versions, by number; none is all.",
    )
    segment: SegmentTexts = Field(
        default_factory=list,
        description="Only journeys for which each of these holds: `agent:NAME`, `agent_version:VERSION` or "
        "`metadata.KEY:VALUE` as their first event has it, nothing behind the colon where it has none, and "
        "of several of a kind or key one is enough; `did:STEP`, completed at any time. With `not_` before "
        "it, none of these.",
    )


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


class FlowQuestion(VersionedCohort, Paths):
    """Which journeys, and which part of them."""


class PathsQuestion(FlowQuestion):
    """Which journeys, which part of them, and how many paths."""

    limit: int = Field(default=20, ge=1, le=MAX_PAGE, description="So many paths, the most frequent.")


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
    min_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Fold steps that fewer than this share of all journeys came to at their position.",
    )
    unfold: list[Annotated[int, Field(ge=0, le=1_000)]] = Field(
        default_factory=list, max_length=200, description="Positions at which nothing is folded."
    )
    times: bool = Field(
        default=False,
        description="Also percentiles and a histogram of the times of each link. They are read from the "
        "journeys, which takes longer than the counts.",
    )


class SummaryQuestion(VersionedCohort):
    """Which journeys, and after how many days they are judged."""

    within_days: WithinDays | None = None


class TrendsQuestion(VersionedCohort):
    """Which journeys, and how their time is divided."""

    by: Literal["day", "week"] = Field(default="day", description="Weeks begin on Monday.")
    within_days: WithinDays | None = None


class CompareQuestion(Paths):
    """Two cohorts of one walkthrough, A and B: two servers, periods, versions or segments, or several.

    Both are judged after the same time, `within_days`, so `active_days` only matters where nobody finished:
    then it is proposed.
    """

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
    version_a: list[VersionNumber] = Field(
        default_factory=list, max_length=100, description="Versions with which A began; none is all."
    )
    version_b: list[VersionNumber] = Field(
        default_factory=list, max_length=100, description="Versions with which B began; none is all."
    )
    segment_a: SegmentTexts = Field(
        default_factory=list, description="Only journeys of A for which each of these holds; as `segment`."
    )
    segment_b: SegmentTexts = Field(
        default_factory=list, description="Only journeys of B for which each of these holds."
    )
    within_days: WithinDays | None = None
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
                "version": getattr(self, f"version_{which}"),
                "segment": getattr(self, f"segment_{which}"),
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


class SegmentsQuestion(VersionedCohort):
    """Which journeys, and what is to be told apart of them."""

    step: Identifier | None = Field(
        default=None,
        description="Who came to this step and did not get past it; without it, who finished.",
    )
    by: (
        Annotated[str, Field(max_length=150, pattern=r"^(agent|agent_version|did|metadata\.[^\x00:]+)$")]
        | None
    ) = Field(
        default=None,
        description="By this alone: `agent`, `agent_version`, `metadata.KEY` or `did`. Without it by all; by "
        "the steps that were done only with a `step`: those that were done before it.",
    )
    within_days: WithinDays | None = None


class BreakdownQuestion(SankeyQuestion):
    """Which journeys, which figure of them, and by what they are told apart."""

    of: BreakdownOf = Field(default="summary", description="The figure that each part has.")
    by: (
        Annotated[
            str,
            Field(
                max_length=150,
                pattern=r"^(agent|agent_version|server|version|metadata\.[^\x00:]+|did:[^\x00]{1,64})$",
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="`agent`, `agent_version` (of one agent, which a `segment` names), `metadata.KEY`, "
        "`server`, `version`, or `did:STEP`: who completed it, and who did not. Without it, which keys of "
        "metadata there are.",
    )
    most: int = Field(
        default=5, ge=1, le=10, description="So many values, the most frequent; the others are one part."
    )
    period: Literal["day", "week"] = Field(
        default="day", description="With `of=trends`: by what time is divided. Weeks begin on Monday."
    )
    within_days: WithinDays | None = None

    @model_validator(mode="after")
    def _of_its_figure(self) -> Self:
        given = self.model_fields_set
        if self.of != "sankey" and (strange := sorted(given & _OF_SANKEY)):
            raise ValueError(f"{', '.join(strange)}: with `of=sankey` alone")
        return self


#: What only flows know: which part of each journey, and how much is drawn.
_OF_SANKEY: Final = (
    SankeyQuestion.model_fields.keys() | Paths.model_fields.keys()
) - VersionedCohort.model_fields.keys()


class DiagnoseQuestion(VersionedCohort):
    """Which journeys, and which periods are compared."""

    days: int = Field(
        default=28,
        ge=1,
        le=366,
        description="How many days each of the two periods has that are compared: the last ones of which "
        "everybody had the time, and those before.",
    )


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
    skipped: bool | None = Field(default=None, description="The step at `position` was skipped, or was not.")
    ended_after: int | None = Field(
        default=None,
        ge=0,
        le=1_000,
        description="Those that stand after so many steps of the view, completed or skipped.",
    )
    outcome: list[Outcome] = Field(default_factory=list, max_length=5, description="Those that end so.")
    path: list[Annotated[str, Field(pattern=r"^(done|skipped):[^\x00]{1,64}$")]] = Field(
        default_factory=list,
        max_length=200,
        description="Those whose path in the view is exactly these steps in this order, each as `done:STEP` "
        "or `skipped:STEP`.",
    )
    next_step: Identifier | None = Field(
        default=None, description="Unfinished ones that stand at this step, as `next_step_id` says."
    )
    active_from: Day | None = Field(default=None, description="Last active on this UTC day or later.")
    active_to: Day | None = Field(default=None, description="Last active on this UTC day or before.")
    limit: int = Field(
        default=50,
        ge=1,
        le=MAX_PAGE,
        description="How many a page has at most. CSV and JSON lines have no pages without it, but all.",
    )
    after: str | None = Field(
        default=None, max_length=300, description="`next` of the page before, to go on behind it."
    )

    @property
    def is_cohort(self) -> bool:
        """Whether nothing but servers, days, versions and segments narrow it."""
        cohort = {*VersionedCohort.model_fields, "limit", "after"}
        narrowing = JourneysQuestion.model_fields.keys() - cohort
        return not any(getattr(self, name) not in (None, []) for name in narrowing)

    @model_validator(mode="after")
    def _figure(self) -> Self:
        if self.from_step and self.position is None:
            raise ValueError("from_step goes with position: it is the step before it")
        if self.position == 0 and self.from_step:
            raise ValueError("nothing is before position 0 but the start: leave from_step out")
        if self.skipped is not None and self.position is None:
            raise ValueError("skipped goes with position: it is about the step there")
        if self.step and self.position is None and self.ended_after is None:
            raise ValueError("step goes with position or with ended_after")
        if self.active_from is not None and self.active_to is not None and self.active_from > self.active_to:
            raise ValueError(f"active_from ({self.active_from}) is after active_to ({self.active_to})")
        return self


class FinishRuleQuestion(BaseModel):
    """When journeys of a walkthrough are to count as finished; nothing given is as if nothing were set."""

    model_config = ConfigDict(extra="forbid")

    goal_step_ids: list[Identifier] = Field(
        default_factory=list,
        max_length=1_000,
        description="Completing one of these finishes a journey, and passing every step does no more.",
    )
    optional_step_ids: list[Identifier] = Field(
        default_factory=list,
        max_length=1_000,
        description="Steps that need not be passed, beside those that are optional for agents.",
    )
    end_step_ids: list[Identifier] = Field(
        default_factory=list,
        max_length=1_000,
        description="A journey whose last step is one of these is finished: it did not stop there.",
    )


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
    optional: bool = Field(description="It need not be passed to finish.")


class Walkthrough(_Model):
    """The walkthrough that is asked about: its steps in display order, and the servers that it is on."""

    id: str
    title: str
    type: str | None
    status: str | None
    steps: list[Step]
    finished_means: str = Field(description="When a journey is finished, in words.")
    goal_step_ids: list[str] = Field(
        description="Where there are any, completing one of these finishes it, and nothing else does."
    )
    end_step_ids: list[str] = Field(
        description="A journey whose last step is one of these is finished as well."
    )
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
    median_ms: float | None = Field(
        default=None, description="Of the times of all links into it, with `times`; null where none is known."
    )
    p90_ms: float | None = None
    timed: int | None = Field(default=None, description="Over how many journeys that is.")


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
    skipped: bool = Field(description="Whether the step that it leads to was skipped.")
    mean_active_ms: float | None = Field(
        default=None,
        description="Mean time from when the step that it leads to was shown to when it was done or skipped: "
        "without the time away before that.",
    )
    active_journeys: int = Field(default=0, description="Of how many journeys that is the mean.")
    median_ms: float | None = Field(default=None, description="As `mean_ms`; null without `times`.")
    p90_ms: float | None = None
    timed: int | None = Field(default=None, description="Of how many journeys these are.")
    median_active_ms: float | None = Field(
        default=None, description="As `mean_active_ms`; null without `times`."
    )
    p90_active_ms: float | None = None
    active: int | None = Field(default=None, description="Of how many journeys these are.")
    histogram: list[int] | None = Field(
        default=None,
        description="Of the `timed` journeys, how many took less than the first of `bounds_ms`, then from "
        "each to the next, and from the last on.",
    )


class SankeyEnding(_Model):
    """Journeys that end at a node."""

    steps_done: int = Field(description="Steps of the view completed; passed, where it went on.")
    steps_skipped: int = Field(description="Steps of the view skipped, and not completed.")
    position: int = Field(description="Of the node; -1 is the start.")
    step_id: str | None = Field(description="Null where no step is done, and at an `other` node.")
    outcome: Outcome
    journeys: int
    node: str
    share: float | None = Field(description="Of all journeys.")
    share_of_node: float | None = Field(description="Of the journeys at the node.")


class Sampling(_Model):
    """How percentiles were computed: with `percentile_cont`, over all people or over a part of them.

    With `exact` every journey was read. Else they are those of every n-th person by a hash of the id, chosen
    without regard to what they did: with 20,000 people the median that is given lies between the 49.3rd and
    the 50.7th percentile of all (19 times in 20).
    """

    exact: bool
    every: int = Field(description="1: all people; n: every n-th.")
    journeys: int = Field(description="How many journeys the cohort has.")


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
        "the journeys, and so do one of some versions and a finish rule that the counts do not know."
    )
    times: Sampling | None = Field(
        default=None, description="Of whom percentiles and histograms are; null without `times`."
    )
    bounds_ms: list[int] | None = Field(default=None, description="Where the bins of histograms begin.")
    freshness: Freshness


class PathFigures(_Model):
    """A whole path, and who took it."""

    place: int = Field(description="From 1, by how many took it.")
    step_ids: list[str] = Field(description="In the order in which they were completed or skipped.")
    skipped_step_ids: list[str] = Field(description="Those of them that were skipped.")
    outcome: Outcome
    journeys: int
    share: float | None = Field(description="Of all journeys.")
    started: int = Field(description="Of how many of them it is known when they started.")
    median_ms: float | None = Field(
        description="From the beginning, which is the start where that is known, to the last step."
    )
    p90_ms: float | None
    timed: int = Field(
        description="Of how many journeys the times are: not of those with one step whose start is not known."
    )


class PathsBeyond(_Model):
    """Paths that fewer took than those of the answer."""

    paths: int
    journeys: int
    share: float | None = Field(description="Of all journeys.")


class FrequentPaths(_Model):
    """The paths that most journeys took, from beginning to end."""

    walkthrough: Walkthrough
    journeys: int
    all_paths: int = Field(description="How many different paths there are.")
    paths: list[PathFigures] = Field(description="The most frequent first.")
    other: PathsBeyond
    times: Sampling
    freshness: Freshness


class FunnelStage(_Model):
    """A step in display order."""

    place: int = Field(description="From 1.")
    step_id: str
    title: str
    completed: int = Field(description="Journeys that have done this step.")
    skipped: int = Field(description="Journeys that have skipped it, and not done it.")
    through: int = Field(
        description="Journeys that have done or skipped this step and all before it, in any order."
    )
    share: float | None = Field(description="`through` of all journeys.")
    share_of_previous: float | None = Field(description="`through` of the stage before.")


class Funnel(_Model):
    """How many people get how far, in display order: today's, or that of the version that is asked about."""

    walkthrough: Walkthrough
    started: int
    order_of: int = Field(
        description="The version whose order it is, by number: the newest of those asked about."
    )
    order_since: int | None = Field(
        description="Since when the steps are in this order, where journeys of other versions are counted, "
        "too: who began before had another order. Ask with `version` for theirs. Null: no other is known."
    )
    stages: list[FunnelStage]
    removed: list[Step] = Field(
        description="Steps of that version that were removed since, and with them what people did: they are "
        "no stages."
    )
    freshness: Freshness


class StepFigures(_Model):
    """What became of a step."""

    place: int
    step_id: str
    title: str
    reached: int = Field(description="Journeys that completed or skipped it, or stand at it.")
    completed: int
    skipped: int = Field(description="Journeys that skipped it, and did not complete it.")
    dropped_here: int = Field(description="Dropped journeys that stand at it.")
    in_progress_here: int = Field(description="Journeys in progress that stand at it.")
    completion_rate: float | None = Field(description="`completed` of `reached`.")
    mean_ms: float | None = Field(description="Mean time before it was done, since the step before.")
    median_ms: float | None
    p90_ms: float | None
    timed: int = Field(description="Of how many journeys the times are.")
    histogram: list[int] = Field(
        description="Of these journeys, how many took less than the first of `bounds_ms`, then from each to "
        "the next, and from the last on."
    )
    mean_active_ms: float | None = Field(
        description="Mean time from when it was shown to when it was done: without the time away before that."
    )
    median_active_ms: float | None
    p90_active_ms: float | None
    active: int = Field(description="Of how many journeys the active times are.")


class MostStop(_Model):
    """The step that most of those who stopped stand at."""

    step_id: str
    dropped_here: int
    dropped: int = Field(description="How many stopped, at whatever step.")
    like_it: list[str] | None = Field(
        description="The steps that by chance may as well be the first; null where fewer than 30 stopped, "
        "which is too few to tell."
    )


class Steps(_Model):
    """The steps in display order.

    An unfinished journey stands at the step that was shown last of those that it has neither completed nor
    skipped. Where no showing is known, it is assumed to stand at the first of these in the order that the
    walkthrough had at its last activity; steps that were removed since are passed over, and where it had
    passed all others, it is the first of today's order.
    """

    walkthrough: Walkthrough
    started: int
    steps: list[StepFigures]
    most_stop: MostStop | None = Field(description="Null where nobody has stopped.")
    assumed: int = Field(description="Of how many unfinished journeys it is assumed where they stand.")
    times: Sampling
    bounds_ms: list[int] = Field(description="Where the bins of histograms begin.")
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
    had_time: int = Field(description="Of those that began then, how many began `within_days` days ago.")
    finished_within: int = Field(
        description="Of `had_time`, how many finished within `within_days` days of their beginning."
    )
    completion_rate_within: float | None = Field(description="`finished_within` of `had_time`.")
    complete: bool = Field(
        description="Whether all of the period is so long ago, so that all who began then had the time."
    )
    finished_then: int = Field(description="Journeys that did their last step then, whenever they began.")
    active_people: int = Field(description="People who began or did a step then.")


class _Within(_Model):
    """After how many days journeys are judged."""

    within_days: int = Field(
        description="Journeys are judged as they stood so many days after their beginning."
    )
    within_because: str = Field(description="Why so many, in a sentence.")
    judged_at: int = Field(
        description="Judged are journeys that began `within_days` days before this, or earlier: the "
        "beginning of the UTC day."
    )


class Trends(_Within):
    """Figures over time; days without anything are in it with zeros."""

    walkthrough: Walkthrough
    by: Literal["day", "week"]
    points: list[TrendPoint]
    freshness: Freshness


class VersionInShort(_Model):
    """A version, and what made it."""

    number: int
    since: int | None = Field(description="Null of the first, which counts for all before the second.")
    says: str = Field(description="What the edit changed, in words.")


class FinishTimes(_Model):
    """How long journeys take to finish, by the Kaplan-Meier estimate.

    Journeys that are not finished are in it for as long as they have been on their way until `as_of`
    (censored), the dropped ones too: whether they finish later is not known of any of them.
    """

    as_of: int = Field(
        description="The time of the newest event that is counted, or the beginning of the UTC day if later."
    )
    finished: int = Field(description="Journeys that are finished; of those that were read, see `times`.")
    censored: int = Field(description="Journeys that are not.")
    median_ms: int | None = Field(
        description="Half of all who began have finished within this time; null where fewer do."
    )
    median_low_ms: int | None = Field(description="It is at least this, 19 times in 20.")
    median_high_ms: int | None = Field(description="It is at most this; null: no limit is known.")
    p90_ms: int | None = Field(description="Nine in ten of all who began have finished within this time.")
    p90_low_ms: int | None
    p90_high_ms: int | None


class FinishPoint(_Model):
    """How many have finished by a time after their beginning."""

    ms: int
    share: float = Field(description="Of all who began.")
    low: float | None = Field(description="It is at least this, 19 times in 20; null where all finished.")
    high: float | None = Field(description="The share is at most this, 19 times in 20.")


class TimeToFinish(FinishTimes):
    """The share of journeys that have finished, by the time since their beginning."""

    walkthrough: Walkthrough
    journeys: int = Field(description="`finished` and `censored`.")
    points: list[FinishPoint] = Field(
        description="The share holds from one point until the next. At most 200, evenly from all."
    )
    points_in_all: int = Field(description="At how many times somebody finished.")
    times: Sampling
    freshness: Freshness


class Summary(_Within):
    """A walkthrough in a few figures."""

    walkthrough: Walkthrough
    started: int
    finished: int
    in_progress: int
    dropped: int
    completion_rate: float | None
    had_time: int = Field(description="Journeys that began `within_days` days ago, or earlier.")
    finished_within: int = Field(
        description="Of `had_time`, how many finished within `within_days` days of their beginning."
    )
    completion_rate_within: float | None = Field(description="`finished_within` of `had_time`.")
    completion_rate_within_low: float | None = Field(description="The rate is at least this, 19 times in 20.")
    completion_rate_within_high: float | None = Field(description="The rate is at most this, 19 times in 20.")
    average_progress: float | None = Field(description="Mean share of the steps that journeys have done.")
    time_to_finish: FinishTimes
    mean_to_finish_ms: float | None = Field(
        description="From the beginning to the last step, of those who finished."
    )
    median_to_finish_ms: float | None
    p90_to_finish_ms: float | None
    steps_per_session: float | None = Field(description="Steps, by the sessions that people came with.")
    resume_rate: float | None = Field(description="Journeys with more than one session.")
    return_rate: float | None = Field(description="Journeys of people active on more than one UTC day.")
    times: Sampling
    version_count: int = Field(description="How many versions edits made of it.")
    newest_versions: list[VersionInShort] = Field(description="At most ten, the newest first.")
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
    difference_low: float | None = Field(
        description="The difference is at least this, 19 times in 20 (Newcombe, 1998, from Wilson's "
        "intervals). Null where it is not tested."
    )
    difference_high: float | None = Field(description="The difference is at most this, 19 times in 20.")
    p_value: float | None = Field(
        description="Fisher's exact test, two-sided; with more than 1,000 journeys, Pearson's chi-squared "
        "test where every expected count is at least 5. Null where it is not tested: a side has no journeys, "
        "or could not have done it, as a step was added since."
    )
    p_adjusted: float | None = Field(
        description="Adjusted for how many of its kind were compared (Benjamini and Hochberg, 1995); what "
        "everybody or nobody of both sides did is none of them."
    )
    significant: bool = Field(description="Whether `p_adjusted` is below 0.05.")


class ComparedLink(Difference):
    """A link of either side; shares are of the journeys at the node that it comes from."""

    position: int
    from_step_id: str | None
    from_title: str
    to_step_id: str
    to_title: str
    skipped: bool = Field(description="Whether the step that it leads to was skipped.")
    mean_ms_a: float | None
    mean_ms_b: float | None


class ComparedDrop(Difference):
    """Journeys that had not gone on from a node `within_days` days after their beginning, nor were finished.

    Shares are of the journeys there.
    """

    position: int
    step_id: str | None
    title: str


class CompletionDifference(Difference):
    """Finished journeys of all."""


class ComparedStep(Difference):
    """Of those who reached a step within `within_days` days, how many did it by then, at whatever place.

    Reached: completed or skipped it, or had it as the first step left in today's order.
    """

    place: int
    step_id: str
    title: str


class OutcomesWithin(_Model):
    """Journeys by how they stood `within_days` days after their beginning."""

    finished: int
    not_finished: int = Field(description="They stood after their last step by then; some finished later.")
    reached: int = Field(description="At the step at which the view ends.")


class ComparedFinding(_Model):
    """What a comparison concludes, or does not."""

    kind: Literal["completion", "step", "steps", "places"] = Field(
        description="`completion` always comes first, then each `step` that differs; `steps` and `places` "
        "say how many steps, and links and drop-offs, were compared and differ."
    )
    step_id: str | None
    title: str | None
    says: str = Field(description="In a sentence, with its numbers and interval.")
    people: int = Field(description="How many journeys of both sides it is concluded from.")
    p_value: float | None = Field(description="Adjusted for how many were compared; null without a test.")
    significant: bool = Field(description="Whether that is below 0.05.")


class Comparison(_Within):
    """The same walkthrough over two cohorts, each journey as it stood `within_days` days after its beginning.

    Three families of tests are each adjusted by themselves: completion; steps; links and drops together.
    """

    walkthrough: Walkthrough
    says: str = Field(description="What is compared, in a sentence.")
    findings: list[ComparedFinding] = Field(description="What it comes to, the headline first.")
    unknown: list[str] = Field(description="What is not compared, and why.")
    journeys_a: int = Field(description="Journeys of A that are judged, in the view.")
    journeys_b: int
    too_young_a: int = Field(
        description="Journeys of A that began later than is judged, whatever the view shows; they are in "
        "nothing else."
    )
    too_young_b: int
    outcomes_a: OutcomesWithin
    outcomes_b: OutcomesWithin
    completion: CompletionDifference
    steps: list[ComparedStep] = Field(description="In display order, of whole paths.")
    links: list[ComparedLink]
    drops: list[ComparedDrop]
    freshness: Freshness


class SegmentFigures(_Model):
    """The journeys of a segment beside the others.

    `those` are the ones who finished or, with a step, came to it and did not get past it.
    """

    kind: SegmentKind
    key: str | None = Field(description="Of metadata.")
    value: str = Field(description="Empty where there is none; the id of a step.")
    title: str = Field(description="What to show for it.")
    segment: list[str] = Field(
        description="What asks for it, as `segment`. Empty for steps: `did` asks for what is done by now, "
        "here it counts within the days, and before the step."
    )
    rest: list[str] = Field(
        description="What asks for the others: all of them, or the other versions of the same agent."
    )
    journeys: int
    those: int
    share: float | None = Field(description="`those` of `journeys`.")
    rest_journeys: int
    rest_those: int
    rest_share: float | None
    difference: float | None = Field(description="`share` less `rest_share`.")
    difference_low: float | None = Field(description="The difference is at least this, 19 times in 20.")
    difference_high: float | None
    p_value: float | None = Field(
        description="Adjusted for all that were tested; null where a side has fewer than 30 journeys."
    )
    significant: bool = Field(description="Whether that is below 0.05.")
    excess: float | None = Field(
        description="So many journeys fewer would be lost at the others' share; negative: more."
    )
    may_be_outcome: bool = Field(
        description="Whether it may be an outcome of what it is to explain, as steps that were done may be."
    )
    says: str = Field(description="In a sentence, with its numbers and interval.")


class SegmentsRest(_Model):
    """Values that are not listed, with their size."""

    kind: SegmentKind
    key: str | None
    values: int = Field(description="How many; of a key that is left out at least so many.")
    journeys: int | None
    says: str


class Segments(_Within):
    """What tells apart those who stop, or who finish: a difference is no cause."""

    walkthrough: Walkthrough
    step_id: str | None
    title: str | None
    says: str = Field(description="What is compared, in a sentence.")
    journeys: int = Field(description="Journeys that are judged; with a step those that came to it.")
    those: int = Field(description="Those of them who finished or, with a step, did not get past it.")
    share: float | None
    too_young: int = Field(description="Journeys that began later than is judged; they are in nothing else.")
    tested: int
    segments: list[SegmentFigures] = Field(
        description="What is more than chance comes first, of that what loses most; untested ones come last."
    )
    left_out: list[SegmentsRest]
    freshness: Freshness


class BreakdownPart(_Model):
    """The journeys of one value, or all others, with the figure that was asked for."""

    value: str | None = Field(description="Empty where there is none; null: all others together.")
    title: str
    server: list[str] = Field(description="With `version` and `segment`, what asks for these journeys alone.")
    version: list[int]
    segment: list[str]
    journeys: int
    answer: Summary | Funnel | Steps | Trends | Sankey


class Breakdown(_Model):
    """A figure of each part of the journeys: every journey is in one part, or in `unknown`."""

    walkthrough: Walkthrough
    of: BreakdownOf
    by: str | None
    keys: list[str] = Field(description="Without `by`: the keys of metadata that it can name.")
    within_days: int | None = Field(
        description="After how many days journeys of all parts are judged, where the figure judges."
    )
    parts: list[BreakdownPart] = Field(description="The largest first, the others last.")
    others: int = Field(
        description="How many values the others have; at least so many, where there are many."
    )
    unknown: int = Field(
        description="Journeys in no part: they began with a showing, which tells no metadata."
    )
    freshness: Freshness


class Period(_Model):
    """UTC days on which journeys began."""

    since: date | None = Field(description="The first day; null where it is the first there is.")
    until: date = Field(description="The last day.")


class StepStops(_Model):
    """Where people stop: at a step that would be shown to them next."""

    place: int
    step_id: str
    title: str
    reached: int = Field(description="Journeys that completed or skipped it, or stand at it.")
    dropped_here: int
    share: float | None = Field(description="`dropped_here` of `reached`.")
    share_low: float | None = Field(description="The share is at least this, 19 times in 20.")
    share_high: float | None = Field(description="The share is at most this, 19 times in 20.")
    median_ms: float | None = Field(description="Time before it was done, since the step before.")
    p90_ms: float | None
    timed: int = Field(description="Of how many journeys the times are.")


class StepChange(Difference):
    """Of those who reached a step in time, how many did it: A is the earlier period, B the recent one."""

    step_id: str
    title: str


class Finding(_Model):
    """Something that the figures allow to be concluded."""

    kind: Literal[
        "most_stop_here",
        "stop_at_several",
        "loses_largest_share",
        "slowest",
        "completion_changed",
        "step_changed",
    ]
    step_id: str | None
    title: str | None
    says: str = Field(description="The finding in a sentence, with its numbers and period.")
    people: int = Field(description="How many journeys it is concluded from.")
    p_value: float | None = Field(description="Adjusted for how many were compared; null without a test.")
    look_at: str = Field(description="The route that shows the people, or the figures, behind it.")


class Diagnosis(_Model):
    """Where people stop, what is slowest, what changed, and what to look at, as far as can be concluded."""

    walkthrough: Walkthrough
    period: Period = Field(
        description="Whose journeys are judged: they had `active_days` whole days or more, so that each "
        "could have stopped."
    )
    journeys: int
    finished: int
    in_progress: int
    dropped: int
    too_young: int = Field(description="Journeys that began later, and are not judged.")
    steps: list[StepStops] = Field(description="Most `dropped_here` first.")
    times: Sampling
    earlier: Period
    recent: Period
    completion: CompletionDifference | None = Field(
        description="Journeys that were finished within `active_days` of their beginning, in the earlier "
        "period (A) and the recent one (B); null where that cannot be compared."
    )
    changes: list[StepChange] = Field(
        description="Steps done within `active_days` of the journey's beginning, of those reached by then; "
        "those alone that can be compared."
    )
    findings: list[Finding] = Field(description="What to look at first comes first.")
    unknown: list[str] = Field(description="What is not concluded, and why.")
    freshness: Freshness


class Journey(_Model):
    """Somebody's journey, as the view shows it."""

    mcp_server_user_id: str
    mcp_server_id: str
    began_at: int
    last_active_at: int
    steps_done: int
    steps_skipped: int
    outcome: Outcome
    step_ids: list[str] = Field(description="In the order in which they were completed or skipped.")
    skipped_step_ids: list[str] = Field(description="Those of them that were skipped.")
    next_step_id: str | None = Field(
        description="What was shown last and is neither completed nor skipped; null of a finished journey."
    )
    next_step_assumed: bool = Field(
        description="No showing is known: it is the first step that is not passed, in the order of "
        "`version_ended`; in today's where nothing is left of that."
    )
    duration_ms: int = Field(description="From the beginning to the last step.")
    version_began: int = Field(description="The number of the walkthrough's version when it began.")
    version_ended: int = Field(description="That at its last activity.")


class Journeys(_Model):
    """A page of journeys, the last active first."""

    walkthrough: Walkthrough
    journeys: list[Journey]
    next: str | None = Field(description="Given as `after` it leads on; null on the last page.")
    of: int | None = Field(
        description="How many there are on all pages; null where only reading all of them would say."
    )
    freshness: Freshness


class Event(_Model):
    """Something that somebody did, or that was shown to them for the first time."""

    at: int
    since_previous_ms: int | None
    kind: Literal["started", "completed", "skipped", "shown"]
    reason: str | None = Field(description="Why it was skipped, where somebody said so.")
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
    client: str | None = Field(description="The agent, as it calls itself; null where it told nothing.")
    client_version: str | None
    connected_at: int | None
    duration_ms: int
    events: list[Event]
    freshness: Freshness


class VersionStep(_Model):
    """A step of a version."""

    step_id: str
    title: str = Field(description="What it was called then.")
    removed: bool = Field(description="Whether it is no step any more, so that nothing is known of it.")


class VersionChange(_Model):
    """What an edit did to a step; places are from 1, and null where it was none."""

    kind: Kind
    step_id: str
    title: str
    from_place: int | None
    to_place: int | None


class WalkthroughVersion(_Model):
    """The steps of a walkthrough between two edits."""

    number: int
    since: int | None = Field(
        description="When the edit was committed; null of the first version, which counts for all before the "
        "second."
    )
    until: int | None = Field(description="When the next began; null of the newest.")
    made_at: int | None = Field(
        description="As `since`; of the first version when its steps were first noted: what was edited "
        "before is not known."
    )
    says: str = Field(description="What the edit changed, in words.")
    changes: list[VersionChange]
    steps: list[VersionStep] = Field(description="In display order.")
    journeys: int = Field(description="Journeys that began with it; with 0 nobody met it.")


class WalkthroughVersions(_Model):
    """What edits made of a walkthrough, the first version first."""

    walkthrough: Walkthrough
    versions: list[WalkthroughVersion]
    freshness: Freshness


class OverviewRow(_Model):
    """A walkthrough, over all servers or on one of them."""

    walkthrough_id: str
    title: str
    type: str | None
    status: str | None
    steps: int
    finished_means: str = Field(description="When a journey is finished, in words.")
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
    version: str = Field(description="The release of Stepstream that answers.")
    freshness: Freshness


class FinishRule(_Model):
    """When journeys of a walkthrough count as finished, in every figure of it."""

    walkthrough_id: str
    finished_means: str = Field(description="The rule in words, with the steps as they are now.")
    goal_step_ids: list[str] = Field(description="As they were set.")
    optional_step_ids: list[str] = Field(description="As they were set.")
    end_step_ids: list[str] = Field(description="As they were set.")


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
    classes_left_out: int = Field(
        description="How many classes more there are, refused before those of `refused`; up to 10,000."
    )
    sources_left_out: int = Field(
        description="How many more sources send events of this organization alone; up to 10,000."
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
