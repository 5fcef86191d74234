"""The Python client judges as the server does, and its typed events are those of the contract."""

import copy
import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepstream_client
from schemas import EventError, decode
from schemas.events import MAX_TIME_MS
from schemas.generate import FOLDER
from stepstream_client import (
    InvalidEvent,
    StepCompleted,
    StepShown,
    StepSkipped,
    WalkthroughStarted,
    validate,
)
from stepstream_client.events import prepare, prepare_for_kafka
from tests.support.world import completed, corrected, shown, skipped, started
from tests.unit.test_events import json_values

EXAMPLES = sorted(file for file in FOLDER.glob("examples/*/*.json") if file.name != "reasons.json")
REASONS = json.loads((FOLDER / "examples" / "invalid" / "reasons.json").read_text("utf-8"))
PLATFORM = {"mcp_server_user_id": "u", "mcp_server_id": "srv", "mcp_server_session_id": "s"}


def judged_by_both(value: bytes, now: int) -> tuple[str, tuple[str, ...], str]:
    """The verdict on which server and client agree: class, first field, text; empty for an event."""
    try:
        wanted = ("", (), repr(vars(decode(value, now))))
    except EventError as error:
        wanted = (str(error.rejection), error.fields[:1], str(error))
    try:
        got = ("", (), repr(vars(validate(value, now))))
    except InvalidEvent as error:
        told = str(error).removeprefix(f"{error.rejection}: ")
        got = (error.rejection, (error.field,) if error.field else (), told[: len(wanted[2])])
        got = got if error.advice else ("", (), "no advice")
    assert got == wanted
    return wanted


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_each_example_is_judged_as_the_server_does(file: Path) -> None:
    reason = REASONS.get(file.stem, {}) if file.parent.name == "invalid" else {}
    rejection, _, told = judged_by_both(file.read_bytes(), int(reason.get("now_ms", MAX_TIME_MS)))
    assert rejection == reason.get("class", "")
    assert reason.get("message", "") in told


@given(
    st.sampled_from(
        [
            *(completed("u", "a", 1), started("u", 1), skipped("u", "a", 1), shown("u", "a", 1)),
            corrected("u", "a", 3, 2, 1),
        ]
    ),
    st.dictionaries(
        st.sampled_from([*corrected("u", "a", 3, 2, 1), "started_at", "reason", "version", "metadata", "x"]),
        json_values,
        max_size=3,
    ),
)
def test_events_that_are_nearly_right_are_judged_as_the_server_does(
    event: dict[str, Any], changes: dict[str, Any]
) -> None:
    judged_by_both(json.dumps(event | changes).encode(), MAX_TIME_MS)


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_judged_as_the_server_does(value: bytes) -> None:
    judged_by_both(value, MAX_TIME_MS)


def test_a_typed_event_is_one_of_the_contract_and_says_now_and_a_new_id_by_itself() -> None:
    before = int(datetime.now(UTC).timestamp() * 1000)
    events = [
        WalkthroughStarted(walkthrough_id="wt", **PLATFORM),
        StepShown(walkthrough_id="wt", step_id="a", version="v1", **PLATFORM),
        StepSkipped(walkthrough_id="wt", step_id="a", reason="later", **PLATFORM),
        StepCompleted(walkthrough_id="wt", step_id="a", metadata={"a": [1, "é"]}, **PLATFORM),
    ]
    after = int(datetime.now(UTC).timestamp() * 1000)
    for event in events:
        read = decode(event.prepared.value, after)
        assert read.type == event.TYPE
        assert before <= read.happened_at == event.happened_at <= after
        given_ = event.as_dict()
        assert {n: getattr(read, n) for n in given_ if n != "metadata"} == {
            n: v for n, v in given_.items() if n != "metadata"
        }
    assert decode(events[3].prepared.value, after).metadata == '{"a":[1,"é"]}'  # type: ignore[union-attr]
    assert len({event.event_id for event in events}) == 4
    assert all(event.event_id[14] == "7" for event in events)


def test_a_time_with_its_zone_is_turned_into_milliseconds_and_one_without_is_refused() -> None:
    at = datetime(2026, 11, 24, 10, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=1)))
    event = StepCompleted(walkthrough_id="wt", step_id="a", completed_at=at, **PLATFORM)
    assert event.completed_at == event.happened_at == 1_795_510_800_123
    with pytest.raises(InvalidEvent, match="no time zone") as caught:
        StepCompleted(walkthrough_id="wt", step_id="a", completed_at=at.replace(tzinfo=None), **PLATFORM)
    assert (caught.value.rejection, caught.value.field) == ("invalid-event", "completed_at")


@pytest.mark.parametrize(
    ("changes", "rejection", "field", "told"),
    [
        ({"completed_at": 1_764_000_000}, "too-early", "completed_at", "seconds instead of milliseconds"),
        ({"completed_at": 2**52}, "invalid-event", "completed_at", "less than or equal"),
        ({"step_id": ""}, "invalid-event", "step_id", "at least 1 character"),
        ({"step_id": 17}, "invalid-event", "step_id", "ids are text, in quotes"),
        ({"event_id": "1"}, "invalid-event", "event_id", "no UUID"),
        ({"metadata": {"a": "\0"}}, "invalid-event", "metadata", "NUL"),
        ({"metadata": {"a": float("inf")}}, "invalid-event", "metadata", "not finite"),
        ({"metadata": {"a": datetime.now(UTC)}}, "invalid-event", None, "cannot be written as JSON"),
        ({"metadata": {"a": "\ud800"}}, "not-json", None, "surrogate"),
        (
            {"distinct_id": "u-1"},
            "invalid-event",
            "distinct_id",
            "give either distinct_id or mcp_server_user_id",
        ),
        ({"session_id": "s-1"}, "invalid-event", "session_id", "give either session_id or"),
        ({"distinct_id": "", "mcp_server_user_id": None}, "invalid-event", "distinct_id", "1 to 200"),
        ({"distinct_id": 7, "mcp_server_user_id": None}, "invalid-event", "distinct_id", "text"),
    ],
)
def test_a_wrong_event_is_never_made(
    changes: dict[str, Any], rejection: str, field: str | None, told: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        StepCompleted(**{"walkthrough_id": "wt", "step_id": "a", **PLATFORM, **changes})
    assert (caught.value.rejection, caught.value.field) == (rejection, field)
    assert told in str(caught.value)


def test_ids_of_ones_own_are_for_http_alone() -> None:
    event = StepCompleted(walkthrough_id="wt", step_id="a", distinct_id="u-1", session_id="s-1")
    assert event.prepared.user is None
    assert set(event.prepared.open_fields) == {"mcp_server_user_id", "mcp_server_session_id", "mcp_server_id"}
    with pytest.raises(InvalidEvent, match="and not `distinct_id`") as caught:
        prepare_for_kafka(event)
    assert caught.value.field == "mcp_server_user_id"
    as_mapping = prepare(event.as_dict())
    assert as_mapping.open_fields == event.prepared.open_fields


@pytest.mark.parametrize("file", sorted(FOLDER.glob("examples/operator/*.json")), ids=lambda file: file.stem)
def test_what_operators_alone_may_send_is_not_sent(file: Path) -> None:
    with pytest.raises(InvalidEvent, match="sent by `stepstream") as caught:
        prepare(file.read_bytes())
    assert caught.value.rejection == "not-allowed"


def test_it_imports_neither_the_server_nor_kafka_until_that_is_asked_for() -> None:
    code = "import sys, stepstream_client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    root = Path(stepstream_client.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert {"services", "schemas", "aiokafka", "faststream"}.isdisjoint(done.stdout.split())


RIGHT: dict[str, Any] = {
    "event_id": "0192f4c1-7a3e-7cc2-9d55-1b2f3c4d5e6f",
    "distinct_id": "u",
    "session_id": "s",
    "walkthrough_id": "w",
    "step_id": "a",
    "completed_at": 1_764_000_000_000,
}


@pytest.mark.parametrize(
    ("field", "name", "meant"),
    [
        ("distinct_id", "userId", "distinct_id or mcp_server_user_id"),
        ("distinct_id", "distinctId", "distinct_id"),
        ("distinct_id", "mcpServerUserId", "mcp_server_user_id"),
        ("session_id", "sessionId", "session_id"),
        ("walkthrough_id", "walkthroughId", "walkthrough_id"),
        ("step_id", "step", "step_id"),
        ("completed_at", "completedAt", "completed_at"),
        ("completed_at", "timestamp", "completed_at"),
        ("event_id", "eventID", "event_id"),
    ],
)
def test_the_field_that_is_meant_by_another_name_is_told(field: str, name: str, meant: str) -> None:
    """As an argument, and in a mapping, where a field that is no one's is ignored and one is missing."""
    changed = {name if one == field else one: value for one, value in RIGHT.items()}
    with pytest.raises(
        InvalidEvent, match=f"{name}: there is no such field; {meant} is perhaps meant"
    ) as typed:
        StepCompleted(**changed)
    assert (typed.value.rejection, typed.value.field) == ("invalid-event", name)
    for prepared in (prepare, prepare_for_kafka):
        with pytest.raises(InvalidEvent, match="Field required; ") as caught:
            prepared({"type": "step-completed", **changed})
        assert name in str(caught.value)
        assert all(one in str(caught.value) for one in meant.split(" or "))


def test_an_argument_that_stands_for_nothing_is_told_with_what_there_is() -> None:
    with pytest.raises(InvalidEvent, match="colour: there is no such field; there are walkthrough_id, "):
        StepCompleted(**RIGHT, colour="red")  # type: ignore[call-arg]
    assert copy.deepcopy(StepCompleted(**RIGHT)) == pickle.loads(pickle.dumps(StepCompleted(**RIGHT)))
