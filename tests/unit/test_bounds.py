"""Who a client is, counters that are bounded, log lines that are few, and which session goes first."""

import logging
from collections import Counter

import limits
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.aio.strategies import FixedWindowRateLimiter

from services.runtime import bounds
from services.runtime.bounds import Seldom, client_of
from services.runtime.counters import BoundedStorage
from services.walkthrough_mcp.sessions import Bounds, Ledger, Session

WIDE = Bounds(1_000, 1_000, 1_000)
IDLE = 100.0


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("a name", "a name"),
        ("x" * 9_000, "x" * 64),
    ],
)
def test_a_client_is_an_address_or_the_network_of_a_subscriber(host: str, client: str) -> None:
    assert client_of(host) == client


def test_of_what_a_proxy_names_only_so_much_is_kept() -> None:
    bounds._client_of.cache_clear()
    for length in range(1_000, 1_010):
        assert client_of("x" * length) == "x" * 64
    assert bounds._client_of.cache_info().currsize == 1


async def test_counters_are_bounded_and_the_one_in_use_stays() -> None:
    storage = BoundedStorage(10)
    limiter, rate = FixedWindowRateLimiter(storage), limits.parse("2/minute")
    assert await limiter.hit(rate, "busy")
    for n in range(1_000):
        await limiter.hit(rate, f"once {n}")
        await limiter.test(rate, "busy")
    assert len(storage._counts) == 10
    assert await limiter.hit(rate, "busy")
    assert not await limiter.hit(rate, "busy")
    assert not await limiter.test(rate, "busy")


async def test_a_counter_ends_with_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("services.runtime.counters.time.time", lambda: now)
    limiter, rate = FixedWindowRateLimiter(BoundedStorage(10)), limits.parse("1/minute")
    assert await limiter.hit(rate, "ann")
    assert not await limiter.hit(rate, "ann")
    assert await limiter.get_window_stats(rate, "ann") == (1_060.0, 0)
    now += 61
    assert await limiter.hit(rate, "ann")


async def test_of_many_there_is_one_line_at_once_and_one_later(caplog: pytest.LogCaptureFixture) -> None:
    seldom = Seldom(logging.getLogger("stepstream.test"), "closed")
    for n in range(2_000):
        seldom.warn("the greedy one")
        seldom.warn(f"another {n}")
    assert [r.getMessage() for r in caplog.records] == ["closed: the greedy one: 1"]
    seldom._write()  # a minute later
    line = caplog.records[-1].getMessage()
    assert line.startswith("closed: the greedy one: 1,999, others: ")
    assert line.endswith(" more")
    assert len(seldom._counts) == 0


class Told:
    """A ledger in which sessions are opened in order, and go as they would."""

    def __init__(self, bounds: Bounds) -> None:
        self.ledger = Ledger(bounds, IDLE)
        self.clock = 0.0
        self.over: list[str] = []

    def open(self, name: str, address: str, server: str = "srv", requests: int = 0) -> None:
        self.clock += 1
        session = Session(name.encode(), server, address, "/", None, self.clock)
        self.ledger.forget_idle(self.clock, ())
        self.ledger.add(session)
        while (excess := self.ledger.excess(session)) is not None:
            self.over.append(excess[1].id.decode())
            self.ledger.remove(excess[1].id)
        for _ in range(requests):
            self.use(name)

    def use(self, name: str) -> None:
        self.clock += 1
        self.ledger.use(name.encode(), self.clock)


def test_what_was_never_used_goes_first_and_of_the_address_that_has_most() -> None:
    told = Told(Bounds(total=15, server=100, address=100))
    told.open("old and used", "ann", requests=2)
    told.open("just opened", "bob")
    for n in range(20):
        told.open(f"flood {n}", "eve")
    assert told.over == [f"flood {n}" for n in range(7)]


def test_where_all_are_used_the_one_without_a_call_for_longest_goes_and_not_the_newest() -> None:
    told = Told(Bounds(total=4, server=100, address=100))
    told.open("ann", "ann", requests=2)
    for n in range(3):
        told.open(f"eve {n}", "eve", requests=2)
    told.use("eve 0")
    told.open("bob", "bob")
    told.open("dan", "dan")
    assert told.over == ["eve 1", "eve 2"]


def test_where_no_address_has_more_the_one_without_a_call_for_longest_goes() -> None:
    told = Told(Bounds(total=3, server=100, address=100))
    for name in ("ann", "bob", "cem"):
        told.open(name, name, requests=2)
    told.use("ann")
    told.open("dan", "dan")
    assert told.over == ["bob"]


def test_an_address_and_a_server_have_their_own_bounds() -> None:
    told = Told(Bounds(total=100, server=4, address=2))
    told.open("ann at home", "ann", "home")
    for n in range(4):
        told.open(f"eve {n}", "eve", "shop")
    assert told.over == ["eve 0", "eve 1"]
    for n in range(4):
        told.open(f"{n}", f"address {n}", "shop")
    assert "ann at home" not in told.over
    assert told.ledger._of_server == {"home": 1, "shop": 4}


def test_what_ended_by_itself_is_forgotten_unless_a_stream_of_it_is_open() -> None:
    told = Told(WIDE)
    for name in ("idle", "streaming", "calling"):
        told.open(name, name)
    told.clock = IDLE + 2
    told.use("calling")
    told.ledger.forget_idle(IDLE + 4, {b"streaming": 1})
    assert [name for name in (b"idle", b"streaming", b"calling") if name in told.ledger] == [
        b"streaming",
        b"calling",
    ]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "use", "remove", "idle"]),
            st.integers(0, 20),
            st.sampled_from("ab"),
            st.sampled_from("xyz"),
        )
    )
)
def test_the_bounds_hold_and_the_counts_are_of_what_is_open(acts: list[tuple[str, int, str, str]]) -> None:
    told = Told(Bounds(total=5, server=4, address=3))
    for n, (act, which, server, address) in enumerate(acts):
        opened = [session.decode() for session in told.ledger._open]
        if act == "open":
            told.open(f"{n}", address, server)
        elif act == "idle":
            told.clock += IDLE / 2
        elif opened:
            name = opened[which % len(opened)]
            told.use(name) if act == "use" else told.ledger.remove(name.encode())
        sessions = list(told.ledger._open.values())
        assert len(sessions) <= 5
        assert told.ledger._of_server == Counter(s.server for s in sessions)
        assert told.ledger._of_address == Counter(s.address for s in sessions)
        assert told.ledger._unused_of == Counter(s.address for s in sessions if not s.is_used)
        assert max(told.ledger._of_server.values(), default=0) <= 4
        assert max(told.ledger._of_address.values(), default=0) <= 3
        held = {id_ for h in told.ledger._held.values() for id_ in (*h.unused, *h.used)}
        assert held == set(told.ledger._open)
