"""What the relay does with answers that a healthy Kafka does not give; a fake stands in for the producer."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, UnknownError
from aiokafka.structs import RecordMetadata

from services.consumers.positions import Fingerprint
from services.outbox_relay.sender import Acknowledged, Message, Refused, Sender, waves
from services.runtime.producer import Producer
from services.runtime.settings import Settings

SETTINGS = Settings(kafka_bootstrap_servers=["127.0.0.1:1"], database_url="postgresql://nowhere/none")


PLACE = RecordMetadata("t", 0, TopicPartition("t", 0), 7, 1_000, 0, 0)


class Broker:
    """Refuses the keys that it is told to, and with each of them the whole wave, as a batch would be."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self.errors = errors
        self.taken: list[str] = []
        self.futures: list[tuple[str, asyncio.Future[object]]] = []
        self.batch: list[str] = []

    async def send(self, topic: str, *, key: bytes, value: bytes, headers: Any) -> "asyncio.Future[object]":
        self.batch.append(value.decode())
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.futures.append((key.decode(), future))
        asyncio.get_running_loop().call_soon(self._answer)
        return future

    async def send_and_wait(self, topic: str, *, key: bytes, value: bytes, headers: Any) -> RecordMetadata:
        if error := self.errors.get(key.decode()):
            raise error
        self.taken.append(value.decode())
        return PLACE

    def _answer(self) -> None:
        futures, batch = self.futures, self.batch
        self.futures, self.batch = [], []
        error = next((self.errors[key] for key, _ in futures if key in self.errors), None)
        for _, future in futures:
            if error is None:
                future.set_result(PLACE)
            else:
                future.set_exception(error)
        if error is None:
            self.taken += batch


async def send(broker: Broker, keys: str) -> tuple[list[int], list[Refused]]:
    sender = Sender(SETTINGS, Producer(SETTINGS, None, {}))

    async def start() -> Any:
        return broker

    sender.start = start  # type: ignore[method-assign]
    sent: list[int] = []
    refused: list[Refused] = []
    messages = [Message(i, key, f"{key}{i}", "{}") for i, key in enumerate(keys)]
    await sender.send(messages, sent, refused)
    return sent, refused


def test_a_wave_holds_one_message_of_a_key() -> None:
    messages = [Message(i, key, "{}", "{}") for i, key in enumerate("aabcab")]
    assert [[m.id for m in wave] for wave in waves(messages)] == [[0, 2, 3], [1, 5], [4]]


@pytest.mark.parametrize("error", [MessageSizeTooLargeError(), UnknownError()])
async def test_a_refused_record_is_found_in_its_batch_and_the_others_of_all_keys_go_on(
    error: Exception,
) -> None:
    broker = Broker({"b": error})
    sent, refused = await send(broker, "abcabca")
    assert sorted(sent) == [0, 2, 3, 5, 6]
    assert [r.message.id for r in refused] == [1, 4]
    assert [v for v in broker.taken if v[0] == "a"] == ["a0", "a3", "a6"]


async def test_an_answer_that_is_unclear_and_given_to_everybody_is_no_fault_of_the_records() -> None:
    with pytest.raises(UnknownError):
        await send(Broker({"a": UnknownError(), "b": UnknownError()}), "ab")


async def test_any_other_error_ends_the_load_and_sets_nothing_aside() -> None:
    with pytest.raises(KafkaTimeoutError):
        await send(Broker({"a": KafkaTimeoutError()}), "ab")


def test_what_follows_on_takes_the_place_of_the_last_and_what_may_be_behind_a_cut_does_not() -> None:
    first, later, before = Fingerprint(7, 1, 1), Fingerprint(9, 1, 2), Fingerprint(5, 1, 3)
    only = Acknowledged(7, first)
    assert only.and_then(later, follows_on=True) == Acknowledged(7, later)
    assert only.and_then(before, follows_on=True) == Acknowledged(7, first, interrupted=True)
    assert only.and_then(later, follows_on=False) == Acknowledged(7, first, interrupted=True)
    behind = only.and_then(before, follows_on=True)
    assert behind.and_then(later, follows_on=True) == behind
