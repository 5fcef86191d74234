"""Whether database, topic and groups agree, as seen in one look."""

import pytest

from services.consumers.agreement import agreement
from services.consumers.lag import AGGREGATOR, GROUPS, RECORDER, Group
from services.consumers.lag import GroupPosition as Seen
from services.consumers.positions import Position
from services.consumers.topic import TopicLog


def problems(committed: int | None, end: int, stored: int) -> list[str]:
    groups = [
        Group(service, service, "Stable", {}, [Seen(0, 0, committed, end, max(0, end - (committed or 0)))])
        for service in GROUPS
    ]
    return list(
        agreement(groups, TopicLog(), {service: {0: Position(stored, stored)} for service in GROUPS}).problems
    )


@pytest.mark.parametrize(("committed", "end", "stored"), [(90, 100, 100), (100, 100, 130), (100, 100, 100)])
def test_what_was_read_since_the_end_was_seen_is_no_cut(committed: int, end: int, stored: int) -> None:
    assert problems(committed, end, stored) == []


@pytest.mark.parametrize("committed", [130, None])
def test_an_end_before_what_was_read_is_a_problem(committed: int | None) -> None:
    found = problems(committed, 100, 130)
    assert len(found) == 2
    assert all("the topic ends at 100: it was cut" in problem for problem in found)


def test_what_was_committed_and_is_not_in_the_database_is_a_problem() -> None:
    assert [problem.split(" has committed")[0] for problem in problems(130, 200, 100)] == [
        f"partition 0: {RECORDER}",
        f"partition 0: {AGGREGATOR}",
    ]
