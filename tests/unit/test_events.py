"""The contract: examples, evolution, what is tolerated, and the documents made from it."""

import json
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import EventError, Rejection, StepCompleted, StepSkipped, decode, encode
from schemas.documents import asyncapi, json_schema, schemas_of_types
from schemas.events import MAX_AHEAD_MS, MAX_MESSAGE, MAX_TIME_MS, MIN_TIME_MS
from schemas.generate import FOLDER, check_examples, examples
from tests.support.world import completed, corrected, shown, skipped, started

NOW = 1_764_000_000_000
SCHEMA = Draft202012Validator(json_schema())
EXAMPLES = sorted(
    file for kind in ("valid", "operator") for file in (FOLDER / "examples" / kind).glob("*.json")
)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_a_valid_example_is_read(file: Path) -> None:
    event = decode(file.read_bytes(), MAX_TIME_MS)
    given_ = json.loads(file.read_bytes())
    assert event.type == given_["type"]
    assert getattr(event, "walkthrough_id", None) == given_.get("walkthrough_id")
    times = ("corrected_at", "completed_at", "started_at", "skipped_at", "shown_at", "erased_at")
    decided = (given_[name] for name in times if name in given_)
    assert event.happened_at == next(decided)
    assert decode(encode(given_), MAX_TIME_MS) == event


def test_every_example_is_what_its_folder_says() -> None:
    assert list(check_examples()) == []


def test_every_example_ever_checked_in_stays_readable() -> None:
    """Operators replay old topics: the rule is backward transitive."""
    root = FOLDER.parent
    listed = subprocess.run(
        [
            "git",
            "log",
            "--format=",
            "--raw",
            "--no-abbrev",
            "--diff-filter=AM",
            "--",
            "schemas/examples/valid",
            "schemas/examples/operator",
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    blobs = {line.split()[3] for line in listed.stdout.splitlines() if line.startswith(":")}
    values = [
        subprocess.run(["git", "cat-file", "blob", b], cwd=root, capture_output=True, check=True).stdout
        for b in sorted(blobs)
    ]
    values += [file.read_bytes() for file in EXAMPLES]  # without a history these are all there is
    for value in values:
        event = json.loads(value)
        if 0 in (event.get("completed_at"), event.get("started_at")):
            continue  # the one rule that narrowed: docs/decisions/0015-times-and-corrections.md
        assert decode(value, MAX_TIME_MS).event_id


def test_unknown_fields_are_ignored_by_consumers_and_refused_by_the_published_schema() -> None:
    event = completed("u", "a", 1) | {"added_in_a_later_version": {"x": 1}}
    read = decode(json.dumps(event).encode(), NOW)
    assert isinstance(read, StepCompleted)
    assert read.step_id == "a"
    assert not SCHEMA.is_valid(event)


def test_a_null_metadata_is_as_good_as_none() -> None:
    assert decode(json.dumps(completed("u", "a", 1, metadata=None)).encode(), NOW).metadata is None


def test_metadata_is_kept_as_compact_json() -> None:
    event = completed("u", "a", 1, metadata={"z": [1, 2.5, None], "a": {"é": True}})
    assert decode(json.dumps(event).encode(), NOW).metadata == '{"z":[1,2.5,null],"a":{"é":true}}'


def test_metadata_of_exactly_the_largest_size_is_taken() -> None:
    largest = {"x": "é" * ((8192 - 8) // 2)}
    assert len(json.dumps(largest, ensure_ascii=False, separators=(",", ":")).encode()) == 8192
    assert decode(json.dumps(completed("u", "a", 1, metadata=largest)).encode(), NOW).metadata
    with pytest.raises(EventError, match="larger than 8192"):
        decode(json.dumps(completed("u", "a", 1, metadata={"xy": largest["x"]})).encode(), NOW)


@pytest.mark.parametrize("reason", ["x" * 500, "one line\nand\tanother", "é👍", None])
def test_a_reason_is_kept_as_it_is(reason: str | None) -> None:
    event = decode(json.dumps(skipped("u", "a", 1, reason=reason)).encode(), NOW)
    assert isinstance(event, StepSkipped)
    assert event.reason == reason


@pytest.mark.parametrize(
    "reason", ["", "x" * 501, "a\0", "a\r\nb", "a\x0b", "a\x7f", "a\x9f", 7, ["a"], "\ud800"]
)
def test_a_reason_that_is_none_is_refused_without_its_text(reason: object) -> None:
    with pytest.raises(EventError) as caught:
        decode(json.dumps(skipped("u", "a", 1, reason=reason)).encode(), NOW)
    assert caught.value.rejection in {Rejection.INVALID, Rejection.NOT_JSON}
    assert "xxx" not in str(caught.value)


def test_event_ids_compare_in_lower_case() -> None:
    event = completed("u", "a", 1, event_id="6F1F5C3E-6D0E-4C0E-9A55-2F6F0F5A7A11")
    assert decode(json.dumps(event).encode(), NOW).event_id == "6f1f5c3e-6d0e-4c0e-9a55-2f6f0f5a7a11"


def test_the_clock_allows_24_hours_and_no_millisecond_more() -> None:
    assert decode(json.dumps(completed("u", "a", NOW + MAX_AHEAD_MS)).encode(), NOW)
    with pytest.raises(EventError) as caught:
        decode(json.dumps(completed("u", "a", NOW + MAX_AHEAD_MS + 1)).encode(), NOW)
    assert caught.value.rejection is Rejection.IN_THE_FUTURE


def test_the_first_time_is_taken_and_no_millisecond_before() -> None:
    assert decode(json.dumps(completed("u", "a", MIN_TIME_MS)).encode(), NOW)
    for event in (
        completed("u", "a", 0, completed_at=MIN_TIME_MS - 1),
        started("u", 0, started_at=-(10**30)),
        skipped("u", "a", 0, skipped_at=MIN_TIME_MS - 1),
        shown("u", "a", 0, shown_at=MIN_TIME_MS - 1),
    ):
        with pytest.raises(EventError, match=r"no time is before 2000-01-01$") as caught:
            decode(json.dumps(event).encode(), NOW)
        assert caught.value.rejection is Rejection.TOO_EARLY


def test_seconds_are_told_with_the_date_that_they_would_be_and_the_one_that_they_are() -> None:
    with pytest.raises(EventError) as caught:
        decode(json.dumps(completed("u", "a", 0, completed_at=NOW // 1000)).encode(), NOW)
    assert str(caught.value) == (
        "completed_at: 1764000000 milliseconds since the epoch is 1970-01-21; no time is before 2000-01-01: are "
        "these seconds instead of milliseconds? As seconds it is 2025-11-24"
    )


@pytest.mark.parametrize("field", ["corrected_at", "covers_until", "completed_at"])
def test_each_time_of_a_correction_is_judged(field: str) -> None:
    event = corrected("u", "a", 3, 3, 1)
    for at, rejection in ((5, Rejection.TOO_EARLY), (NOW + MAX_AHEAD_MS + 1, Rejection.IN_THE_FUTURE)):
        with pytest.raises(EventError, match=field) as caught:
            decode(json.dumps(event | {field: at}).encode(), NOW)
        assert caught.value.rejection is rejection


def test_an_error_names_the_field_and_never_the_content() -> None:
    event = completed("u", "secret\n", 1, metadata={"password": "x" * 9000})
    with pytest.raises(EventError) as caught:
        decode(json.dumps(event).encode(), NOW)
    assert "step_id" in str(caught.value)
    assert "metadata" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"completed_at": "2026-11-24T09:00:00"}, "completed_at would be 1795510800000 in milliseconds, if"),
        (
            {"completed_at": "1764000000000"},
            "completed_at is text and would be 1764000000000 in milliseconds: send it without quotes",
        ),
        ({"completed_at": "17"}, "completed_at is text: send it without quotes"),
        (
            {"completed_at": 1764000000000.5},
            "completed_at has a fraction and would be 1764000000000 in milliseconds",
        ),
        (
            {"completed_at": 1.764e12},
            "completed_at is written with a fraction or an exponent and would be 17",
        ),
        ({"completed_at": 0.5}, "completed_at has a fraction"),
        ({"completed_at": 1_764_000_000_000_000}, "completed_at would be 1764000000000 in milliseconds"),
        (
            {"completed_at": "Tue, 24 Nov 2026 09:00:00 GMT"},
            "completed_at would be 1795510800000 in milliseconds",
        ),
        (
            {"completed_at": "Tue Nov 24 2026 10:00:00 GMT+0100 (Central European Standard Time)"},
            "completed_at would be 1795510800000 in milliseconds",
        ),
        ({"step_id": 17}, "step_id is a number; ids are text, in quotes"),
        ({"metadata": '{"secret": 1}'}, "metadata is a string that holds JSON"),
        ({"type": "shipped"}, "there are step-completed, walkthrough-started, step-skipped, step-shown"),
        ({"completed_at": "secret"}, None),
        ({"completed_at": True}, None),
    ],
)
def test_the_likely_cause_is_told(changes: dict[str, object], told: str | None) -> None:
    with pytest.raises(EventError) as caught:
        decode(json.dumps(completed("u", "a", 1) | changes).encode(), NOW)
    assert told is None or told in str(caught.value)
    assert (told is None) == (str(caught.value).count(";") == 0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (zlib.compress(b"{}"), "it is compressed with zlib; leave that to the producer's compression.type"),
        (
            b"\x03\x00" + bytes(15) + b"\x01\x02a",
            "frame, schema version 00000000-0000-0000-0000-000000000001",
        ),
        (b"\x00\x00\x00\x00\x00{}", "frame, schema id 0, and behind that is JSON"),
        (b"\x88\xa4type\xaestep-completed", "it is no text: perhaps MessagePack"),
        (b'{"step_id": "\xe9"}', "it is not UTF-8 from byte 13 on: perhaps Latin-1"),
        (b'{"step_id": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "it is nested too deep"),
        (b"[object Object]", "what JavaScript makes of an object as text"),
        (b"<event/>", "it is XML or HTML"),
        (b"// an event\n{}", "it begins with a comment"),
        (b'{"payload": {"op": "c", "after": {"type": "x"}}}', "the event is perhaps inside `payload.after`"),
        (
            json.dumps(completed("u", "a", 1, event_id="0" * 32)).encode(),
            "event_id: it is no UUID, which is 32",
        ),
        (json.dumps(completed("u", "a\0", 1)).encode(), "step_id: it holds a control character"),
        (json.dumps(completed("u", "a", 1, metadata=[])).encode(), "metadata: metadata is a JSON object"),
    ],
)
def test_what_other_tools_send_is_told_for_what_it_is(value: bytes, told: str) -> None:
    with pytest.raises(EventError) as caught:
        decode(value, NOW)
    assert told in str(caught.value)


def test_the_time_of_another_type_is_told_by_the_names_of_both() -> None:
    event = skipped("u", "a", 1)
    event["completed_at"] = event.pop("skipped_at")
    with pytest.raises(EventError) as caught:
        decode(json.dumps(event).encode(), NOW)
    assert str(caught.value) == (
        "skipped_at: Field required; you sent `completed_at`; it is `skipped_at` in this type"
    )


def test_a_name_that_is_like_none_of_the_contract_is_not_told() -> None:
    event = completed("u", "a", 1) | {"secret": 1, "Step ID": 2, "completedAt": 3}
    del event["step_id"], event["completed_at"]
    with pytest.raises(EventError) as caught:
        decode(json.dumps(event).encode(), NOW)
    assert "step_id is perhaps `Step ID`, completed_at is perhaps `completedAt`" in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.lists(st.text(max_size=60), max_size=40))
def test_an_error_is_short_whatever_the_names_are(names: list[str]) -> None:
    event = dict.fromkeys([*names, "eventId", "payload"], 0) | {"type": "step-completed"}
    with pytest.raises(EventError) as caught:
        decode(json.dumps(event).encode(), NOW)
    assert len(str(caught.value).encode()) <= MAX_MESSAGE


@given(st.one_of(st.none(), st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_no_bytes_raise_anything_but_an_event_error(value: bytes | None) -> None:
    with pytest.raises(EventError):
        decode(value, NOW)


FIELDS: dict[object, set[str]] = {
    "step-completed": {*completed("u", "a", 1), "metadata"},
    "walkthrough-started": {*started("u", 1), "metadata"},
    "step-skipped": {*skipped("u", "a", 1), "reason", "metadata"},
    "step-shown": {*shown("u", "a", 1), "version", "metadata"},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([completed("u", "a", 1), started("u", 1), skipped("u", "a", 1), shown("u", "a", 1)]),
    st.dictionaries(
        st.sampled_from(
            [*completed("u", "a", 1), "started_at", "skipped_at", "reason", "shown_at", "version", "metadata"]
        ),
        json_values,
        max_size=3,
    ),
)
@example(completed("u", "a", 1), {"step_id": "a\n"})
@example(started("u", 1), {"event_id": completed("u", "a", 1)["event_id"] + "\n"})
@example(skipped("u", "a", 1), {"reason": "one\n\ttwo\n"})
@example(skipped("u", "a", 1), {"reason": "one\r"})
@example(shown("u", "a", 1), {"version": "v1\n"})
def test_what_the_published_schema_accepts_is_read(
    event: dict[str, object], changes: dict[str, object]
) -> None:
    """Near-valid events: the models may refuse more than the schema can say, only for stated reasons."""
    event = event | changes
    value = json.dumps(event).encode()
    try:
        decode(value, MAX_TIME_MS)
    except EventError as error:
        told = str(error)
        beyond_json_schema = (
            "NUL",
            "not finite",
            "larger than",
            "valid integer",
            "unexpected end",
            "surrogate",
        )
        if not any(reason in told for reason in beyond_json_schema):
            assert not SCHEMA.is_valid(json.loads(value)), told
    else:
        closed = {k: v for k, v in json.loads(value).items() if k in FIELDS[event["type"]]}
        assert SCHEMA.is_valid(closed)


def test_the_schemas_are_valid_2020_12_closed_and_have_names_of_their_own() -> None:
    published = [json_schema(), *schemas_of_types().values()]
    for schema in published:
        Draft202012Validator.check_schema(schema)
    assert len({schema["$id"] for schema in published}) == len(published)
    assert all(schema["additionalProperties"] is False for schema in schemas_of_types().values())
    assert json_schema()["$defs"].keys() == {schema["title"] for schema in schemas_of_types().values()}


def test_an_error_of_the_published_schema_names_the_field() -> None:
    """And no other branch of the union."""
    wrong = completed("u", "a", 1, completed_at="yesterday")
    (error,) = SCHEMA.iter_errors(wrong)
    assert (list(error.path), error.message) == (["completed_at"], "'yesterday' is not of type 'integer'")
    (error,) = SCHEMA.iter_errors(wrong | {"type": "step-complete"})
    assert list(error.path) == ["type"]
    assert "'step-completed', 'walkthrough-started'" in error.message


@pytest.mark.parametrize(
    "event",
    [
        completed("u", "a", 1, metadata=None),
        shown("u", "a", 1, metadata=None, version=None),
        skipped("u", "a", 1, metadata=None, reason=None),
        corrected("u", "a", 1, 1) | {"completed_at": None},
    ],
    ids=lambda event: event["type"],
)
def test_what_may_be_absent_may_be_null(event: dict[str, object]) -> None:
    assert SCHEMA.is_valid(event)
    assert decode(json.dumps(event).encode(), NOW)


def test_the_asyncapi_document_is_one_of_version_3() -> None:
    # Here, as only one of all workers needs it.
    from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema

    document = asyncapi(examples())
    # FastStream asks servers for a path, which the specification leaves out; the kit's tests have its own parser.
    assert ApplicationSchema.model_validate(document | {"servers": None}).asyncapi == "3.0.0"
    for operation in document["operations"].values():
        assert operation["channel"]["$ref"].removeprefix("#/channels/") in document["channels"]
    references = [
        m["$ref"].removeprefix("#/components/messages/")
        for channel in document["channels"].values()
        for m in channel["messages"].values()
    ]
    assert set(references) == set(document["components"]["messages"])
