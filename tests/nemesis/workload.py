"""The crowd: a foreign producer, an outbox with our relay, a witness of the topic, and a reader of the API."""

import asyncio
import contextlib
import json
import random
import time
import uuid
from typing import Any

import asyncpg
import httpx2
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException, Producer

from schemas import OPERATOR_SOURCES
from services.runtime.database_errors import DATABASE_ERRORS
from tests.nemesis.deployment import LED, LED_BY, PEOPLE, WALKTHROUGHS, Deployment
from tests.nemesis.history import TIMES, Answer, Copy, History
from tests.support.agents import Agent, agent

DAY = 86_400_000
#: What goes into the topic at once, and how often.
_FOREIGN, _FOREIGN_EVERY = 20, 0.1
_OUTBOX, _OUTBOX_EVERY = 20, 0.2
_ASK_EVERY = 0.35
#: How many agents there are, how long a person takes for a step, and how long an agent waits for an answer.
_AGENTS, _STEP_SECONDS, _ANSWER_SECONDS = 2, 0.3, 8.0
#: How long there is traffic, and how long none, so that figures are called current now and then.
_BUSY, _IDLE = 1.6, 1.3


class Crowd:
    """Draws events of all types: most of them new, some again, some of before, bad ones and erasures."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._made: list[dict[str, Any]] = []
        self._people = list(PEOPLE)
        #: Nobody erases these by an event; `stepstream erase` may.
        self.kept = set(self._people[::3])

    def event(self) -> dict[str, Any]:
        """A good event, perhaps one that was sent before."""
        chance = self._chance
        draw = chance.random()
        if self._made and draw < 0.08:
            return chance.choice(self._made)
        now = int(time.time() * 1000)
        if self._made and draw < 0.18:  # the same step at another time: often earlier
            before = chance.choice(self._made)
            _, field = TIMES[before["type"]]
            event = before | {
                "event_id": self._id(),
                field: min(now, before[field] - chance.randrange(-DAY // 4, DAY)),
            }
        else:
            event = self._new(now - chance.randrange(1, 10 * DAY))
        self._made.append(event)
        return event

    def _new(self, at: int) -> dict[str, Any]:
        user = self._chance.choice(self._people)
        walkthrough = self._chance.choice(list(WALKTHROUGHS))
        event = {
            "event_id": self._id(),
            "mcp_server_user_id": user,
            "walkthrough_id": walkthrough,
            "mcp_server_id": PEOPLE[user],
            "mcp_server_session_id": f"s_{user}",
        }
        draw = self._chance.random()
        if draw < 0.05:
            return event | {"type": "walkthrough-started", "started_at": at}
        event["step_id"] = self._chance.choice(WALKTHROUGHS[walkthrough])
        if draw < 0.15:
            return event | {"type": "step-skipped", "skipped_at": at}
        if draw < 0.35:
            return event | {"type": "step-shown", "shown_at": at}
        return event | {"type": "step-completed", "completed_at": at}

    def bad(self) -> tuple[str, bytes]:
        """A key and a value that is no event, or one that refers to what there is none of."""
        event = self._new(int(time.time() * 1000))
        user = event["mcp_server_user_id"]
        broken = [
            b"no event",
            json.dumps(event | {"mcp_server_id": "srv_of_nobody"}).encode(),
            json.dumps(event | {"type": "step-completed", "step_id": "z9", "completed_at": 1}).encode(),
            json.dumps(event | {"mcp_server_session_id": "s_of_nobody"}).encode(),
        ]
        return user, self._chance.choice(broken)

    def erasure(self) -> dict[str, Any] | None:
        """Somebody is to be forgotten; not everybody may be."""
        user = self._chance.choice(self._people)
        if user in self.kept:
            return None
        at = int(time.time() * 1000)
        return {
            "type": "user-erased",
            "event_id": self._id(),
            "mcp_server_user_id": user,
            "erased_at": at,
        }

    def _id(self) -> str:
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))


class Workload:
    """All who write and read in a round, and what they note."""

    def __init__(self, deployment: Deployment, history: History, chance: random.Random) -> None:
        self.deployment = deployment
        self.history = history
        self.crowd = Crowd(chance)
        self.committed: set[str] = set()
        self._chance = chance
        self._began = time.monotonic()
        self._calm = asyncio.Event()
        self._end = asyncio.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": deployment.cluster.addresses,
                "partitioner": "murmur2_random",
                "acks": "all",
                "linger.ms": 5,
                "message.timeout.ms": 6000,
                "topic.metadata.refresh.interval.ms": 1000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        self._witness: AIOKafkaConsumer | None = None
        self._anew = False
        self._writers: list[asyncio.Task[None]] = []
        self._others: list[asyncio.Task[None]] = []

    @property
    def topic(self) -> str:
        return self.deployment.world.settings.topic

    def start(self) -> None:
        agents = [self._lead(number) for number in range(_AGENTS)]
        self._writers = [asyncio.create_task(w) for w in (self._produce(), self._fill_outbox(), *agents)]
        self._others = [asyncio.create_task(w) for w in (self._poll(), self._watch(), self._ask())]

    async def quieten(self) -> None:
        """Nobody writes any more; returns when what is under way is known to be in Kafka or not."""
        if self._calm.is_set():
            return
        self._calm.set()
        await asyncio.gather(*self._writers)
        await asyncio.to_thread(self._producer.flush, 10)

    async def close(self) -> None:
        self._calm.set()
        self._end.set()
        tasks = [*self._writers, *self._others]
        _, late = await asyncio.wait(tasks, timeout=8) if tasks else (set(), set())
        for task in late:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        await asyncio.to_thread(self._producer.flush, 0)

    # --- writers --------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Until the next write: longer where nobody writes for a while."""
        await asyncio.sleep(seconds)
        into = (time.monotonic() - self._began) % (_BUSY + _IDLE)
        if into > _BUSY and not self._calm.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._calm.wait(), _BUSY + _IDLE - into)

    async def _produce(self) -> None:
        """A client that is not ours: keyed, acknowledged, with bad events and erasures among the good."""
        while not self._calm.is_set():
            for _ in range(_FOREIGN):
                self.send(self.crowd.event())
            if self._chance.random() < 0.05:
                key, value = self.crowd.bad()
                self._hand_over(key, value, None)
            if self._chance.random() < 0.02 and (erasure := self.crowd.erasure()):
                self.history.erasing.add(erasure["mcp_server_user_id"])
                self.send(erasure)
            await self._pause(_FOREIGN_EVERY)

    def send(self, event: dict[str, Any]) -> None:
        """Hands an event to the foreign producer."""
        if event["type"] != "user-erased":
            self.history.send(event, time.time())
        self._hand_over(event["mcp_server_user_id"], json.dumps(event).encode(), event)

    def _hand_over(self, key: str, value: bytes, event: dict[str, Any] | None) -> None:
        topic = self.topic

        def told(error: Any, message: Any) -> None:
            if error is None and event is not None and message.offset() is not None and message.offset() >= 0:
                self._note(event, Copy(topic, message.partition(), message.offset(), time.time()))

        is_erasure = event is not None and event["type"] == "user-erased"
        headers: dict[str, str | bytes | None] = {"ce_source": OPERATOR_SOURCES[0]} if is_erasure else {}
        with contextlib.suppress(BufferError, KafkaException):  # then it was not sent
            self._producer.produce(topic, value, key=key, headers=headers, on_delivery=told)

    def _note(self, event: dict[str, Any], copy: Copy) -> None:
        if event["type"] == "user-erased":
            self.history.erase(event["mcp_server_user_id"], copy)
        else:
            self.history.acknowledge(event["event_id"], copy)

    async def _poll(self) -> None:
        while not self._end.is_set():
            self._producer.poll(0)
            await asyncio.sleep(0.02)

    async def _fill_outbox(self) -> None:
        """What the platform writes in its own transactions, and our relay brings to Kafka."""
        db: asyncpg.Connection[asyncpg.Record] | None = None
        leads_to = ""
        while not self._calm.is_set():
            events = [self.crowd.event() for _ in range(_OUTBOX)]
            for event in events:
                self.history.send(event, time.time())
            try:
                if db is None or leads_to != self.deployment.world.settings.dsn:
                    leads_to = self.deployment.world.settings.dsn
                    db = await asyncpg.connect(leads_to, timeout=3, command_timeout=5)
                await db.execute(
                    "insert into outbox (key, value) select * from unnest($1::text[], $2::text[])",
                    [event["mcp_server_user_id"] for event in events],
                    [json.dumps(event) for event in events],
                )
                self.committed |= {event["event_id"] for event in events}
            except DATABASE_ERRORS:
                if db is not None:
                    db.terminate()
                db = None
            await self._pause(_OUTBOX_EVERY)
        if db is not None:
            db.terminate()

    # --- agents ---------------------------------------------------------------------------------------

    async def _lead(self, number: int) -> None:
        """Leads one person after the other; one whose agent had no answer is led on from where they are."""
        person = 0
        while not self._calm.is_set():
            try:
                name = f"led-{number}-{person}"
                async with agent(f"http://127.0.0.1:{self.deployment.mcp_port}/mcp/{LED_BY}/{name}") as who:
                    await self._lead_on(name, who)
                person += 1
            except (Exception, BaseExceptionGroup):  # it is away, or does not answer in time
                await asyncio.sleep(_STEP_SECONDS)

    async def _lead_on(self, name: str, who: Agent) -> None:
        async with asyncio.timeout(_ANSWER_SECONDS):
            answer = await who.start()
        while answer["step"] and not self._calm.is_set():
            step = answer["step"]["id"]
            await asyncio.sleep(_STEP_SECONDS)
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await who.next(current_step_id=step)
            self.history.told.add((name, step))

    # --- readers --------------------------------------------------------------------------------------

    def watch_anew(self) -> None:
        """The witness reads everything again: offsets begin anew, or the end was cut off."""
        self._anew = True

    async def _watch(self) -> None:
        """Notes where each event is: what our relay sent, and what nobody was told of."""
        while not self._end.is_set():
            try:
                async with self._consumer() as consumer:
                    self._anew = False
                    while not (self._end.is_set() or self._anew):
                        for records in (await consumer.getmany(timeout_ms=100)).values():
                            self._saw(records)
            except (KafkaError, OSError, TimeoutError):
                await asyncio.sleep(0.5)

    @contextlib.asynccontextmanager
    async def _consumer(self) -> Any:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.deployment.cluster.addresses,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            request_timeout_ms=5000,
        )
        try:
            await consumer.start()
            partitions = [
                TopicPartition(self.topic, p) for p in range(self.deployment.world.settings.topic_partitions)
            ]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            yield consumer
        finally:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await consumer.stop()

    def _saw(self, records: Any) -> None:
        now = time.time()
        for record in records:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._note(json.loads(record.value), Copy(record.topic, record.partition, record.offset, now))

    def _note_led(self, event: dict[str, Any]) -> None:
        if event["walkthrough_id"] == LED and event.get("type") == "step-completed":
            who = (event["mcp_server_session_id"], event["mcp_server_user_id"])
            self.history.led.add((*who, event["step_id"]))

    async def read_to_the_end(self) -> set[tuple[str, int, int]]:
        """Reads the whole topic once more, and returns event, partition and offset of what is in it."""
        found = set()
        async with self._consumer() as consumer:
            partitions = list(consumer.assignment())
            ends = await consumer.end_offsets(partitions)
            while any([await consumer.position(p) < ends[p] for p in partitions]):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    self._saw(records)
                    for record in records:
                        with contextlib.suppress(ValueError, KeyError, TypeError):
                            event = json.loads(record.value)
                            found.add((event["event_id"], record.partition, record.offset))
                            self._note_led(event)
        return found

    async def _ask(self) -> None:
        """A reader of the dashboard, who believes what is called current."""
        names = list(WALKTHROUGHS)
        while not self._end.is_set():
            with contextlib.suppress(httpx2.HTTPError, OSError, ValueError):
                answer = await asyncio.wait_for(self.ask(names[0]), 5)
                if answer is not None:
                    self.history.answers.append(answer)
            names.append(names.pop(0))
            await asyncio.sleep(_ASK_EVERY)

    async def ask(self, walkthrough: str) -> Answer | None:
        """One question; None where there is no answer."""
        asked_at = time.time()
        response = await self.deployment.api.ask(f"walkthroughs/{walkthrough}/sankey")
        if response.status_code != 200:
            return None
        told = response.json()
        steps: dict[str, int] = {}
        for link in told["links"]:
            if not link["skipped"]:
                steps[link["to_step_id"]] = steps.get(link["to_step_id"], 0) + link["journeys"]
        looked_at, current = told["freshness"]["looked_at"], told["freshness"]["current"]
        return Answer(
            walkthrough,
            asked_at,
            time.time(),
            None if looked_at is None else looked_at / 1000,
            current,
            told["journeys"],
            steps,
        )
