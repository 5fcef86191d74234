"""The pure parts of the nemesis: its plan, and a checker that finds what it should find."""

import random
from typing import Any

import pytest

from tests.nemesis.checker import (
    Finding,
    check_answers,
    check_erased,
    check_gone,
    check_led,
    check_rows,
    check_told,
)
from tests.nemesis.faults import FAULTS
from tests.nemesis.faults.kafka import _BATCH, truncate
from tests.nemesis.history import Answer, Copy, Gone, History, Key, Kind, Loss, Rank, Row
from tests.nemesis.plan import draw


def event(name: str, user: str = "ann", step: str = "a", at: int = 1000) -> dict[str, Any]:
    return {
        "type": "step-completed",
        "event_id": name,
        "mcp_server_user_id": user,
        "walkthrough_id": "wt",
        "step_id": step,
        "mcp_server_id": "srv",
        "mcp_server_session_id": f"s_{user}",
        "completed_at": at,
    }


def row(name: str, user: str = "ann", at: int = 1000) -> Row:
    return Row(Rank(at, name), "wt", "srv", f"s_{user}")


def key(user: str = "ann", step: str = "a") -> Key:
    return Key(Kind.STEP, user, step)


def copy(offset: int, at: float = 10.0, partition: int = 0) -> Copy:
    return Copy("topic", partition, offset, at)


@pytest.fixture
def history() -> History:
    """Ann did a and b, and Bob a; all of it acknowledged at 10 s."""
    made = History()
    for offset, its in enumerate([event("1"), event("2", step="b"), event("3", "bob")]):
        made.send(its, 9.9)
        made.acknowledge(its["event_id"], copy(offset))
    return made


def rows() -> dict[Key, Row]:
    return {key(): row("1"), key(step="b"): row("2"), key("bob"): row("3", "bob")}


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


# --- rows -------------------------------------------------------------------------------------------------


def test_what_is_exact_is_found_exact(history: History) -> None:
    assert check_rows(history, rows(), []) == []


def test_a_lost_event_is_found_with_its_place(history: History) -> None:
    there = rows()
    del there[key("bob")]
    (finding,) = check_rows(history, there, [])
    assert finding.kind == "lost"
    assert "topic/0@2" in str(finding)


def test_a_lost_earlier_event_is_found_though_a_later_one_is_there(history: History) -> None:
    history.send(event("4", at=500), 10.0)
    assert check_rows(history, rows(), []) == []  # it may not have been acknowledged
    history.acknowledge("4", copy(3))
    assert kinds(check_rows(history, rows(), [])) == ["lost"]


def test_at_the_same_time_the_smaller_id_wins(history: History) -> None:
    history.send(event("0"), 10.0)
    history.acknowledge("0", copy(3))
    assert kinds(check_rows(history, rows(), [])) == ["lost"]
    assert check_rows(history, rows() | {key(): row("0")}, []) == []


def test_what_nobody_sent_is_found(history: History) -> None:
    assert kinds(check_rows(history, rows() | {key("eve"): row("9", "eve")}, [])) == ["unknown"]


def test_a_row_that_is_not_as_it_was_sent_is_found(history: History) -> None:
    assert kinds(check_rows(history, rows() | {key(): row("1")._replace(server="other")}, [])) == ["altered"]


def test_what_a_fault_took_away_is_excused_where_it_is_named(history: History) -> None:
    there = rows()
    del there[key("bob")]
    named = [Gone("topic", 0, "cut off", 2, 3)]
    assert kinds(check_rows(history, there, named)) == ["lost"]  # no fault took anything away
    history.losses.append(Loss("tail", 11.0))
    assert kinds(check_rows(history, there, [])) == ["lost"]  # it is not named
    assert kinds(check_rows(history, there, [Gone("topic", 1, "cut off", 2, 3)])) == ["lost"]
    assert kinds(check_rows(history, there, [Gone("topic", 0, "cut off", 1, 2)])) == ["lost"]
    assert check_rows(history, there, named) == []
    assert check_rows(history, there, [Gone("topic", 0, "made anew", 0, None)]) == []


def test_what_was_acknowledged_after_the_fault_is_not_excused(history: History) -> None:
    history.losses.append(Loss("tail", 11.0))
    history.send(event("4", "cyd"), 12.0)
    history.acknowledge("4", copy(2, at=12.0))  # the offset is used again
    assert kinds(check_rows(history, rows(), [Gone("topic", 0, "cut off", 2, 3)])) == ["lost"]


def test_an_event_with_a_second_copy_is_owed_when_the_first_is_gone(history: History) -> None:
    history.losses.append(Loss("tail", 11.0))
    history.acknowledge("3", copy(7, at=12.0))
    there = rows()
    del there[key("bob")]
    assert kinds(check_rows(history, there, [Gone("topic", 0, "cut off", 2, 3)])) == ["lost"]


def test_nothing_may_be_named_as_gone_where_nothing_is(history: History) -> None:
    named = [Gone("topic", 0, "cut off", 2, 3)]
    assert kinds(check_gone(history, named)) == ["not gone"]
    history.losses.append(Loss("tail", 11.0, {0: 3}))
    assert check_gone(history, named) == []
    assert kinds(check_gone(history, named, {("3", 0, 2)})) == ["not gone"]  # it is there
    there = rows()
    del there[key("bob")]
    assert kinds(check_rows(history, there, named)) == ["lost"]  # and owed
    assert check_gone(history, named, {("9", 0, 2), ("2", 0, 1)}) == []  # another one is at its place


def test_what_was_sent_again_to_the_place_that_it_was_cut_from_was_gone_and_is_owed(history: History) -> None:
    """A relay whose database was killed sends its rows again: the first comes to where it had been."""
    named = [Gone("topic", 0, "cut", 2, None)]
    history.losses.append(Loss("tail", 11.0, {0: 2}))
    history.acknowledge("3", copy(2, at=12.0))
    assert check_gone(history, named, {("3", 0, 2)}) == []
    assert check_rows(history, rows(), named) == []
    there = rows()
    del there[key("bob")]
    assert kinds(check_rows(history, there, named)) == ["lost"]


def test_a_step_of_an_agent_whose_event_is_in_the_topic_has_to_be_done(history: History) -> None:
    history.led |= {("s", "ann", "a"), ("s", "ann", "b"), ("forgotten", "ann", "c")}
    assert check_led(history, {("s", "ann")}, {("ann", "a"), ("ann", "b")}) == []
    assert kinds(check_led(history, {("s", "ann")}, {("ann", "a")})) == ["led and lost"]


def test_a_step_that_an_agent_was_told_is_done_has_to_be_done(history: History) -> None:
    history.told |= {("ann", "a"), ("ann", "b")}
    assert check_told(history, {("ann", "a"), ("ann", "b"), ("bob", "a")}) == []
    assert kinds(check_told(history, {("ann", "a")})) == ["told and lost"]


def test_what_refers_to_something_deleted_is_not_there(history: History) -> None:
    history.deleted |= {"bob", "b"}
    assert kinds(check_rows(history, rows(), [])) == ["unknown", "unknown"]
    assert check_rows(history, {key(): row("1")}, []) == []
    history.answers.append(answer(a=1, b=0))
    assert check_answers(history, []) == []


def test_of_erased_people_nothing_may_be_left(history: History) -> None:
    history.erase("ann", copy(5))
    assert check_rows(history, {key("bob"): row("3", "bob")}, []) == []
    assert kinds(check_erased(history, {"ann": 2, "bob": 1}, [])) == ["not erased"]
    assert check_erased(history, {"ann": 0}, []) == []
    history.losses.append(Loss("tail", 11.0))
    assert check_erased(history, {"ann": 2}, [Gone("topic", 0, "cut off", 5, 6)]) == []


def test_whose_erasure_is_not_known_to_be_in_kafka_is_not_judged(history: History) -> None:
    history.erasing.add("ann")
    assert check_erased(history, {"ann": 2}, []) == []
    assert check_rows(history, {key("bob"): row("3", "bob")}, []) == []


# --- answers ----------------------------------------------------------------------------------------------


def answer(current: bool | None = True, **steps: int) -> Answer:
    return Answer("wt", 19.0, 20.0, 19.5, current, max(steps.values(), default=0), steps)


def test_a_right_answer_is_found_right(history: History) -> None:
    history.answers.append(answer(a=2, b=1))
    assert check_answers(history, []) == []


def test_an_answer_that_misses_an_event_is_wrong_only_where_it_is_called_current(history: History) -> None:
    history.answers.append(answer(None, a=1, b=1))
    history.answers.append(answer(False, a=1, b=1))
    assert check_answers(history, []) == []
    history.answers.append(answer(a=1, b=1))
    assert kinds(check_answers(history, [])) == ["wrong and called current"] * 2  # journeys, and step a


def test_an_answer_that_counts_twice_is_wrong(history: History) -> None:
    history.answers.append(answer(a=2, b=2))
    assert kinds(check_answers(history, [])) == ["wrong and called current"]
    history.answers[:] = [answer(a=2, b=1, c=1)]
    assert kinds(check_answers(history, [])) == ["wrong and called current"]


def test_what_was_acknowledged_just_before_the_look_may_be_counted_or_not(history: History) -> None:
    history.send(event("4", "cyd"), 19.3)
    history.acknowledge("4", copy(3, at=19.4))
    history.answers += [answer(a=2, b=1), answer(a=3, b=1)]
    assert check_answers(history, []) == []


def test_what_is_gone_and_named_need_not_be_counted(history: History) -> None:
    history.losses.append(Loss("tail", 11.0))
    history.answers.append(answer(a=1, b=1))
    assert check_answers(history, [Gone("topic", 0, "cut off", 2, 3)]) == []


# --- plans ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_plan() -> None:
    plans = [draw(7, n, FAULTS) for n in range(30)]
    assert plans == [draw(7, n, FAULTS) for n in range(30)]
    assert plans[0].chance.random() == plans[0].chance.random()
    assert [p.faults for p in plans] != [draw(8, n, FAULTS).faults for n in range(30)]


def test_faults_are_drawn_alone_and_in_pairs_that_go_together() -> None:
    plans = [draw(seed, n, FAULTS) for seed in range(40) for n in range(20)]
    assert {len(plan.faults) for plan in plans} == {1, 2}
    assert {p.fault for plan in plans for p in plan.faults} == set(FAULTS)
    for plan in plans:
        touched = [FAULTS[p.fault].touches for p in plan.faults]
        assert len(touched) == 1 or not touched[0] & touched[1]


def test_named_faults_and_pairs_are_drawn_as_named() -> None:
    titles = {draw(1, n, FAULTS, ["kill-relay", "broker-paused+kill-recorder"]).title for n in range(20)}
    assert titles == {"kill-relay", "broker-paused+kill-recorder"}


def test_a_plan_says_what_plays_it_again() -> None:
    assert draw(1, 4, FAULTS).command == "python -m tests.nemesis --seed 1 --round 4 --rounds 1"
    again = draw(1, 4, FAULTS, ["kill-relay"])
    assert again.command == "python -m tests.nemesis --seed 1 --round 4 --rounds 1 --faults kill-relay"


def test_each_fault_says_what_it_is() -> None:
    assert len(FAULTS) >= 20
    for name, fault in FAULTS.items():
        assert name == fault.name
        assert fault.what
        fault.draw(random.Random(1))


def test_the_tail_of_a_log_is_cut_off_at_a_batch(tmp_path: Any) -> None:
    folder = tmp_path / "topic-0"
    folder.mkdir()
    batch = [_BATCH.pack(offset, 20) + bytes(20) for offset in (0, 3, 5)]
    log = folder / "00000000000000000000.log"
    log.write_bytes(b"".join(batch))
    (folder / "00000000000000000000.index").write_bytes(b"x")
    assert truncate(folder, 3) == (2, 3)
    assert log.read_bytes() == batch[0]
    assert [file.name for file in folder.iterdir()] == [log.name]
    assert truncate(folder, None) == (0, None)
