"""A Kafka of a test's own: three real brokers, or one, that may be killed, restarted and frozen."""

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from services.devstack.kafka import new_cluster_id, start_node
from services.devstack.processes import Process, free_port
from tests.support.folders import server_folder
from tests.support.world import eventually


@dataclass
class Broker:
    """One node: broker and controller."""

    number: int
    folder: Path
    port: int
    controller_port: int
    process: Process | None = None

    def signal(self, number: int) -> None:
        assert self.process is not None
        found = self.process.find()
        assert found is not None
        found.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.stop(10)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)


class _EndedError(Exception):
    """A broker has ended by itself: somebody took its port before it did, say."""


class Cluster:
    """Brokers that know each other."""

    def __init__(self, size: int) -> None:
        self.folder = server_folder("cluster-")
        self._id = new_cluster_id()
        self.brokers = [Broker(n, self.folder / str(n), free_port(), free_port()) for n in range(1, size + 1)]

    @property
    def addresses(self) -> str:
        return ",".join(f"127.0.0.1:{b.port}" for b in self.brokers)

    def start(self, broker: Broker) -> None:
        broker.process = start_node(broker.folder, self.properties(broker), self._id, memory="400m")

    def properties(self, broker: Broker) -> dict[str, str]:
        """What this broker is told beside what every node of ours is."""
        size = len(self.brokers)
        copies = str(size)
        most = str(max(1, size - 1))
        return {
            "node.id": str(broker.number),
            "controller.quorum.voters": ",".join(
                f"{b.number}@127.0.0.1:{b.controller_port}" for b in self.brokers
            ),
            "listeners": f"PLAINTEXT://127.0.0.1:{broker.port},CONTROLLER://127.0.0.1:{broker.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker.port}",
            "default.replication.factor": copies,
            "min.insync.replicas": most,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": most,
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "controller.quorum.election.timeout.ms": "500",
            "controller.quorum.fetch.timeout.ms": "1000",
            "replica.lag.time.max.ms": "3000",
        }

    async def start_all(self) -> None:
        """Starts all brokers; where one ends at once, all again on other ports, of which nobody knows yet."""
        for _ in range(3):
            for broker in self.brokers:
                self.start(broker)
            try:
                return await self.answers(must_run=True)
            except _EndedError:
                self._end()
                self.__init__(len(self.brokers))  # type: ignore[misc]
        raise AssertionError("a broker ends by itself each time")

    async def answers(self, brokers: int | None = None, *, must_run: bool = False) -> None:
        """Waits until so many brokers are in the cluster, and serve groups.

        Raises:
            _EndedError: one has ended, where all `must_run`.
        """
        wanted = brokers or len(self.brokers)

        async def asked() -> bool:
            if must_run and any(b.process is None or b.process.find() is None for b in self.brokers):
                raise _EndedError
            admin = AIOKafkaAdminClient(bootstrap_servers=self.addresses.split(","))
            try:
                await admin.start()
                there = await admin.describe_cluster()
                await admin.list_consumer_group_offsets("stepstream")
                return len(there["brokers"]) >= wanted
            except KafkaError:
                return False
            finally:
                await admin.close()

        await eventually(asked, "Kafka answers", seconds=60, every=0.2)

    def stop(self) -> None:
        self._end()

    def _end(self) -> None:
        for broker in self.brokers:
            if broker.process is not None and broker.process.find() is not None:
                broker.signal(signal.SIGCONT)
                broker.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
