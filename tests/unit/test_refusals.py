"""What PostgreSQL refuses for long makes a service not alive; what was refused once does not."""

import logging

import pytest

from services.runtime.refusals import SIGN_IN, Refusals


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(bound: float = 300) -> tuple[Refusals, Clock]:
    clock = Clock()
    return Refusals(bound, clock), clock


def refuse(refusals: Refusals, clock: Clock, until: float, every: float = 5) -> None:
    while clock.now <= until:
        refusals.refused(SIGN_IN, "password authentication failed")
        clock.now += every


def test_what_is_refused_for_the_whole_time_is_a_problem_that_says_why() -> None:
    refusals, clock = make()
    refuse(refusals, clock, until=295)
    assert refusals.problem() is None
    refuse(refusals, clock, until=300)
    assert refusals.problem() == "password authentication failed (refused for more than 300 s)"


def test_what_works_in_between_begins_anew() -> None:
    refusals, clock = make()
    refuse(refusals, clock, until=200)
    refusals.worked("another statement")
    refusals.worked(SIGN_IN)
    refuse(refusals, clock, until=400)
    assert refusals.problem() is None
    refuse(refusals, clock, until=510)
    assert refusals.problem()
    refusals.worked(SIGN_IN)
    assert refusals.problem() is None


def test_refusals_far_apart_do_not_belong_together() -> None:
    refusals, clock = make()
    refusals.refused("a statement", "permission denied")
    clock.now = 1_000
    refusals.refused("a statement", "permission denied")
    assert refusals.problem() is None


def test_without_a_bound_nothing_is_a_problem() -> None:
    refusals, clock = make(0)
    refuse(refusals, clock, until=10_000)
    assert refusals.problem() is None


def test_a_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    refusals, clock = make()
    with caplog.at_level(logging.ERROR, logger="stepstream.database"):
        refuse(refusals, clock, until=100)
    assert [r.message for r in caplog.records] == [
        "password authentication failed; unless that changes, the service ends in 300 s"
    ]
