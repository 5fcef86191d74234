"""Who sent a record: the source that CloudEvents headers name; and what its producer should change."""

from collections.abc import Iterable
from typing import Final

#: Of records whose producer does not say who it is.
NO_SOURCE: Final = "(no source)"
#: Of those beyond the most that are told apart.
OTHERS: Final = "(others)"
_HEADER: Final = "ce_source"
_MOST_CHARACTERS: Final = 100


def source_of(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """The `ce_source` of a record, if it is text that can be shown; at most 100 characters of it.

    Source: CloudEvents 1.0.2, Kafka Protocol Binding, section 3.2.3.
    """
    for name, value in headers:
        if name == _HEADER and value:
            try:
                text = value[: 4 * _MOST_CHARACTERS].decode()
            except UnicodeDecodeError:
                return NO_SOURCE
            return text[:_MOST_CHARACTERS] if text.isprintable() else NO_SOURCE
    return NO_SOURCE


#: Habits are told of a source from so many records of the sample on, where so many percent of them are odd.
LEAST_LOOKED_AT: Final = 20
LEAST_PERCENT: Final = 5


def habits(looked_at: int, elsewhere: int, without_key: int) -> list[str]:
    """What a producer should change of how it chooses partitions, in sentences; none where little is odd.

    Args:
        looked_at: how many records of the source are in the sample.
        elsewhere: those in another partition than Kafka's default partitioner chooses for their key.
        without_key: those without a key.
    """
    if looked_at < LEAST_LOOKED_AT or 100 * (elsewhere + without_key) < LEAST_PERCENT * looked_at:
        return []
    told = []
    if elsewhere:
        told.append(
            f"{elsewhere / looked_at:.0%} of a sample are in another partition than Kafka's default "
            "partitioner chooses for their key: set the producer's partitioner to murmur2 "
            "(librdkafka: `partitioner=murmur2_random`)."
        )
    if without_key:
        told.append(
            f"{without_key / looked_at:.0%} of a sample have no key: send the person's id "
            "(`mcp_server_user_id`) as the key."
        )
    return told
