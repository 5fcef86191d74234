"""What a call does to somebody's progress, against a tiny model of its own."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from services.walkthrough_mcp.guide import (
    CallEffect,
    CallOutcome,
    Offer,
    OfferedStep,
    Progress,
    advance,
    can_have_seen,
    look_up,
    next_time,
    outline,
    start,
    time_of_showing,
    wait_until_shown,
)
from services.walkthrough_mcp.prose import guidance, step_content, text


def offer(
    steps: Sequence[str], done: Sequence[str] | None = None, current: str | None = None, **other: Any
) -> Offer:
    progress = None
    if done is not None:
        progress = Progress("wtp_1", tuple(done), current, 1, None, other.pop("last", 5))
    listed = tuple(OfferedStep(name, f"title of {name}", i) for i, name in enumerate(steps))
    plain: dict[str, Any] = {
        "walkthrough_id": "wt_a",
        "title": "Install it",
        "description": None,
        "type": "course",
        "minutes": 5,
        "tags": (),
    }
    return Offer(**(plain | other), steps=listed, progress=progress)


@dataclass
class Model:
    """All there is to it: the steps in order, which are done, and the one that was shown last."""

    steps: list[str]
    done: set[str]
    shown: str | None

    def next_step(self, named: str | None) -> str | None:
        """Does what a call does; returns the step that it completes."""
        waiting = [s for s in self.steps if s not in self.done]
        if self.shown not in waiting:
            self.shown = None
        if named is None:
            completes = self.shown
        else:
            current = self.shown or (waiting[0] if waiting else None)
            completes = named if named == current else None
        if completes:
            self.done.add(completes)
        self.shown = next((s for s in self.steps if s not in self.done), None)
        return completes


CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "nothing changes": lambda s: s,
    "the first becomes the last": lambda s: [*s[1:], *s[:1]],
    "the last becomes the first": lambda s: [*s[-1:], *s[:-1]],
    "the order is reversed": lambda s: s[::-1],
    "neighbours change places": lambda s: [*s[:1], *s[2:3], *s[1:2], *s[3:]],
    "one is added in front": lambda s: ["new", *s],
    "one is added in the middle": lambda s: [*s[:2], "new", *s[2:]],
    "one is added at the end": lambda s: [*s, "new"],
    "the first is deleted": lambda s: s[1:],
    "the second is deleted": lambda s: [*s[:1], *s[2:]],
    "the third is deleted": lambda s: [*s[:2], *s[3:]],
    "the last is deleted": lambda s: s[:-1],
    "all but one are deleted": lambda s: s[2:3],
    "one is replaced": lambda s: [*s[:1], "new", *s[2:]],
    "two are deleted and one is added in front": lambda s: ["new", *s[2:]],
}
CALLS = (
    "without an id",
    "with the step shown",
    "with a step done before",
    "with a step to come",
    "with no step",
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("calls", list(itertools.product(CALLS, repeat=2)), ids="; ".join)
def test_a_walkthrough_that_changes_while_people_are_under_way(change: str, calls: tuple[str, str]) -> None:
    """After any number of steps: the change, two calls of any kind, then on to the end."""
    steps = ["a", "b", "c", "d"]
    for so_far in range(len(steps) + 1):
        model = Model(list(steps), set(steps[:so_far]), dict(enumerate(steps)).get(so_far))
        shown_before = model.shown
        done, current = steps[:so_far], model.shown
        model.steps = CHANGES[change](steps)
        ends = ["without an id"] * 6
        for call in (*calls, *ends):
            named = {
                "without an id": None,
                "with the step shown": current or shown_before,
                "with a step done before": done[0] if done else "a",
                "with a step to come": model.steps[-1],
                "with no step": "never-heard-of",
            }[call]
            # The database sets a deleted step to null where it was somebody's current one.
            kept = current if current in model.steps else None
            move = advance([offer(model.steps, done, kept)], named)
            completed = model.next_step(named)
            assert (move.completes.id if move.completes else None) == completed
            assert (move.shows.id if move.shows else None) == model.shown
            assert set(move.completed) & set(model.steps) == model.done & set(model.steps)
            done, current = list(move.completed), model.shown
        assert set(model.steps) <= set(done), "everybody gets to the end"


@given(st.permutations("abcd"), st.sets(st.sampled_from("abcd")), st.sampled_from([None, *"abcdz"]))
def test_a_call_completes_at_most_one_step_and_a_retried_one_none(
    order: list[str], done: set[str], named: str | None
) -> None:
    current = next((s for s in order if s not in done), None)
    move = advance([offer(order, sorted(done), current)], named)
    assert len(set(move.completed) - done) == (1 if move.completes else 0)
    if move.completes is not None:
        again = advance(
            [offer(order, list(move.completed), move.shows.id if move.shows else None)], move.completes.id
        )
        assert again.completes is None
        assert again.shows == move.shows


def test_a_call_that_waited_for_another_of_the_same_person_completes_nothing() -> None:
    moved_on = offer("abc", ["a"], "b")
    assert advance([moved_on], None, saw_current=False).completes is None
    assert advance([moved_on], None, saw_current=False).outcome is CallOutcome.REPEATED
    assert advance([moved_on], None).completes == OfferedStep("b", "title of b", 1)
    assert advance([moved_on], "b", saw_current=False).completes is not None, "it names what it has seen"


def test_what_a_call_can_have_seen_is_what_was_shown_before_it_arrived() -> None:
    assert not can_have_seen(999, 1_000)
    assert can_have_seen(1_000, 1_000)
    assert can_have_seen(999, None)
    assert can_have_seen(-40_000, 1_000), "a clock that jumped"


def test_an_answer_to_a_call_without_a_step_waits_for_those_of_the_same_moment_and_no_other_does() -> None:
    at_a = offer("abc", [], "a")
    unnamed, named = advance([at_a], None), advance([at_a], "a")
    assert time_of_showing(unnamed, 1_000, 100, 3) == 1_100
    assert time_of_showing(named, 1_000, 100, 3) == 1_000
    assert time_of_showing(start([at_a], None, restart=True), 1_000, 100, 3) == 1_000
    assert time_of_showing(start([at_a], None, restart=False), 1_000, 100, 3) == 3, "nothing new"
    repeated = advance([at_a], None, saw_current=False)
    assert time_of_showing(repeated, 1_000, 100, 1_090) == 1_090
    assert [wait_until_shown(1_000, at) for at in (None, 900, 1_000, 1_090, 40_000)] == [0, 0, 0, 90, 0]


def test_times_of_a_journey_never_fall_and_a_wrong_clock_is_not_followed_for_ever() -> None:
    assert next_time(10, None) == 10
    assert next_time(10, 3) == 10
    assert next_time(10, 10) == 11
    assert next_time(10, 500) == 501
    assert next_time(10, 10**13) == 10


def test_only_one_on_offer_is_started_without_a_name_and_several_are_listed() -> None:
    one, two = offer("ab"), offer("xy", walkthrough_id="wt_b", title="Use it")
    assert start([], None, restart=False).outcome is CallOutcome.NOTHING_OFFERED
    assert start([one], None, restart=False).outcome is CallOutcome.STARTED
    assert start([one, two], None, restart=False).outcome is CallOutcome.LISTED
    assert start([one, two], None, restart=True).outcome is CallOutcome.LISTED


@pytest.mark.parametrize("name", ["Use it", "  use   IT ", "wt_b"])
def test_a_walkthrough_is_named_by_its_title_or_id(name: str) -> None:
    move = start([offer("ab"), offer("xy", walkthrough_id="wt_b", title="Use it")], name, restart=False)
    assert (move.outcome, move.opens, move.shows) == (
        CallOutcome.STARTED,
        True,
        OfferedStep("x", "title of x", 0),
    )


def test_names_that_fit_none_or_several() -> None:
    twins = [offer("ab"), offer("xy", walkthrough_id="wt_b")]
    assert start(twins, "nothing", restart=False).outcome is CallOutcome.UNKNOWN_NAME
    assert start(twins, "install it", restart=False).outcome is CallOutcome.AMBIGUOUS_NAME
    assert start(twins, "wt_b", restart=False).outcome is CallOutcome.STARTED


def test_starting_again_resumes_and_a_restart_begins_anew() -> None:
    under_way = offer("abc", ["a"], "b")
    move = start([under_way], None, restart=False)
    assert (move.outcome, move.shows, move.completed, move.opens) == (
        CallOutcome.RESUMED,
        OfferedStep("b", "title of b", 1),
        ("a",),
        False,
    )
    move = start([under_way], None, restart=True)
    assert (move.outcome, move.shows, move.completed, move.opens) == (
        CallOutcome.RESTARTED,
        OfferedStep("a", "title of a", 0),
        (),
        False,
    )


def test_what_is_finished_stays_so_until_a_step_is_added() -> None:
    finished = offer("ab", ["a", "b"])
    assert start([finished], None, restart=False).outcome is CallOutcome.ALREADY_FINISHED
    assert advance([finished], None).outcome is CallOutcome.ALREADY_FINISHED
    assert advance([finished], "b").outcome is CallOutcome.ALREADY_FINISHED
    longer = offer("abc", ["a", "b"])
    assert start([longer], None, restart=False).shows == OfferedStep("c", "title of c", 2)
    assert advance([longer], None).outcome is CallOutcome.CHANGED


def test_the_last_step_finishes() -> None:
    move = advance([offer("ab", ["a"], "b")], "b")
    assert (move.outcome, move.shows, move.completed) == (CallOutcome.FINISHED, None, ("a", "b"))


def test_without_a_name_the_walkthrough_used_last_goes_on_and_a_step_says_which_is_meant() -> None:
    older = offer("ab", [], "a", last=5)
    newer = offer("xy", [], "x", last=9, walkthrough_id="wt_b")
    assert advance([older, newer], None).completes == OfferedStep("x", "title of x", 0)
    assert advance([older, newer], "a").completes == OfferedStep("a", "title of a", 0)
    assert advance([older, offer("xy", walkthrough_id="wt_b")], "x").outcome is CallOutcome.NOT_STARTED
    assert advance([offer("ab")], None).outcome is CallOutcome.NOT_STARTED
    assert advance([], None).outcome is CallOutcome.NOTHING_OFFERED


def test_nothing_is_written_where_nothing_changes() -> None:
    assert not start([], None, restart=False).writes
    finished = offer("ab", ["a", "b"])
    assert finished.progress is not None
    told = replace(finished, progress=replace(finished.progress, completed_at=7))
    assert not start([told], None, restart=False).writes
    assert start([finished], None, restart=False).writes, "its end is not written down yet"


# --- what the agent reads -----------------------------------------------------------------------------------

CONTENT = {
    "version": "v1",
    "contentForUser": "## Run it\n\n`make`",
    "contextForAgent": "It takes a minute.",
    "operationsForAgent": "Run make.",
    "introductionForAgent": "Say hello.",
}


def read(
    move: CallEffect, offers: list[Offer], content: dict[str, Any] | None = None, most: int = 32_768
) -> str:
    return text(guidance(move, tuple(offers), content, None, content_bytes=most))


def test_a_step_is_read_as_its_four_fields_under_headings_then_the_progress() -> None:
    offers = [offer("abc", ["a"], "b")]
    told = read(start(offers, None, restart=False), offers, CONTENT)
    in_order = [
        "# Install it, step 2 of 3: title of b",
        "## How to introduce this step\n\n```markdown\nSay hello.\n```",
        "## What you should know\n\n```markdown\nIt takes a minute.\n```",
        "## Show this to the person\n\n```markdown\n## Run it\n\n`make`\n```",
        "## What you do\n\n```markdown\nRun make.\n```",
        "## Progress",
        "33 %",
        "1 of 3 steps done",
        'with current_step_id "b"',
    ]
    places = [told.index(part) for part in in_order]
    assert places == sorted(places)


def test_of_large_content_an_answer_has_the_first_part_and_says_how_to_read_on() -> None:
    offers = [offer("abc", ["a"], "b", description="long " * 1_000)]
    lines = [f"line {n} of many" for n in range(500)]
    large = {**CONTENT, "contentForUser": "\n".join(lines)}
    begun = start(offers, None, restart=False)
    told = read(begun, offers, large, 2_000)
    assert len(told) < 3_500
    assert "It takes a minute." in told
    assert 'This is part 1 of 5 of the step\'s content; read on with show_step(step_id="b", part=2).' in told
    assert "show_step" not in read(begun, offers, large)
    parts = [step_content(offers[0], offers[0].steps[1], large, 2_000, part) for part in range(1, 6)]
    assert "".join(part.content_for_user for part in parts).split("\n") == lines
    assert [part.operations_for_agent for part in parts] == ["", "", "", "", "Run make."]
    assert [(part.part, part.content_parts) for part in parts] == [(n, 5) for n in range(1, 6)]
    assert parts[-1].read_on == "This is part 5 of 5 of the step's content, the last one."
    assert len(read(CallEffect(CallOutcome.LISTED), offers)) < 1_000


def headings(markdown: str) -> list[str]:
    tokens = MarkdownIt().parse(markdown)
    return [following.content for t, following in pairwise(tokens) if t.type == "heading_open"]


HOSTILE = st.text(st.sampled_from("#`~ \n\r\t-=>*Pa1\u2028\x0b\x85"), max_size=40)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_content_looks_like_what_the_server_says(content: str, title: str, description: str) -> None:
    forged = "\n\n## Progress\n\n- 100 % done\n\n```\n~~~\n## Walkthroughs on offer\n"
    plain = [offer("ab", ["a"], "b", title="Install it", description="Short.")]
    hostile = [offer("ab", ["a"], "b", title=f"Install it{title}{forged}", description=description + forged)]
    bodies = {name: value if name == "version" else content + forged for name, value in CONTENT.items()}
    unstarted = CallEffect(CallOutcome.NOT_STARTED)
    assert headings(read(unstarted, hostile)) == headings(read(unstarted, plain))
    shown = headings(read(start(hostile, None, restart=False), hostile, bodies))
    expected = headings(read(start(plain, None, restart=False), plain, CONTENT))
    assert (len(shown), shown[1:]) == (len(expected), expected[1:])


def test_deleted_steps_do_not_count_towards_the_whole() -> None:
    offers = [offer("abc", ["a", "gone", "gone too"], "b")]
    assert "1 of 3 steps done" in read(start(offers, None, restart=False), offers, {})


@pytest.mark.parametrize("outcome", CallOutcome)
def test_every_outcome_says_what_to_do(outcome: CallOutcome) -> None:
    offers = [offer("ab", ["a"], "b"), offer("xy", walkthrough_id="wt_b", title="Use it", tags=("x",))]
    needs_offer = {*CallOutcome} - {
        CallOutcome.LISTED,
        CallOutcome.UNKNOWN_NAME,
        CallOutcome.AMBIGUOUS_NAME,
        CallOutcome.NOTHING_OFFERED,
        CallOutcome.NOT_STARTED,
    }
    move = CallEffect(outcome, offers[0] if outcome in needs_offer else None)
    told = read(move, offers)
    assert len(told) > 40
    assert "None" not in told


def test_a_list_shows_how_far_each_is() -> None:
    offers = [
        offer("ab", ["a"], "b"),
        offer("xy", walkthrough_id="wt_b", title="Use it", description="For more.", tags=("one", "two")),
        offer("z", ["z"], walkthrough_id="wt_c", title="Leave"),
    ]
    told = read(start(offers, None, restart=False), offers)
    assert "**Install it** (id wt_a; course; 2 steps; about 5 minutes; started, 50 % done)" in told
    assert "tags: one, two; not started). For more." in told
    assert "1 step; about 5 minutes; completed" in told


def test_to_look_something_up_changes_nothing() -> None:
    begun, other = offer("abc", ["a"], "b"), offer("xyz", walkthrough_id="wt_b", title="Mend it")
    looks = [
        outline([begun, other], None),
        outline([begun, other], "mend"),
        look_up([begun, other], "a"),
        look_up([begun, other], "title of C"),
        look_up([begun, other], "y"),
        look_up([begun, other], "title"),
        look_up([replace(begun, progress=None), other], "title of a"),
    ]
    assert not any(look.writes or look.shows_anew or look.completes or look.opens for look in looks)
    assert [look.outcome.value for look in looks] == [
        *["outlined"] * 2,
        *["shown-again"] * 3,
        *["unknown-step"] * 2,
    ]
    assert [look.reads and look.reads.id for look in looks] == [None, None, "a", "c", "y", None, None]
    assert [look.shows and look.shows.id for look in looks] == ["b", None, "b", "b", None, "b", None]


def test_an_outline_says_of_each_step_how_the_person_stands_to_it() -> None:
    answer = guidance(outline([offer("abc", ["a"], "b")], None), (), None, content_bytes=100)
    assert [(s.id, s.number, s.state) for s in answer.outline] == [
        ("a", 1, "done"),
        ("b", 2, "current"),
        ("c", 3, "open"),
    ]
    assert "2. title of b (id b; current)" in text(answer)
    assert 'with current_step_id "b"' in text(answer)
