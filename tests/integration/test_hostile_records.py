"""Records of a hostile producer: too large for a dead letter, or for the memory. Neither service stops.

Their batches are small, for they are compressed.
"""

import asyncio
import hashlib
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.consumers.batches import ERROR_CLASS
from services.consumers.unpacking import MOST_BYTES
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES
from tests.support.bombs import CODECS, batch_of, bomb, produce_raw, record
from tests.support.world import RECORDER, Message, Service, World, completed, eventually

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i}" for i in range(30)]
BOMB_BYTES = 300_000_000
#: The bound of the containers, in MiB.
MOST_MEMORY = 512


async def prepare(world: World) -> None:
    await world.offer()
    await world.people([*PEOPLE, "ann"])


async def take_large_batches(world: World) -> None:
    """Snappy and lz4 do not make 300 MB small enough for what Kafka takes by default."""
    world.is_topic_changed = True
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    limit = {"max.message.bytes": str(32 * 1024 * 1024)}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, world.settings.topic, limit)])
    await admin.close()


def peak_memory(service: Service) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


async def ready_text(service: Service) -> str:
    def read() -> str:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{service.port}/health/ready", timeout=30
            ) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:  # it is starting
            return error.read().decode()

    return await asyncio.to_thread(read)


async def counted(world: World, steps: str) -> None:
    """Waits until all people's steps are recorded and counted."""

    async def done() -> bool:
        said = await world.transitions()
        return sum(said.values()) == len(PEOPLE) * len(steps)

    await eventually(done, f"{steps} of everybody are counted")


async def invoked(world: World, *command: str) -> Any:
    done = await world.invoke(*command, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- too large for a dead letter ------------------------------------------------------------------------


async def holds_its_first_part(world: World, value: bytes) -> None:
    (letter,) = await world.dead_letters()
    assert letter.value
    assert value.startswith(letter.value)
    assert DEAD_LETTER_MAX_BYTES - 4_096 < len(letter.value) < DEAD_LETTER_MAX_BYTES
    headers = dict(letter.headers)
    assert (letter.key, headers["ce_source"]) == (b"ann", b"/shop")
    assert headers["stepstream-cut"] == b"value"
    assert headers["stepstream-cut-value-bytes"] == str(len(value)).encode()
    assert headers["stepstream-cut-value-sha256"] == hashlib.sha256(value).hexdigest().encode()


async def commands_say_that_it_is_cut(world: World, where: str, value: bytes) -> None:
    (listed,) = await invoked(world, "dlq", "list")
    assert (listed["id"], listed["source"]) == (where, "/shop")
    assert (listed["cut"]["parts"], listed["cut"]["value_bytes"]) == (["value"], len(value))
    (summed,) = await invoked(world, "dlq", "summary")
    assert (summed["letters"], summed["cut"]) == (1, 1)
    shown = await invoked(world, "dlq", "show", where)
    assert shown["cut"]["value_sha256"] == hashlib.sha256(value).hexdigest()
    assert [h["name"] for h in shown["headers"]] == ["ce_source"]
    for command in (("list",), ("summary",), ("show", where)):
        told = await world.invoke("dlq", *command)
        assert "cut" in told.stdout, command


async def test_what_is_too_large_for_a_dead_letter_is_one_that_is_cut(world: World) -> None:
    await prepare(world)
    event = completed("ann", "a", 1)
    value = json.dumps(event | {"metadata": {"note": "x" * 3_000_000}}).encode()
    large = Message(b"ann", value, [("ce_source", b"/shop")])
    await world.produce([large], compression_type="zstd", max_request_size=2**24)
    await world.produce([completed(name, "a", 1) for name in PEOPLE])
    recorder, _ = world.start_both()
    await world.drained()
    assert recorder.process.poll() is None
    assert len(await world.completions()) == len(PEOPLE)

    await holds_its_first_part(world, value)
    (source,) = [r for r in await world.events() if r.value == value]
    where = f"{source.partition}:{source.offset}"
    await commands_say_that_it_is_cut(world, where, value)
    refused = await world.invoke("dlq", "redrive", "--id", where, "--execute")
    words = " ".join(refused.stderr.split())
    assert "1 hold a part of their event alone" in words
    assert "--from-file" in words
    assert "0 sent again" in words
    sent = await invoked(world, "dlq", "redrive", "--execute")
    assert (sent["matching"], sent["sent"], sent["cut"]) == (1, 0, 1)

    exported = await world.invoke("dlq", "export")
    mended = world.folder / "mended.ndjson"
    mended.write_text(exported.stdout)
    unmended = await world.invoke("dlq", "redrive", "--from-file", str(mended), "--execute")
    assert unmended.returncode == 1, unmended.stderr
    line = json.loads(exported.stdout) | {"value": event}
    mended.write_text(json.dumps(line))
    done = await invoked(world, "dlq", "redrive", "--from-file", str(mended), "--execute")
    assert done["sent"] == 1
    await world.drained()
    assert ("ann", "a") in await world.completions()
    assert await invoked(world, "dlq", "list") == []
    await world.assert_exact()
    assert (await invoked(world, "verify", "--against-topic"))["left_out"] == []


async def test_keys_and_headers_of_any_size_are_cut_too(world: World) -> None:
    await prepare(world)
    many = [("h", b"x" * 50)] * 40_000
    odd = [
        Message(b"k" * 2_500_000, b"no event"),
        Message(b"ann", b"no event", [("large", b"x" * 2_500_000), ("ce_source", b"/shop")]),
        Message(b"ann", b"no event", [*many, ("n" * 2_500_000, b"x")]),
        Message(b"ann", b"y" * 1_700_000, many),
        Message(b"k" * 100_000, b"y" * 2_200_000, many),
    ]
    for one in odd:
        await world.produce([one], compression_type="zstd", max_request_size=2**24)
    await world.produce([completed(name, "a", 1) for name in PEOPLE])
    world.start_both()
    await world.drained()
    assert len(await world.completions()) == len(PEOPLE)
    cut = {json.dumps(x["cut"]["parts"]): x for x in await invoked(world, "dlq", "list")}
    assert cut.keys() == {'["key"]', '["headers"]', '["value", "key", "headers"]'}
    letters = await world.dead_letters()
    assert len(letters) == len(odd)
    kept = {
        (
            len(x.key or b""),
            len(x.value or b"") if dict(x.headers)["stepstream-cut"] != b"value key headers" else 0,
        )
        for x in letters
    }
    assert kept == {(64 * 1024, 8), (3, 8), (3, 1_700_000), (64 * 1024, 0)}
    (shop,) = [x for x in letters if ("ce_source", b"/shop") in x.headers]
    assert [name for name, _ in shop.headers if not name.startswith("stepstream-")] == ["ce_source"]


async def test_a_producer_cannot_say_itself_that_its_record_was_cut(world: World) -> None:
    await prepare(world)
    said = [
        ("stepstream-cut", b"value"),
        ("stepstream-cut-value-bytes", b"9"),
        ("stepstream-cut-key-bytes", b"3"),
        ("stepstream-cut-headers", b"0"),
        ("stepstream-cut-value-sha256", b"00"),
        ("stepstream-cut-crc32", b"1"),
    ]
    await world.produce([Message(b"ann", b"no event", said)])
    world.start(RECORDER)
    await eventually(lambda: _has_letters(world, 1), "a dead letter")
    (listed,) = await invoked(world, "dlq", "list")
    assert "cut" not in listed


async def _has_letters(world: World, count: int) -> bool:
    return len(await world.dead_letters()) == count


# --- too large for the memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS[1:])
async def test_a_batch_that_unpacks_to_too_much_stops_one_partition_alone(world: World, codec: str) -> None:
    await prepare(world)
    await take_large_batches(world)
    packed = bomb(codec, BOMB_BYTES)

    await eventually(lambda: _taken(world, packed), "the topic takes large batches")
    await world.produce([completed(name, "a", 1) for name in PEOPLE])
    services = world.start_both()
    await eventually(lambda: _all_name_it(services), "both name it")
    for service in services:
        assert f"cannot be read at offset 0: it unpacks to more than {MOST_BYTES:,} bytes" in (
            await ready_text(service)
        )
    status = await world.invoke("status")
    assert status.returncode == 3
    skipped = await invoked(world, "skip", "--partition", "0", "--execute")
    assert skipped
    await world.drained()
    await counted(world, "a")
    (letter,) = await world.dead_letters()
    told = dict(letter.headers)
    assert told["stepstream-error-class"] == ERROR_CLASS.encode()
    assert b"unpacks to more than" in told["stepstream-error"]
    if len(packed) < DEAD_LETTER_MAX_BYTES - 4_096:
        assert letter.value is not None
        assert letter.value[-1_000:] == packed[-1_000:]
    memory = {service.name: peak_memory(service) // 2**20 for service in services}
    assert max(memory.values()) < MOST_MEMORY, memory


async def _taken(world: World, packed: bytes) -> bool:
    """The broker has the setting a moment after it has said so."""
    try:
        await produce_raw(world, 0, packed)
    except AssertionError:
        return False
    return True


async def _all_name_it(services: list[Service]) -> bool:
    for service in services:
        if not service.port or "cannot be read" not in await ready_text(service):
            return False
    return True


@pytest.mark.parametrize("codec", CODECS[1:])
async def test_many_batches_just_within_the_bound_are_taken_a_few_at_a_time(world: World, codec: str) -> None:
    """A few MB of them would be gigabytes."""
    await prepare(world)
    packed = bomb(codec, 15_000_000)
    for partition in range(3):
        for _ in range(10):
            await produce_raw(world, partition, packed)
    await world.produce([completed(name, "a", 1) for name in PEOPLE])
    services = world.start_both()
    await world.drained()
    await counted(world, "a")
    assert len(await world.dead_letters()) == 30
    memory = {service.name: peak_memory(service) // 2**20 for service in services}
    assert max(memory.values()) < MOST_MEMORY, memory


async def test_headers_that_have_nothing_are_counted(world: World) -> None:
    """Two bytes each in a batch, and thirty times as many in memory."""
    await prepare(world)

    def records(count: int, headers: int) -> Any:
        return (piece for number in range(count) for piece in record(number, 10, headers))

    await produce_raw(world, 0, batch_of(records(1, 5_000_000), 1, "zstd"))
    for _ in range(10):
        await produce_raw(world, 1, batch_of(records(2, 149_000), 2, "zstd"))
    await world.produce([completed(name, "a", 1) for name in PEOPLE])
    services = world.start_both()
    await eventually(lambda: _all_name_it(services), "both name it")
    assert "its records have more than 300,000 headers" in await ready_text(services[0])
    await invoked(world, "skip", "--partition", "0", "--execute")
    await world.drained()
    await counted(world, "a")
    memory = {service.name: peak_memory(service) // 2**20 for service in services}
    assert max(memory.values()) < MOST_MEMORY, memory


async def test_commands_that_read_the_topic_leave_it_out(world: World) -> None:
    await prepare(world)
    await world.produce([completed(name, "a", 1) for name in PEOPLE])
    await produce_raw(world, 0, bomb("zstd", BOMB_BYTES))
    done = await world.invoke("check-events", "--topic", world.settings.topic)
    assert "unpacks to more than" in done.stderr + done.stdout
