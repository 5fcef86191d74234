"""More than 300 distinct records that are no events, each with the classes that its dead letter may have."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schemas import Rejection
from tests.support.world import Message, completed, started


@dataclass(frozen=True)
class Bad:
    """A record that must not count, and the error class that says why."""

    name: str
    message: Message
    rejection: Rejection


def _event(**changes: Any) -> dict[str, Any]:
    return completed("ann", "a", 1_000) | changes


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def corpus() -> list[Bad]:
    """All of them; no two have the same key, value and headers."""
    bad = [
        *_no_json(),
        *_other_json(),
        *_fields(),
        *_times(),
        *_metadata(),
        *_references(),
        *_truncated(),
        *_headers(),
        *_large(),
    ]
    seen = {(b.message.key, b.message.value, tuple(b.message.headers)) for b in bad}
    assert len(seen) == len(bad) >= 300, len(bad)
    return bad


def _no_json() -> Iterator[Bad]:
    good = Message.of(_event()).value
    assert good is not None
    text = good.decode()
    values: dict[str, bytes] = {
        "bytes that are no UTF-8": b"\xff\xfe\xfd",
        "UTF-16 with mark": text.encode("utf-16"),
        "UTF-16 LE": text.encode("utf-16-le"),
        "UTF-32": text.encode("utf-32"),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "latin-1 in a string": good.replace(b"ann", b"\xe9"),
        "overlong NUL": good.replace(b"ann", b"\xc0\x80"),
        "a surrogate in UTF-8": good.replace(b"ann", b"\xed\xa0\x80"),
        "a cut character": good.replace(b"ann", b"\xe2\x82"),
        "past U+10FFFF": good.replace(b"ann", b"\xf4\x90\x80\x80"),
        "a NUL byte in a string": good.replace(b"ann", b"a\x00n"),
        "a tab in a string": good.replace(b"ann", b"a\tn"),
        "a line end in a string": good.replace(b"ann", b"a\nn"),
        "NUL after it": good + b"\x00",
        "NUL before it": b"\x00" + good,
        "only NUL": b"\x00",
        "spaces": b"   ",
        "gzip's first bytes": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        "an Avro header": b"\x00\x00\x00\x00\x01" + good,
        "protobuf": b"\x0a\x03ann\x12\x01a",
        "two objects": good + good,
        "two lines": good + b"\n" + good,
        "a comma after it": good + b",",
        "a comma too many": good[:-1] + b",}",
        "single quotes": good.replace(b'"', b"'"),
        "a comment": b"/* */" + good,
        "Python's repr": str(_event()).encode(),
        "no quotes around keys": good.replace(b'"type"', b"type"),
        "words": b"hello",
        "half a word": b"tru",
        "minus": b"-",
        "a plus sign": b"+1",
        "hexadecimal": b"0x10",
        "a leading zero": b"012",
        "a dot at the end": b"1.",
        "an escape that is none": good.replace(b"ann", b"\\x41"),
        "half an escape": good.replace(b"ann", b"\\u00"),
        "an open string": b'"abc',
        "an open list": b"[1, 2",
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 20_000,
        "XML": b"<event/>",
        "an HTTP answer": b"HTTP/1.1 200 OK\r\n\r\n" + good,
        "YAML": b"type: step-completed\nstep_id: a\n",
        "a lone surrogate, escaped": good.replace(b"ann", b"\\ud800"),
        "two surrogates in the wrong order": good.replace(b"ann", b"\\udc00\\ud800"),
    }
    for name, value in values.items():
        yield Bad(name, Message(b"ann", value), Rejection.NOT_JSON)
    yield Bad("a tombstone", Message(b"ann", None), Rejection.EMPTY)
    yield Bad("a tombstone without key", Message(None, None), Rejection.EMPTY)
    yield Bad("an empty value", Message(b"ann", b""), Rejection.EMPTY)
    yield Bad("an empty value and key", Message(b"", b""), Rejection.EMPTY)
    yield Bad("a NUL in the key", Message(b"a\x00nn", b"{}"), Rejection.INVALID)
    yield Bad("a NUL for a key", Message(b"\x00", b"hello"), Rejection.NOT_JSON)


def _other_json() -> Iterator[Bad]:
    values: list[Any] = [
        [], {}, "", "step-completed", 0, 1, -1, 1.5, True, False, None, [[]], [_event()], {"event": _event()},
        {"": ""}, {"Type": "step-completed"},
    ]  # fmt: skip
    for value in values:
        yield Bad(f"JSON, but {value!r:.40}", Message(b"ann", _json(value)), Rejection.INVALID)
    kinds: list[Any] = [
        None, 1, True, [], {}, "", "Step-Completed", "step_completed", "step-completed ", " step-completed", "step-completed\u0000",
        "walkthrough-finished", "user-erase", "stepcompleted", "STEP-COMPLETED", "x" * 5_000, "шаг", "💥",
    ]  # fmt: skip
    for kind in kinds:
        yield Bad(f"type {kind!r:.30}", Message(b"ann", _json(_event(type=kind))), Rejection.UNKNOWN_TYPE)


_IDS = ("mcp_server_user_id", "walkthrough_id", "step_id", "mcp_server_id", "mcp_server_session_id")


def _fields() -> Iterator[Bad]:
    required = ["event_id", *_IDS, "completed_at"]
    for name in required:
        event = _event()
        del event[name]
        yield Bad(f"without {name}", Message(b"ann", _json(event)), Rejection.INVALID)
    for name in ["event_id", *_IDS]:
        wrong: list[Any] = [None, 1, 1.5, True, [], {}, ["a"], {"id": "a"}, "", "x" * 65]
        if name != "event_id":
            wrong += ["a\u0000b", "\u0001", "a\u001f", "\u007f", "a\u0085b", "a\tb"]
        else:
            wrong += ["not-a-uuid", "00000000-0000-4000-8000-00000000000g", "{" + "0" * 36 + "}", "0" * 32]
        for value in wrong:
            yield Bad(
                f"{name} {value!r:.30}", Message(b"ann", _json(_event(**{name: value}))), Rejection.INVALID
            )
    for name in ("started_at", "event_id", "walkthrough_id"):
        event = started("ann", 5)
        del event[name]
        yield Bad(f"start without {name}", Message(b"ann", _json(event)), Rejection.INVALID)
    text = _json(_event()).decode()
    for name in ["event_id", *_IDS]:
        doubled = text[:-1] + f', "{name}": 5}}'
        yield Bad(f"{name} twice, the second wrong", Message(b"ann", doubled.encode()), Rejection.INVALID)


def _times() -> Iterator[Bad]:
    wrong: list[Any] = [
        None, "", "0", "1700000000000", "2024-01-01T00:00:00Z", True, False, [], {},
        0.5, 1.0, 1e300, -0.5, 253_402_300_800_000, 2**53 * 1000, 2**63, 2**64, 10**20, 10**100,
    ]  # fmt: skip
    for value in wrong:
        yield Bad(
            f"completed_at {value!r:.30}",
            Message(b"ann", _json(_event(completed_at=value))),
            Rejection.INVALID,
        )
    text = _json(_event(completed_at=123_456_789)).decode()
    raw = ["1e3", "1E400", "-0.0", "1.0e12", "NaN", "Infinity", "-Infinity"]
    for number in raw:
        value = text.replace("123456789", number).encode()
        yield Bad(f"completed_at written {number}", Message(b"ann", value), Rejection.INVALID)
    yield Bad(
        "5,000 digits", Message(b"ann", text.replace("123456789", "9" * 5_000).encode()), Rejection.NOT_JSON
    )
    for value in (-(10**100), -(2**63), -(10**12), -1, 0, 1, 946_684_799_999, 1_764_000_000):
        yield Bad(
            f"before 2000: {value}"[:40],
            Message(b"ann", _json(_event(completed_at=value))),
            Rejection.TOO_EARLY,
        )
        start = started("ann", 0, started_at=value)
        yield Bad(f"a start then: {value}"[:40], Message(b"ann", _json(start)), Rejection.TOO_EARLY)
    for value in (253_402_300_799_999, 200_000_000_000_000):
        yield Bad(
            f"in the year 9999: {value}",
            Message(b"ann", _json(_event(completed_at=value))),
            Rejection.IN_THE_FUTURE,
        )
        yield Bad(
            f"a start then: {value}", Message(b"ann", _json(started("ann", value))), Rejection.IN_THE_FUTURE
        )


def _metadata() -> Iterator[Bad]:
    wrong: list[Any] = [
        1, "text", True, [], [{}], 1.5, {"a": "\u0000"}, {"\u0000": 1}, {"a": {"b": ["\u0000"]}},
        {"a": "x" * 8_200}, {"k" * 8_200: 1}, {str(i): i for i in range(2_000)}, {"é": "é" * 4_200},
    ]  # fmt: skip
    for value in wrong:
        yield Bad(
            f"metadata {value!r:.30}", Message(b"ann", _json(_event(metadata=value))), Rejection.INVALID
        )
    text = _json(_event(metadata={"n": 123_456_789})).decode()
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        value = text.replace("123456789", number).encode()
        yield Bad(f"metadata with {number}", Message(b"ann", value), Rejection.INVALID)
    deep = text.replace("123456789", "[" * 5_000 + "]" * 5_000).encode()
    yield Bad("deep metadata", Message(b"ann", deep), Rejection.NOT_JSON)


def _references() -> Iterator[Bad]:
    classes = {
        "mcp_server_user_id": Rejection.UNKNOWN_USER,
        "walkthrough_id": Rejection.UNKNOWN_WALKTHROUGH,
        "step_id": Rejection.UNKNOWN_STEP,
        "mcp_server_id": Rejection.UNKNOWN_SERVER,
        "mcp_server_session_id": Rejection.UNKNOWN_SESSION,
    }
    strange = [
        "nobody", "ANN", "ann ", " ann", "x" * 64, "é", "💥", "' or 1=1 --", "%", "_", "\\", '"', "null", "0",
        "A\u0301", "a\u200b", "{ann}", "ann,bob",
    ]  # fmt: skip
    for name, rejection in classes.items():
        for value in strange:
            yield Bad(f"{name} {value!r}", Message(b"ann", _json(_event(**{name: value}))), rejection)
    yield Bad(
        "a step of another walkthrough",
        Message(b"ann", _json(_event(step_id="z"))),
        Rejection.STEP_OF_ANOTHER_WALKTHROUGH,
    )
    yield Bad("a start of nobody", Message(b"ann", _json(started("nobody", 1))), Rejection.UNKNOWN_USER)


def _truncated() -> Iterator[Bad]:
    value = _json(_event())
    for length in range(1, len(value), 9):
        yield Bad(f"cut at {length}", Message(b"ann", value[:length]), Rejection.NOT_JSON)


def _headers() -> Iterator[Bad]:
    value = b"not an event, but with headers"
    headers: list[list[tuple[str, bytes]]] = [
        [("h", b"\xff\xff")],
        [("h", b"")],
        [("", b"1")],
        [("h", b"1"), ("h", b"2")],
        [("traceparent", b"\xff")],
        [("traceparent", b"00-zz-zz-01")],
        [("content-type", b"application/xml; charset=\xe9")],
        [("stepstream-error", b"an earlier one"), ("stepstream-offset", b"-1")],
        [("é", "é".encode())],
        [("h", b"x" * 50_000)],
        [(f"h{i}", b"1") for i in range(200)],
    ]
    for i, given in enumerate(headers):
        yield Bad(f"headers {i}", Message(b"ann", value, given), Rejection.NOT_JSON)


def _large() -> Iterator[Bad]:
    """As large as Kafka takes by default, a little less than 1 MiB."""
    size = 1_048_000
    yield Bad("1 MiB of x", Message(b"ann", b"x" * size), Rejection.NOT_JSON)
    yield Bad("1 MiB of NUL", Message(b"ann", b"\x00" * size), Rejection.NOT_JSON)
    yield Bad("1 MiB of brackets", Message(b"ann", b"[" * size), Rejection.NOT_JSON)
    yield Bad("1 MiB of spaces", Message(b"ann", b" " * size), Rejection.NOT_JSON)
    yield Bad(
        "1 MiB of metadata",
        Message(b"ann", _json(_event(metadata={"a": "x" * (size - 400)}))),
        Rejection.INVALID,
    )
    yield Bad("a key of 500 KB", Message(b"k" * 500_000, b"{}"), Rejection.INVALID)
    yield Bad(
        "1 MiB of user",
        Message(b"ann", _json(_event(mcp_server_user_id="x" * (size - 400)))),
        Rejection.INVALID,
    )
