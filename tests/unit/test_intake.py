"""Bodies and verdicts of what comes in by HTTP, without a server."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Rejection, decode
from services.analytics_api.intake.bodies import (
    MOST_BYTES,
    MOST_ITEMS,
    Body,
    Item,
    Kind,
    decompressed,
    items_of,
    read,
    zstd,
)
from services.analytics_api.intake.verdicts import (
    Found,
    Holder,
    IntakeRejection,
    Read,
    Refusal,
    Wanted,
    judge,
    settle,
    unregistered,
)
from services.analytics_api.intake.verdicts import read as read_item
from services.analytics_api.problems import ProblemError
from services.analytics_api.registering import own_session_id
from services.runtime.fair import Writing

NOW = 1_764_000_000_000
ANY = Writing("/checkout")
AS_JSON, AS_LINES = Kind(is_lines=False, encoding="identity"), Kind(is_lines=True, encoding="identity")
ID = "0192f4c1-7a3e-7cc2-9d55-1b2f3c4d5e6f"

#: What JSON can say; numbers that every parser reads the same.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4),
    max_leaves=12,
)


def status_of(headers: dict[str, str], body: bytes = b"[1]", name: str = "events") -> int:
    with pytest.raises(ProblemError) as caught:
        items_of(body, Kind.of(headers), name)
    return caught.value.status


# --- bodies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"[" + b"{}," * 20_000, AS_JSON),
        (b"[" + b"[]," * 2_000 + b"1]", AS_JSON),
        (b"[" + b"1," * 20_000 + b"1]", AS_JSON),
        (b"1\n" * 5_000, AS_LINES),
        (b" " * 100_000, AS_JSON),
        (b"{}", Kind(is_lines=False, encoding="gzip")),
    ],
)
def test_a_small_body_of_very_many_values_is_read_in_a_thread(content: bytes, kind: Kind) -> None:
    assert not Body(kind, content).is_quick


def test_batches_of_some_hundred_events_are_read_without_a_thread() -> None:
    event: dict[str, Any] = {"event_id": ID, "type": "step-completed", "completed_at": NOW}
    event |= dict.fromkeys(("mcp_server_user_id", "walkthrough_id", "step_id", "session_id"), "x" * 12)
    event["metadata"] = {"stepOrder": 1, "isLastStep": False}
    assert Body(AS_JSON, json.dumps([event] * 190).encode()).is_quick
    assert Body(AS_LINES, b"\n".join([json.dumps(event).encode()] * 190)).is_quick


@given(st.lists(VALUES, min_size=1, max_size=20), st.sampled_from(["identity", "gzip", "zstd"]))
def test_items_come_out_as_they_went_in_whatever_the_form(values: list[Any], encoding: str) -> None:
    pack = {"identity": bytes, "gzip": gzip.compress, "zstd": zstd.compress}[encoding]
    text = json.dumps(values).encode()
    lines = b"\r\n\n".join(json.dumps(value).encode() for value in values)
    for body, is_lines in ((text, False), (b'{"events":' + text + b"}", False), (lines, True)):
        items = items_of(pack(body), Kind(is_lines, encoding), "events")
        assert [item.value for item in items] == values
        assert [item.index for item in items] == list(range(len(values)))
        assert [item.line for item in items] == [1 + 2 * n if is_lines else None for n in range(len(values))]


@given(st.binary(max_size=300), st.sampled_from(["identity", "gzip", "zstd"]), st.booleans())
def test_any_bytes_are_items_or_a_problem(body: bytes, encoding: str, is_lines: bool) -> None:
    items, status = [], 200
    try:
        items = items_of(body, Kind(is_lines, encoding), "events")
    except ProblemError as problem:
        status = problem.status
    assert status == (200 if items else 400)
    for item in items:
        assert isinstance(read_item(item, "org", ANY, NOW), Refusal)


@given(st.binary(min_size=1, max_size=2_000), st.sampled_from(["gzip", "zstd"]), st.data())
def test_a_body_that_is_cut_off_is_never_taken_for_whole(
    plain: bytes, encoding: str, data: st.DataObject
) -> None:
    packed = gzip.compress(plain) if encoding == "gzip" else zstd.compress(plain)
    assert decompressed(packed, encoding) == plain
    length = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(ProblemError, match="cut off"):
        decompressed(packed[:length], encoding)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.sampled_from(["gzip", "zstd"]))
def test_parts_that_were_compressed_one_by_one_are_one_body(parts: list[bytes], encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    assert decompressed(b"".join(pack(part) for part in parts), encoding) == b"".join(parts)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_would_be_too_large_is_not_decompressed(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zstd.compress
    assert len(decompressed(pack(bytes(MOST_BYTES)), encoding)) == MOST_BYTES
    for packed in (
        pack(bytes(MOST_BYTES + 1)),
        pack(bytes(100_000_000)),
        b"".join(pack(bytes(MOST_BYTES // 2 + 1)) for _ in range(2)),
    ):
        with pytest.raises(ProblemError) as caught:
            decompressed(packed, encoding)
        assert caught.value.status == 413
    with pytest.raises(ProblemError, match="parts"):
        decompressed(pack(b"") * 1_001, encoding)


def test_a_window_that_is_larger_than_http_allows_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 26, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(b"[1]") + packer.flush()
    with pytest.raises(ProblemError, match="not compressed with zstd"):
        decompressed(packed, "zstd")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json; charset=latin1"}, 415),
        ({"content-type": "application/json", "content-encoding": "br"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip, gzip"}, 415),
        ({"content-type": "application/json", "content-length": str(MOST_BYTES + 1)}, 413),
    ],
)
def test_headers_alone_refuse(headers: dict[str, str], status: int) -> None:
    assert status_of(headers) == status


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json"},
        {"content-type": "Application/JSON; charset=UTF-8"},
        {"content-type": 'application/json; charset="utf-8"', "content-encoding": "identity"},
        {"content-type": "application/jsonl", "content-length": "3"},
        {"content-type": "application/ndjson"},
    ],
)
def test_headers_that_are_taken(headers: dict[str, str]) -> None:
    assert [item.value for item in items_of(b"[1]", Kind.of(headers), "events")] in ([1], [[1]])


def test_more_items_than_may_be_are_refused() -> None:
    assert len(items_of(b"[" + b"1," * (MOST_ITEMS - 1) + b"1]", AS_JSON, "events")) == MOST_ITEMS
    for body, kind in ((b"[" + b"1," * MOST_ITEMS + b"1]", AS_JSON), (b"1\n" * (MOST_ITEMS + 1), AS_LINES)):
        with pytest.raises(ProblemError) as caught:
            items_of(body, kind, "events")
        assert caught.value.status == 413


async def test_no_more_is_read_of_a_body_than_may_be() -> None:
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(100_000)

    with pytest.raises(ProblemError):
        await read(chunks())
    assert taken == MOST_BYTES // 100_000 + 1


def test_lines_sent_as_json_are_told_so() -> None:
    with pytest.raises(ProblemError, match="one a line is application/x-ndjson"):
        items_of(b'{"a": 1}\n{"a": 2}', AS_JSON, "events")


def test_the_compressor_of_this_test_is_another_one() -> None:
    """The gzip of other libraries, with a header of its own, is read as well."""
    packer = zlib.compressobj(wbits=31)
    assert decompressed(packer.compress(b"[1]") + packer.flush(), "x-gzip") == b"[1]"


# --- verdicts --------------------------------------------------------------------------------------------


def event(**more: Any) -> dict[str, Any]:
    made = {
        "type": "step-completed",
        "event_id": ID,
        "mcp_server_user_id": "ann",
        "walkthrough_id": "wt_a",
        "step_id": "a",
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": "s_ann",
        "completed_at": NOW,
    }
    return {name: value for name, value in (made | more).items() if value is not None}


def reading(value: Any, writing: Writing = ANY, index: int = 0) -> Read:
    made = read_item(Item(index, value), "org", writing, NOW)
    assert isinstance(made, Read), made
    return made


FOUND = Found(
    users={"ann", "bob"},
    people={"u-1": "bob"},
    sessions={"s_ann": ("srv_1", "ann"), own_session_id("org", "s-1"): ("srv_1", None)},
    servers={"srv_1": "one"},
    walkthroughs={"wt_a"},
    steps={"a": "wt_a", "b": "wt_a"},
    only_server="srv_1",
)


def judged(*reads: Read, found: Found = FOUND) -> dict[int, Refusal]:
    settle(reads, found)
    return judge(reads, found, "org").refused


def test_an_event_is_sent_as_the_contract_has_it_and_nothing_else_of_it() -> None:
    mine = {"mcp_server_user_id": None, "mcp_server_session_id": None, "mcp_server_id": None}
    given_ = event(
        distinct_id="u-1", session_id="s-1", email="a@b.c", metadata={"mcp_server_user_id": "?"}, **mine
    )
    one = reading(given_)
    assert not judged(one)
    sent = json.loads(one.value)
    assert sent == event(
        mcp_server_user_id="bob",
        mcp_server_session_id=own_session_id("org", "s-1"),
        metadata={"mcp_server_user_id": "?"},
    )
    assert decode(one.value, NOW) == one.event


@given(VALUES)
def test_whatever_an_item_is_it_gets_a_verdict(value: Any) -> None:
    refusal = read_item(Item(0, value), "org", ANY, NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.message


@given(st.sampled_from(sorted(event())), VALUES)
def test_a_field_that_is_anything_gets_the_verdict_of_the_contract(field: str, value: Any) -> None:
    """An independent look: what is read is what `decode` reads of the same JSON, and no more is refused."""
    made = event() | {field: value}
    ours = read_item(Item(0, made), "org", ANY, NOW)
    if made["type"] in ("user-erased", "step-corrected"):
        return
    theirs: Any
    try:
        theirs = decode(json.dumps(made).encode(), NOW)
    except ValueError as error:
        theirs = str(error)
    assert theirs == (ours.message if isinstance(ours, Refusal) else ours.event)


def test_a_number_of_thousands_of_digits_and_a_deep_value_are_the_fault_of_their_item() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    for value in (10**5_000, deep, "\ud800", float("inf"), float("nan")):
        refusal = read_item(Item(0, event(metadata={"x": value})), "org", ANY, NOW)
        assert isinstance(refusal, Refusal)
        assert refusal.rejection in {Rejection.NOT_JSON, Rejection.INVALID}


def test_keys_allow_types_and_servers() -> None:
    narrow = Writing("/x", frozenset({"step-shown"}), frozenset({"srv_1"}))
    for value, rejection in (
        (event(), IntakeRejection.TYPE_NOT_ALLOWED),
        (
            event(type="step-shown", completed_at=None, shown_at=NOW, mcp_server_id="srv_2"),
            IntakeRejection.SERVER_NOT_ALLOWED,
        ),
    ):
        refusal = read_item(Item(0, value), "org", narrow, NOW)
        assert isinstance(refusal, Refusal)
        assert refusal.rejection is rejection
    reading(event(type="step-shown", completed_at=None, shown_at=NOW), narrow)


def test_what_is_looked_up_is_what_is_named() -> None:
    wanted = Wanted.of(
        [
            reading(event()),
            reading(event(mcp_server_user_id=None, distinct_id="u-1", mcp_server_id=None)),
            reading(event(type="walkthrough-started", step_id=None, completed_at=None, started_at=NOW)),
            reading(event(type="step-shown", step_id="b", completed_at=None, shown_at=NOW)),
        ]
    )
    assert (wanted.users, wanted.distinct_ids, wanted.servers) == ({"ann"}, {"u-1"}, {"srv_1"})
    assert (wanted.steps, wanted.completions, wanted.starts) == ({"a", "b"}, {ID}, {ID})
    assert wanted.only_server


def test_the_first_of_two_with_one_id_is_good_and_a_refused_one_does_not_take_it() -> None:
    refused = judged(
        reading(event(step_id="z"), index=0),
        reading(event(step_id="b"), index=1),
        reading(event(), index=2),
        reading(event(step_id="b", completed_at=NOW - 1), index=3),
        reading(event(type="walkthrough-started", step_id=None, completed_at=None, started_at=NOW), index=4),
        reading(event(type="step-shown", completed_at=None, shown_at=NOW), index=5),
    )
    assert {index: refusal.rejection for index, refusal in refused.items()} == {
        0: Rejection.UNKNOWN_STEP,
        2: Rejection.REUSED_EVENT_ID,
    }


def test_an_id_that_is_recorded_is_its_events_alone() -> None:
    def found(user: str, step: str, surpassed: set[int] | None = None) -> Found:
        return Found(
            FOUND.users,
            FOUND.people,
            FOUND.sessions,
            FOUND.servers,
            FOUND.walkthroughs,
            FOUND.steps,
            {("step-completed", ID): Holder(user, step, NOW)},
            FOUND.only_server,
            surpassed or set(),
        )

    one = reading(event())
    assert not judged(one, found=found("ann", "a"))
    assert "this person and another step" in judged(one, found=found("ann", "b"))[0].message
    assert "another person, of 2025-11-24T16:00:00.000Z" in judged(one, found=found("bob", "a"))[0].message
    assert not judged(one, found=found("bob", "a", {0}))


def test_only_own_ids_are_registered_and_only_where_all_else_is_there() -> None:
    mine = {"mcp_server_user_id": None, "mcp_server_session_id": None}
    new = reading(event(distinct_id="u-9", session_id="s-9", **mine))
    reads = [
        new,
        reading(event(distinct_id="u-9", session_id="s-9", step_id="z", **mine)),
        reading(event(mcp_server_user_id="nobody", mcp_server_session_id=None, session_id="s-9")),
        reading(event()),
    ]
    settle(reads, FOUND)
    assert unregistered(reads, FOUND.known("org")) == [new]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distinct_id": None, "user_id": "u"}, "`user_id` is perhaps distinct_id or mcp_server_user_id"),
        ({"distinct_id": None, "distinctId": "u"}, "`distinctId` is perhaps distinct_id"),
        ({"session_id": None, "sessionId": "s"}, "`sessionId` is perhaps session_id"),
        ({"session_id": None}, "session_id, an id of your own, may stand for mcp_server_session_id"),
        ({"distinct_id": None}, "distinct_id, an id of your own, may stand for mcp_server_user_id"),
    ],
)
def test_ids_of_the_producers_own_are_told_where_both_are_missing(changes: dict[str, Any], told: str) -> None:
    event = {"type": "step-completed", "event_id": ID, "distinct_id": "u", "session_id": "s"}
    event |= {"walkthrough_id": "w", "step_id": "a", "completed_at": NOW, **changes}
    refusal = read_item(Item(0, {n: v for n, v in event.items() if v is not None}), "org", ANY, NOW)
    assert isinstance(refusal, Refusal)
    assert told in refusal.message


def test_how_a_body_was_sent_is_told_where_nothing_can_be_made_of_it() -> None:
    for packed, name in ((gzip.compress(b"[{}]"), "gzip"), (zstd.compress(b"[{}]"), "zstd")):
        for kind in (AS_JSON, AS_LINES):
            with pytest.raises(ProblemError, match=f"by the header Content-Encoding: {name}"):
                items_of(packed, kind, "events")
    joined = b'{"a": 1}{"a": 2}'
    with pytest.raises(ProblemError, match="`curl -d` joins lines: use --data-binary"):
        items_of(joined, AS_JSON, "events")
    (line,) = items_of(joined, AS_LINES, "events")
    refusal = read_item(line, "org", ANY, NOW)
    assert isinstance(refusal, Refusal)
    assert "use --data-binary" in refusal.message
    assert "use --data-binary" in (line.problem or "")
