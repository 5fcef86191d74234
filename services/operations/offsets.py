"""Where a service reads on, and how an operator moves it while its group has no members."""

import asyncio
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from services.consumers.lag import GroupPosition
from services.consumers.positions import Position
from services.runtime.database import bounded
from services.runtime.errors import RefusedError, StepstreamError
from services.runtime.kafka import connection, unreachable
from services.runtime.settings import Settings
from services.runtime.text import plural

_COMMIT_SECONDS = 15.0
#: Positions are locked for so long at most: a command that is frozen in its transaction loses its connection.
_TRANSACTION_SECONDS = 60.0


def bounded_move() -> dict[str, str]:
    """Settings of connections that move positions, which services wait for."""
    return bounded(_TRANSACTION_SECONDS)


def reads_on_at(seen: GroupPosition, stored: Position | None) -> int:
    """Where the service reads on: where the database says, or the group's offset, the smaller of the two."""
    if stored is None:
        return seen.begin
    at = stored.reads_from if seen.committed is None else min(stored.reads_from, seen.committed)
    return max(at, seen.begin)


def refuse_members(members: int, group: str, service: str) -> None:
    """Raises RefusedError while a group has members."""
    if members:
        raise RefusedError(
            f"the group {group} has {plural(members, 'member')}: stop every {service} "
            "first (SIGTERM), then run this again, then start them again. A killed one leaves its group "
            "after STEPSTREAM_SESSION_TIMEOUT_SECONDS"
        )


async def commit_for(
    settings: Settings, service: str, offsets: Mapping[TopicPartition, int], words: str
) -> None:
    """Commits offsets as nobody's: the broker takes that only while the group has no members.

    Raises:
        RefusedError: the group has got members.
        StepstreamError: Kafka cannot be reached.
    """
    group = settings.group(service)
    consumer = AIOKafkaConsumer(**connection(settings), group_id=group, enable_auto_commit=False)
    try:
        await consumer.start()
        consumer.assign(list(offsets))
        async with asyncio.timeout(_COMMIT_SECONDS):
            await consumer.commit({tp: (offset, words) for tp, offset in offsets.items()})
    except CommitFailedError:
        raise RefusedError(
            f"the group {group} got members meanwhile, and nothing was changed: stop every {service}"
        ) from None
    except TimeoutError:
        raise StepstreamError(
            f"Kafka did not answer in {_COMMIT_SECONDS:g} s; look at the plan again"
        ) from None
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()
