"""Kafka loses its tail, stands still, moves leaders, is full, is made anew, or is told other offsets."""

import asyncio
import contextlib
import random
import signal
import struct
import time
from pathlib import Path
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.nemesis import tools
from tests.nemesis.deployment import CONSUMERS, SMALL_KAFKA, THREE_BROKERS
from tests.nemesis.faults.base import Fault
from tests.support.world import RECORDER, eventually

#: A record batch begins with its base offset and its length without these two.
_BATCH = struct.Struct(">qi")
LOG = frozenset({"the log"})


class LostTail(Fault):
    """The broker's machine crashes, and what its disk had not written yet is gone."""

    name = "kafka-lost-tail"
    what = "the broker crashes and loses an unflushed tail of some partitions; newer events take the offsets"
    touches = LOG
    may_lose = True
    lasts = (1.0, 2.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {
            "partitions": sorted(chance.sample(range(3), chance.choice([1, 2, 3]))),
            "seconds": round(chance.uniform(0.8, 2.0), 1),
            "recorder": chance.choice(["had read it", "had not read it"]),
            "consumers": chance.choice(["live on", "are down with it"]),
        }

    async def inject(self) -> None:
        deployment = self.deployment
        (broker,) = deployment.cluster.brokers
        if self.choices["recorder"] == "had not read it":
            deployment.send(RECORDER, signal.SIGSTOP)
        await asyncio.sleep(self.choices["seconds"])
        since = time.time() - self.choices["seconds"]
        await asyncio.to_thread(deployment.cluster.kill, broker)
        if self.choices["consumers"] == "are down with it":
            await deployment.end(*CONSUMERS, how=signal.SIGKILL)
        elif self.choices["recorder"] == "had not read it":
            deployment.send(RECORDER, signal.SIGCONT)
        removed: dict[int, int] = {}
        await self.note_loss(removed)
        cut = self._offsets_since(since)
        for partition in self.choices["partitions"]:
            folder = broker.folder / "data" / f"{self.workload.topic}-{partition}"
            lost, first = await asyncio.to_thread(truncate, folder, cut.get(partition))
            if first is not None:
                removed[partition] = first
            self.note(f"partition {partition} loses {lost} batches from offset {cut.get(partition)} on")
        await asyncio.to_thread(deployment.cluster.start, broker)
        await deployment.cluster.answers()
        self.workload.watch_anew()
        self.note("the broker is back")

    def _offsets_since(self, since: float) -> dict[int, int]:
        """The first offset of each partition that was acknowledged since then."""
        found: dict[int, int] = {}
        for sent in self.history.sent.values():
            for copy in sent.copies:
                if copy.at >= since:
                    found[copy.partition] = min(copy.offset, found.get(copy.partition, copy.offset))
        return found

    async def heal(self) -> None:
        if self.choices["consumers"] == "are down with it":
            self.deployment.release(*CONSUMERS)


def truncate(folder: Path, offset: int | None) -> tuple[int, int | None]:
    """Cuts the newest segment off before an offset, and what was derived from it.

    Returns:
        How many batches are gone, and the first offset of them.
    """
    log = max(folder.glob("*.log"))
    content = log.read_bytes()
    position, keep, lost = 0, len(content), 0
    first: int | None = None
    while offset is not None and position + _BATCH.size <= len(content):
        base, length = _BATCH.unpack_from(content, position)
        if length <= 0:
            break
        if base >= offset:
            keep = min(keep, position)
            first = base if first is None else first
            lost += 1
        position += _BATCH.size + length
    with log.open("r+b") as file:
        file.truncate(keep)
    derived = [*folder.glob("*.index"), *folder.glob("*.timeindex"), *folder.glob("*.snapshot")]
    for file_ in [*derived, folder / "leader-epoch-checkpoint"]:
        file_.unlink(missing_ok=True)
    (folder.parent / "recovery-point-offset-checkpoint").unlink(missing_ok=True)
    return lost, first


class PauseBroker(Fault):
    """The broker stands still and goes on."""

    name = "broker-paused"
    what = "the broker is paused (SIGSTOP) and goes on"
    touches = LOG
    lasts = (2.0, 8.0)

    async def inject(self) -> None:
        for broker in self.deployment.cluster.brokers:
            broker.freeze()

    async def heal(self) -> None:
        for broker in self.deployment.cluster.brokers:
            broker.thaw()


class KillBroker(Fault):
    """The broker is killed; what it had is on its disk."""

    name = "broker-killed"
    what = "the broker is killed (SIGKILL) and started again"
    touches = LOG
    lasts = (0.5, 3.0)

    async def inject(self) -> None:
        for broker in self.deployment.cluster.brokers:
            await asyncio.to_thread(self.deployment.cluster.kill, broker)

    async def heal(self) -> None:
        for broker in self.deployment.cluster.brokers:
            await asyncio.to_thread(self.deployment.cluster.start, broker)
        await self.deployment.cluster.answers()


class LeaderMoves(Fault):
    """One of three brokers is killed, or paused for so long that others take over, and comes back."""

    name = "leader-moved"
    what = "one of three brokers is killed or paused until its leaders have moved, and comes back"
    needs = frozenset({THREE_BROKERS})
    touches = LOG
    lasts = (4.0, 6.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"broker": chance.randrange(3), "how": chance.choice(["killed", "paused"])}

    async def inject(self) -> None:
        broker = self.deployment.cluster.brokers[self.choices["broker"]]
        if self.choices["how"] == "killed":
            await asyncio.to_thread(self.deployment.cluster.kill, broker)
        else:
            broker.freeze()

    async def heal(self) -> None:
        broker = self.deployment.cluster.brokers[self.choices["broker"]]
        if self.choices["how"] == "killed":
            await asyncio.to_thread(self.deployment.cluster.start, broker)
        else:
            broker.thaw()
        await self.deployment.cluster.answers()


class KafkaIsFull(Fault):
    """No byte more fits on the broker's disk; it ends, and starts again when there is room."""

    name = "kafka-disk-full"
    what = "the disk under Kafka is full; the broker ends and is started again when there is room"
    needs = frozenset({SMALL_KAFKA})
    touches = LOG
    lasts = (2.0, 4.0)

    @classmethod
    def require(cls) -> None:
        tools.mounting()

    async def inject(self) -> None:
        for broker in self.deployment.cluster.brokers:
            self.deployment.cluster.is_wanted[broker.number] = False
        await asyncio.to_thread(self.deployment.disks[SMALL_KAFKA].fill)

    async def heal(self) -> None:
        cluster = self.deployment.cluster
        self.deployment.disks[SMALL_KAFKA].empty()
        for broker in cluster.brokers:
            ended = broker.process is None or broker.process.find() is None
            self.note(f"broker {broker.number} {'had ended' if ended else 'still ran'}")
            if not ended:
                await asyncio.to_thread(cluster.kill, broker)
            await asyncio.to_thread(cluster.start, broker)
        await cluster.answers()


class _Admin(Fault):
    @property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.deployment.cluster.addresses, "log_level": 0})


class TopicMadeAnew(_Admin):
    """Somebody deletes the topic and makes it again while services run."""

    name = "topic-made-anew"
    what = "the topic is deleted and made anew while services run; its offsets begin at 0"
    touches = LOG
    may_lose = True
    lasts = (1.0, 2.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"recorder": chance.choice(["had read it", "had not read it"])}

    async def inject(self) -> None:
        behind = self.choices["recorder"] == "had not read it"
        if behind:
            self.deployment.send(RECORDER, signal.SIGSTOP)
            await asyncio.sleep(1.0)
        admin, topic = self.admin, self.workload.topic
        await asyncio.to_thread(admin.delete_topics([topic])[topic].result, 10)

        async def gone() -> bool:
            return topic not in (await asyncio.to_thread(admin.list_topics, timeout=5)).topics

        await eventually(gone, "the topic is gone", 20)
        await self.note_loss()
        new = NewTopic(topic, self.deployment.world.settings.topic_partitions, 1)
        while True:
            try:
                await asyncio.to_thread(admin.create_topics([new])[topic].result, 10)
                break
            except KafkaException:  # it is still being removed
                await asyncio.sleep(0.2)
        self.workload.watch_anew()
        self.note("the topic is made anew")
        if behind:
            self.deployment.send(RECORDER, signal.SIGCONT)


class OffsetsMoved(_Admin):
    """A tool of others moves what a stopped group has committed."""

    name = "offsets-moved"
    what = "a foreign tool moves the committed offsets of a stopped group, back or forward"
    touches = frozenset({"groups"})
    lasts = (0.5, 1.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {
            "service": chance.choice(CONSUMERS),
            "by": chance.choice([-1, 1]) * chance.choice([20, 100]),
        }

    async def inject(self) -> None:
        deployment, name = self.deployment, self.choices["service"]
        await deployment.end(name)
        await asyncio.sleep(2.0)  # there is something to skip
        admin, group = self.admin, deployment.world.settings.group(name)
        try:
            await self._move(admin, group)
        finally:
            deployment.release(name)

    async def _move(self, admin: AdminClient, group: str) -> None:
        async def empty() -> bool:
            described = admin.describe_consumer_groups([group])[group]
            return not (await asyncio.to_thread(described.result, 10)).members

        await eventually(empty, "the group is empty", 20)
        listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group]
        places = (await asyncio.to_thread(listed.result, 10)).topic_partitions
        moved = [Place(p.topic, p.partition, max(0, p.offset + self.choices["by"])) for p in places]
        altered = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, moved)])[group]
        await asyncio.to_thread(altered.result, 10)
        told = ", ".join(
            f"{old.partition}: {old.offset} to {new.offset}" for old, new in zip(places, moved, strict=True)
        )
        self.note(f"offsets of {group}: {told}")


class OpenTransaction(Fault):
    """Somebody began a transaction on the topic and went home."""

    name = "open-kafka-transaction"
    what = "an open Kafka transaction holds back the last stable offset of the topic, and is then aborted"
    lasts = (3.0, 6.0)
    touches = LOG
    _producer: Producer

    async def inject(self) -> None:
        topic = self.workload.topic
        self._producer = Producer(
            {
                "bootstrap.servers": self.deployment.cluster.addresses,
                "transactional.id": f"{topic}.forgotten",
                "transaction.timeout.ms": 50_000,
                "log_level": 0,
            }
        )
        await asyncio.to_thread(self._producer.init_transactions, 10)
        self._producer.begin_transaction()
        for partition in range(self.deployment.world.settings.topic_partitions):
            self._producer.produce(topic, b'{"type": "of a transaction"}', key=b"nobody", partition=partition)
        await asyncio.to_thread(self._producer.flush, 10)

    async def heal(self) -> None:
        with contextlib.suppress(KafkaException):
            await asyncio.to_thread(self._producer.abort_transaction, 10)


FAULTS: tuple[type[Fault], ...] = (
    LostTail,
    PauseBroker,
    KillBroker,
    LeaderMoves,
    KafkaIsFull,
    TopicMadeAnew,
    OffsetsMoved,
    OpenTransaction,
)
