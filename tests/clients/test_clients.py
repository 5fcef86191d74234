"""Events that real clients send, each from a process of its own, are counted exactly.

    make test-clients

A client whose tools are not on the machine is skipped; with STEPSTREAM_CLIENTS=all it fails.
"""

import asyncio
import json
import os
import re
import subprocess
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from schemas.generate import FOLDER
from services.devstack.kafka import VERSION as KAFKA_VERSION
from tests.clients import expected
from tests.clients.building import HERE, Command
from tests.clients.catalogue import CLIENTS, Client
from tests.clients.expected import VECTORS, Event, people, traffic
from tests.integration.test_codecs import CODECS, stored
from tests.support.world import Message, World

pytestmark = pytest.mark.integration

PARTITIONS = 3
SHARED = [f"everybody's {i}" for i in range(5)]
BAD = b"no json " * 100
#: What a sender exits with when its client has no such thing.
LACKS = 3


@dataclass(frozen=True)
class Sent:
    """How a sender ended: `lacks` or `refused` say why nothing was sent."""

    lacks: str = ""
    refused: str = ""


@dataclass
class Sender:
    """A client's program, and what it has sent to a world."""

    client: Client
    command: Command
    world: World
    record: Callable[[str, object], None]
    events: list[Event] = field(default_factory=list)
    bad: list[bytes] = field(default_factory=list)

    async def send(
        self,
        messages: Iterable[Message],
        codec: str = "none",
        partitioner: str = "default",
        end: str = "plain",
    ) -> Sent:
        settings = self.world.settings
        servers = ",".join(settings.kafka_bootstrap_servers)
        done = await asyncio.to_thread(
            subprocess.run,
            [*self.command, servers, settings.topic, codec, partitioner, end],
            input="".join(map(line, messages)).encode(),
            env=os.environ | {"KAFKAJS_NO_PARTITIONER_WARNING": "1"},
            capture_output=True,
            timeout=300,
            check=False,
        )
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        if done.returncode == LACKS:
            return Sent(lacks=said)
        return Sent(refused=said or f"exit code {done.returncode}") if done.returncode else Sent()

    def reports(
        self, codec: str, how: str, events: object, result: str, moved: "Moved | None" = None
    ) -> None:
        """A line of the table."""
        where = (moved.elsewhere, moved.apart) if moved else ("-", "-")
        self.record("cell", (self.client.name, codec, how, events, *where, result))

    async def wrong(self, events: Sequence[Event]) -> str:
        """Which completions of these people are not what their events say, or nothing."""
        wanted = expected.completions(events)
        names = {e["mcp_server_user_id"] for e in events}
        found = {key: row for key, row in (await self.world.completions()).items() if key[0] in names}
        return "".join(
            f"{key}: {found.get(key)} is not {wanted.get(key)}; "
            for key in sorted(wanted.keys() | found.keys())
            if wanted.get(key) != found.get(key)
        )


def line(message: Message) -> str:
    """What senders read: key or "-", value, and name and value of each header; base64, apart by tabs."""
    assert message.value is not None
    headers = (
        part for name, value in message.headers for part in (name.encode(errors="surrogateescape"), value)
    )
    fields = [message.value, *headers]
    key = "-" if message.key is None else b64encode(message.key).decode()
    return "\t".join([key, *(b64encode(part).decode() for part in fields)]) + "\n"


@pytest.fixture(params=CLIENTS, ids=[client.name for client in CLIENTS])
async def sender(
    request: pytest.FixtureRequest, world: World, record_property: Callable[[str, object], None]
) -> Sender:
    """A client's program, and both services, which read while it sends."""
    client: Client = request.param
    if missing := client.missing():
        record_property("cell", (client.name, "all", "all", "-", "-", "-", f"skipped: {missing}"))
        if os.environ.get("STEPSTREAM_CLIENTS") == "all":
            pytest.fail(f"{client.name}: {missing}")
        pytest.skip(f"{client.name}: {missing}")
    command = await asyncio.to_thread(client.make)
    await world.offer(steps=expected.STEPS)
    world.start_both()
    return Sender(client, command, world, record_property)


@dataclass(frozen=True)
class Moved:
    """How many events are not where their key belongs, and how many people are in several partitions."""

    elsewhere: int
    apart: int

    @classmethod
    def of(cls, records: Iterable[ConsumerRecord], names: Sequence[str]) -> "Moved":
        elsewhere, places = 0, defaultdict(set)
        for record in records:
            user = user_of(record)
            if user in names:
                elsewhere += record.key is not None and record.partition != expected.partition(
                    record.key, PARTITIONS
                )
                places[user].add(record.partition)
        return cls(elsewhere, sum(len(where) > 1 for where in places.values()))


def user_of(record: ConsumerRecord) -> str | None:
    try:
        return str(json.loads(record.value)["mcp_server_user_id"])
    except ValueError:
        return None


async def landed(world: World) -> list[ConsumerRecord]:
    """Every record of the topic, those of transactions that were aborted, too."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=world.settings.kafka_bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(world.settings.topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        records: list[ConsumerRecord] = []
        while any([await consumer.position(p) < ends[p] for p in partitions]):
            for part in (await consumer.getmany(timeout_ms=200)).values():
                records += part
        return records
    finally:
        await consumer.stop()


def test_the_page_names_the_versions_that_are_tried() -> None:
    page = (FOLDER.parent / "docs" / "clients.md").read_text("utf-8")
    modules = re.findall(r"^\t(\S+) v(\S+)$", (HERE / "go" / "go.mod").read_text("utf-8"), re.MULTILINE)
    packages = json.loads((HERE / "node" / "package.json").read_text("utf-8"))["dependencies"]
    tried = [
        *(version for _, version in modules),
        *(packages[name] for name in ("kafkajs", "@platformatic/kafka")),
        *(metadata.version(name) for name in ("confluent-kafka", "aiokafka")),
        KAFKA_VERSION,
    ]
    assert len(tried) == len(CLIENTS)
    assert [version for version in tried if f" {version} |" not in page] == []


def test_the_rule_is_that_of_the_vectors() -> None:
    for vector in VECTORS:
        key = bytes.fromhex(vector["key_utf8_hex"])
        assert {size: expected.partition(key, int(size)) for size in vector["partitions"]} == vector[
            "partitions"
        ]


async def test_every_codec_and_partitioner_counts(sender: Sender) -> None:
    """With people of each cell's own, and some whom all cells send: the earliest of all their events wins."""
    world, client = sender.world, sender.client
    await world.people(SHARED)
    sent: dict[tuple[str, str], list[Event]] = {}
    kept: dict[tuple[int, int], str] = {}
    for codec, partitioner in product(CODECS, client.partitioners):
        cell = f"{codec} {partitioner}"
        await world.people(people(cell))
        own, shared = traffic(cell, people(cell)), traffic(cell + " shared", SHARED)
        bad = Message(f"bad {cell}".encode(), BAD)
        ended = await sender.send([*map(Message.of, own + shared), bad], codec, partitioner)
        if ended.lacks:
            assert codec in client.may_lack, ended
            sender.reports(codec, partitioner, "-", f"skipped: {ended.lacks}")
            continue
        assert ended == Sent(), (cell, ended)
        after = await stored(world, world.settings.topic)
        assert {after[batch] for batch in after.keys() - kept} == {codec}, cell
        kept = after
        sent[codec, partitioner] = own
        sender.events += own + shared
        sender.bad += [bad.key or b""]
    await world.drained()
    records = await landed(world)
    wrong, strays = {}, Counter[str]()
    for (codec, partitioner), own in sent.items():
        moved = Moved.of(records, people(f"{codec} {partitioner}"))
        strays[partitioner] += moved.elsewhere
        differs = await sender.wrong(own)
        sender.reports(codec, partitioner, len(own), "WRONG" if differs else "exact", moved)
        if differs:
            wrong[codec, partitioner] = differs
    assert wrong == {}
    assert await sender.wrong(sender.events) == ""
    assert (await world.transitions(), await world.endings()) == expected.flow(sender.events)
    await world.assert_exact()
    letters = await world.dead_letters()
    assert sorted((x.key, x.value) for x in letters) == sorted((key, BAD) for key in sender.bad)
    assert strays["murmur2"] == 0
    assert (strays["default"] == 0) == client.like_kafka, f"the documentation says otherwise: {strays}"


async def test_without_keys_and_in_transactions(sender: Sender) -> None:
    """What a transaction aborted never counts, though it would have won."""
    world = sender.world
    cells = {name: traffic(name, people(name)) for name in ("no keys", "committed", "aborted")}
    for name in cells:
        await world.people(people(name))
    keyless = [Message(None, Message.of(e).value) for e in cells["no keys"]]
    assert await sender.send(keyless) == Sent()
    messages = [Message.of(e) for e in cells["committed"]]
    ended = await sender.send(messages, "gzip", "default", "commit")
    transactions = not ended.lacks
    if transactions:
        assert ended == Sent()
        # The same people's events, earlier, and some people's only ones.
        better = [
            e | {"completed_at": e["completed_at"] - 1_000}
            for e in cells["committed"]
            if e["type"] == "step-completed"
        ]
        messages = [Message.of(e) for e in [*better, *cells["aborted"]]]
        assert await sender.send(messages, "gzip", "default", "abort") == Sent()
    else:
        assert "transactions" in sender.client.may_lack, ended
        cells["committed"] = []
    await world.drained()
    assert await sender.wrong(cells["no keys"]) == ""
    assert await sender.wrong(cells["committed"]) == ""
    counted = [*cells["no keys"], *cells["committed"]]
    assert (await world.completions()) == expected.completions(counted)
    assert (await world.transitions(), await world.endings()) == expected.flow(counted)
    await world.assert_exact()
    assert await world.dead_letters() == []
    sender.reports(
        "none", "no keys", len(cells["no keys"]), "exact", Moved.of(await landed(world), people("no keys"))
    )
    if not transactions:
        sender.reports("gzip", "transactions", "-", f"skipped: {ended.lacks}")
        return
    sender.reports("gzip", "committed", len(cells["committed"]), "exact")
    sender.reports("gzip", "aborted", len(better) + len(cells["aborted"]), "exact: none counts")


def padded(event: Event, size: int) -> Message:
    """The event in so many bytes, by a field that consumers do not know."""
    short = Message.of(event | {"padding": ""}).value or b""
    return Message.of(event | {"padding": "x" * (size - len(short))})


#: Bytes of a value, and its codec. Topics take batches of 1 MiB and 12 bytes unless they are told otherwise.
LARGE = ((900_000, "none"), (1 << 20, "none"), (1 << 20, "gzip"))
STRANGE = [("ce_source", b"\xff\xfe\x00"), ("", b"\x80")]


async def test_large_values_and_header_bytes_stop_nothing(sender: Sender) -> None:
    """What Kafka takes counts: a client may refuse a large value, or Kafka does."""
    world = sender.world
    names = [f"large {size} {codec}" for size, codec in LARGE]
    await world.people([*names, "headed", "after"])
    events: list[Event] = []
    results: list[str] = []
    for (size, codec), name in zip(LARGE, names, strict=True):
        event = expected.completed(name, "a", expected.BEGIN)
        ended = await sender.send([padded(event, size)], codec)
        results.append(f"refused: {ended.refused}"[:90] if ended.refused else "exact")
        events += [] if ended.refused else [event]
    assert results[0] == "exact"
    good, last = (expected.completed(name, "a", expected.BEGIN) for name in ("headed", "after"))
    headed = Message(b"headed", Message.of(good).value, STRANGE)
    assert await sender.send([headed, Message(b"bad", BAD, STRANGE), headed]) == Sent()
    assert await sender.send([Message.of(last)]) == Sent()
    events += [good, last]
    await world.drained()
    assert await world.completions() == expected.completions(events)
    assert (await world.transitions(), await world.endings()) == expected.flow(events)
    await world.assert_exact()
    (letter,) = await world.dead_letters()
    assert (letter.key, letter.value) == (b"bad", BAD)
    assert set(STRANGE) <= set(letter.headers)
    for (size, codec), result in zip(LARGE, results, strict=True):
        sender.reports(codec, f"{size:,} bytes", 1, result)
    sender.reports("none", "header bytes", 3, "exact")


@pytest.mark.parametrize("sender", [c for c in CLIENTS if c.name == "franz-go"], ids=str, indirect=True)
async def test_a_name_of_a_header_that_is_not_utf8_stops_nothing(sender: Sender) -> None:
    """Names are bytes in Kafka's protocol, and in clients in Go and C."""
    event = expected.completed("headed", "a", expected.BEGIN)
    await sender.world.people(["headed"])
    value = Message.of(event).value
    assert await sender.send([Message(b"headed", value, [("\udcff\udcfe", b"")])]) == Sent()
    await sender.world.drained()
    assert await sender.world.completions() == expected.completions([event])
