"""Files of events and of records, in each form in which they are written."""

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.completion_recorder.dead_letters import encoded
from services.operations.event_files import MAX_VALUE, Item, Known, read_items, split_values
from services.runtime.errors import UsageError
from tests.support.world import completed

EVENTS = [completed("ann", step, at) for at, step in enumerate("abc")]
LINES = [json.dumps(event).encode() for event in EVENTS]


def items(content: bytes) -> list[Item]:
    return list(read_items(io.BytesIO(content), "events"))


def values(content: bytes) -> list[bytes | None]:
    return [item.record.value for item in items(content)]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (b"\n".join(LINES), ["line 1", "line 2", "line 3"]),
        (b"\r\n".join(LINES) + b"\r\n", ["line 1", "line 2", "line 3"]),
        (LINES[0] + b"\n\n \n" + LINES[1] + b"\n" + LINES[2], ["line 1", "line 4", "line 5"]),
        (b"[" + b",".join(LINES) + b"]", ["element 1", "element 2", "element 3"]),
        (b" \n[\n" + b" ,\n".join(LINES) + b"\n]\n", ["element 1", "element 2", "element 3"]),
        (gzip.compress(b"\n".join(LINES)), ["line 1", "line 2", "line 3"]),
        (b"".join(gzip.compress(line + b"\n") for line in LINES), ["line 1", "line 2", "line 3"]),
        (gzip.compress(b"[" + b",".join(LINES) + b"]"), ["element 1", "element 2", "element 3"]),
    ],
)
def test_each_event_of_a_file_is_kept_byte_for_byte_and_told_by_its_place(
    content: bytes, places: list[str]
) -> None:
    found = items(content)
    assert [item.record.value for item in found] == LINES
    assert [item.place for item in found] == places
    assert {item.known for item in found} == {Known()}


def test_objects_over_several_lines_are_events_one_after_another() -> None:
    content = "\n".join(json.dumps(event, indent=2) for event in EVENTS).encode()
    found = items(content)
    assert [json.loads(item.record.value or b"") for item in found] == EVENTS
    assert [item.place for item in found] == ["object 1", "object 2", "object 3"]


def test_what_is_no_json_stays_what_it_is_and_harms_no_other() -> None:
    assert values(b"no json\n" + LINES[0] + b"\n{\xff\n") == [b"no json", LINES[0], b"{\xff"]
    assert values(b"[" + LINES[0] + b"," + LINES[1][:40]) == [LINES[0], LINES[1][:40]]
    assert values(b"[1, null, " + LINES[0] + b"] behind") == [b"1", b"null", LINES[0], b"behind"]
    assert values(b"") == values(b"[]") == values(b"\n \n") == []


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from(['"', "\\", "]},{[", "\\\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.lists(_json, max_size=6), st.integers(1, 9), st.sampled_from([None, 2]))
def test_elements_are_the_same_wherever_the_file_is_cut_into_chunks(
    wanted: list[Any], size: int, indent: int | None
) -> None:
    text = json.dumps(wanted, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    found = [v for v in split_values(chunks, is_array=True) if v.strip()]
    assert [json.loads(v) for v in found] == wanted


@given(st.lists(st.dictionaries(st.text(max_size=4), _json, max_size=3), max_size=5), st.integers(1, 9))
def test_objects_are_the_same_wherever_the_file_is_cut_into_chunks(
    wanted: list[dict[str, Any]], size: int
) -> None:
    text = "\n".join(json.dumps(one, indent=1) for one in wanted).encode()
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    found = [v for v in split_values(chunks, is_array=False) if v.strip()]
    assert [json.loads(v) for v in found] == wanted


def record(**said: Any) -> Item:
    (item,) = items(json.dumps(said).encode())
    return item


def test_a_line_of_dlq_export_is_its_record() -> None:
    headers = [("ce_source", b"/checkout"), ("odd", b"\xff"), ("none", None)]
    item = record(
        topic="t", partition=2, offset=17, source="/checkout", error_class="unknown-user", error="none such",
        came_at="2026-11-24T09:00:00Z", **encoded("key", b"ann"), **encoded("value", b"\xff\x00"),
        headers=[{"name": name} | encoded("value", value) for name, value in headers],
    )  # fmt: skip
    got = item.record
    assert (got.key, got.value, got.partition, list(got.headers)) == (b"ann", b"\xff\x00", 2, headers)
    assert item.known == Known(key=True, headers=True, partition=True)


def test_a_mended_value_may_be_an_object() -> None:
    item = record(key="ann", value=EVENTS[0])
    assert json.loads(item.record.value or b"") == EVENTS[0]
    assert item.known == Known(key=True)


def test_a_line_of_kcat_is_its_record() -> None:
    item = record(
        topic="t", partition=1, offset=5, tstype="create", ts=1_700_000_000_000, broker=1,
        headers=["ce_source", "/checkout", "b", None], key="ann", payload=LINES[0].decode(),
    )  # fmt: skip
    got = item.record
    assert (got.key, got.value, got.partition, got.timestamp) == (b"ann", LINES[0], 1, 1_700_000_000_000)
    assert list(got.headers) == [("ce_source", b"/checkout"), ("b", None)]
    assert item.known == Known(key=True, headers=True, partition=True, timestamp=True)


@pytest.mark.parametrize(
    "said",
    [
        {"payload": EVENTS[0]},
        {"value": EVENTS[0]},
        {"payload": EVENTS[0], "partition": 1},
        {"key": "ann", "data": EVENTS[0]},
        EVENTS[0] | {"key": "ann", "value": 1, "partition": 3, "headers": []},
    ],
)
def test_an_envelope_that_is_no_record_is_an_event_to_be_judged(said: dict[str, Any]) -> None:
    item = record(**said)
    assert (item.record.value, item.known) == (json.dumps(said).encode(), Known())


def test_a_file_that_cannot_be_read_is_told_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"events: it is UTF-16.*iconv"):
        items(b"\n".join(LINES).decode().encode("utf-16"))
    whole = gzip.compress(b"\n".join(LINES))
    with pytest.raises(UsageError, match="cut off"):
        items(whole[:-9])
    with pytest.raises(UsageError, match="gzip is broken"):
        items(whole[:20] + b"\xff" * 20 + whole[40:])


class _Endless(io.RawIOBase):
    """A line without an end, as far as it is read."""

    def __init__(self) -> None:
        self.left = 4 * MAX_VALUE

    def read1(self, size: int) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return b"x" * size


def test_of_a_line_that_is_too_long_no_more_is_held_than_what_no_record_can_have() -> None:
    found: Iterator[Item] = read_items(_Endless(), "events")  # type: ignore[arg-type]
    assert len(next(found).record.value or b"") == MAX_VALUE + 1
