"""The examples and partition vectors of the contract, held against the services and another Kafka client."""

import asyncio
import json

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from confluent_kafka import KafkaError, Message, Producer

from schemas.generate import EXAMPLES, FOLDER
from tests.support.world import World

pytestmark = pytest.mark.integration


async def test_librdkafka_sends_every_key_to_the_partition_of_the_vectors(world: World) -> None:
    vectors = json.loads((FOLDER / "partition-vectors.json").read_text("utf-8"))["vectors"]
    sizes = [int(size) for size in vectors[0]["partitions"]]
    assert sizes == [1, 6, 12]
    topics = {size: f"{world.settings.topic}-of-{size}" for size in sizes}
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(name, size, 1) for size, name in topics.items()])
    producer = Producer(
        {
            "bootstrap.servers": ",".join(world.settings.kafka_bootstrap_servers),
            "partitioner": "murmur2_random",
        }
    )
    got: dict[tuple[str, int], int | None] = {}

    def delivered(error: KafkaError | None, message: Message, key: str, size: int) -> None:
        assert error is None
        got[key, size] = message.partition()

    for vector in vectors:
        for size, topic in topics.items():
            producer.produce(
                topic,
                key=bytes.fromhex(vector["key_utf8_hex"]),
                value=b"",
                on_delivery=lambda e, m, k=vector["key"], s=size: delivered(e, m, k, s),
            )
    assert producer.flush(30) == 0
    await admin.delete_topics(list(topics.values()))
    await admin.close()
    assert got == {(v["key"], int(s)): p for v in vectors for s, p in v["partitions"].items()}
    assert {v["key"].encode().hex() for v in vectors} == {v["key_utf8_hex"] for v in vectors}


def lines(kind: str) -> dict[str, bytes]:
    """The examples of a folder by their names, as they lie there: one line each."""
    return {file.stem: file.read_bytes() for file in sorted((EXAMPLES / kind).glob("*.json"))}


async def test_after_one_command_every_example_counts_as_it_is_and_what_is_refused_says_why(
    world: World,
) -> None:
    for _ in range(2):
        done = await world.invoke("examples")
        assert (done.returncode, done.stdout) == (0, "org_examples\n"), done.stderr
    world.start_both()
    valid, refused = lines("valid"), lines("refused")
    assert all(value.count(b"\n") == 1 for value in (*valid.values(), *refused.values()))
    done = await asyncio.to_thread(world.command, "produce", "-", stdin=b"".join(valid.values()))
    assert done.returncode == 0, done.stderr
    await world.drained()
    rows = await world.db.fetch(
        "select replace(id, 'wtsc_', '') from walkthrough_step_completions"
        " union all select substr(id, strpos(id, '_') + 1) from walkthrough_starts"
        " union all select substr(id, strpos(id, '_') + 1) from walkthrough_step_skips"
        " union all select substr(first_id, strpos(first_id, '_') + 1) from walkthrough_step_showings"
    )
    ids = sorted(json.loads(value)["event_id"].lower() for value in valid.values())
    assert sorted(row[0] for row in rows) == ids
    await world.assert_exact()

    done = await asyncio.to_thread(world.command, "produce", "-", stdin=b"".join(refused.values()))
    assert done.returncode == 0, done.stderr
    await world.drained()
    letters = await world.dead_letters()
    assert {dict(letter.headers)["stepstream-error-class"].decode() for letter in letters} == refused.keys()
    assert len(letters) == len(refused)


async def test_rows_sql_is_taken_as_it_is_and_again(world: World) -> None:
    """By psql, or what else sends statements."""
    rows = (EXAMPLES / "rows.sql").read_text("utf-8")
    await world.db.execute(rows)
    before = await world.db.fetch("select * from mcp_server_session order by 1")
    assert len(before) == 4
    await world.db.execute(rows)
    assert await world.db.fetch("select * from mcp_server_session order by 1") == before
