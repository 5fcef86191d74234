"""What a shell notes of each fetch. FastStream calls `getmany` by itself, so that is where it is noted."""

from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer

from services.consumers.handling import BatchHandler

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell


def note_fetches(shell: "ConsumerShell[BatchHandler]") -> None:
    """Replaces `getmany` of the consumer, once, to note after how many placings a batch was fetched."""
    consumer = shell.consumer
    getmany: Any = consumer.getmany
    if getattr(getmany, "__func__", None) is not AIOKafkaConsumer.getmany:
        return

    async def noting(*args: Any, **options: Any) -> Any:
        shell.in_hand.is_on_its_way = False
        fetched = await getmany(*args, **options)
        shell.paused_partitions.show_unreadable()
        shell.placing.fetched()
        shell.in_hand.is_on_its_way = bool(fetched)
        for records in fetched.values():
            shell.keeper.fetched(records[-1])
        return fetched

    consumer.getmany = noting  # type: ignore[method-assign]
