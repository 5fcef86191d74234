"""Who sent a record: the source that CloudEvents headers name; and what its producer should change."""

from collections.abc import Iterable
from typing import Final

#: The header that names the source, and what a record without one has.
SOURCE_HEADER: Final = "ce_source"
NO_SOURCE: Final = "(no source)"
#: What sources are together, beyond the most that are told apart.
OTHERS: Final = "(other sources)"
MAX_SOURCE: Final = 100


def source_of(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """The source of a record: its `ce_source`, the last one where there are several.

    What is not UTF-8, not printable, empty or longer than 100 characters is no source: `(no source)`.
    """
    given = None
    for name, value in headers:
        if name == SOURCE_HEADER:
            given = value
    # A character has at most 4 bytes: what is longer need not be decoded.
    if not given or len(given) > 4 * MAX_SOURCE:
        return NO_SOURCE
    try:
        source = given.decode()
    except UnicodeDecodeError:
        return NO_SOURCE
    return source if source.isprintable() and len(source) <= MAX_SOURCE else NO_SOURCE


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
    habits = []
    if elsewhere:
        habits.append(
            f"{elsewhere / looked_at:.0%} of a sample are in another partition than Kafka's default "
            "partitioner chooses for their key: set the producer's partitioner to murmur2 "
            "(librdkafka: `partitioner=murmur2_random`)."
        )
    if without_key:
        habits.append(
            f"{without_key / looked_at:.0%} of a sample have no key: send the person's id "
            "(`mcp_server_user_id`) as the key."
        )
    return habits
