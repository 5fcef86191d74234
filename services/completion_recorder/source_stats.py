"""What is noted beside the rows: how bad recent events were, and who sent what."""

import json
import re
from collections.abc import Collection, Mapping, Sequence, Set

import asyncpg

from services.completion_recorder.erasure import find_erased
from services.completion_recorder.judge import Refused, key_of
from services.completion_recorder.load_counts import Before, LoadCounts
from services.completion_recorder.locks import PATIENCE, wait_at_most
from services.completion_recorder.source_tally import RefusedKind, Unwritten, masked
from services.runtime.database import Connection, Pool, can_be_stored, load_queries
from services.runtime.sources import NO_SOURCE

SQL = load_queries(__file__)

#: What may be a person's id in the name of a source.
_WORDS = re.compile(r"[\w-]+")
#: Of the message of a refused event, in characters.
_LONGEST_MESSAGE = 500


async def note(connection: Connection, topic: str, before: Mapping[int, Before], counted: LoadCounts) -> bool:
    """Writes how many recent events were refused, where some were or had been; and what is due by source.

    Returns whether the counts by source are written; not where somebody has locked their rows: that holds
    up no event.
    """
    total, to_write = counted.recent.total, counted.to_write
    if total.refused or any(known.recent.refused for known in before.values()):
        await connection.execute(SQL["note_recent"], topic, *total, list(before))
    if not to_write:
        return True
    try:
        async with connection.transaction():
            await wait_at_most(connection, PATIENCE)
            await _note(connection, topic, to_write)
    except asyncpg.LockNotAvailableError:
        return False
    return True


async def note_sources(pool: Pool, topic: str, sources: Unwritten) -> None:
    """Writes who sent what.

    Raises:
        asyncpg.LockNotAvailableError: somebody else has locked one of the rows.
    """
    async with pool.acquire() as connection, connection.transaction():
        await _note(connection, topic, sources)


async def find_sources(pool: Pool, topic: str) -> list[str]:
    """The sources of a topic that are told apart."""
    return [row["source"] for row in await pool.fetch(SQL["find_sources"], topic)]


async def forget_sources(pool: Pool) -> None:
    """Deletes sources that sent nothing for 7 days and are not known, and refusals older than 90 days.

    A source is known once enough of its events were recorded: see `note_sources`.
    """
    await pool.execute(SQL["forget_sources"])


async def _note(connection: Connection, topic: str, sources: Unwritten) -> None:
    names = {
        *sources.counts,
        *(source for source, _ in sources.source_servers),
        *(kind.source for kind in sources.refused),
    }
    if nobodys := await _of_erased(connection, names):
        sources = sources.renamed(dict.fromkeys(nobodys, NO_SOURCE))
    if sources.refused:
        await _note_refused(connection, topic, sources.refused)
    if sources.counts:
        counts = sorted(sources.counts.items())
        await connection.execute(
            SQL["note_sources"],
            topic,
            [source for source, _ in counts],
            [of.events for _, of in counts],
            [of.refused for _, of in counts],
            [of.looked_at for _, of in counts],
            [of.elsewhere for _, of in counts],
            [of.without_key for _, of in counts],
        )
    if sources.source_servers:
        await connection.execute(
            SQL["note_organizations"],
            topic,
            [source for source, _ in sources.source_servers],
            [server for _, server in sources.source_servers],
        )


async def _note_refused(connection: Connection, topic: str, refused: Sequence[RefusedKind]) -> None:
    examples = [kind.example for kind in refused]
    await connection.execute(
        SQL["note_refused"],
        topic,
        [kind.source for kind in refused],
        [kind.rejection for kind in refused],
        [kind.server_id for kind in refused],
        [kind.walkthrough_id for kind in refused],
        [kind.events for kind in refused],
        [one.record.partition for one in examples],
        [one.record.offset for one in examples],
        [_without_person(one) for one in examples],
        [json.dumps(masked(one.record.value)) for one in examples],
    )


async def _of_erased(connection: Connection, sources: Collection[str]) -> Set[str]:
    """Those of the sources that name, as a word, somebody who was erased: of them no row is kept."""
    words = {source: {source, *_WORDS.findall(source)} for source in sources}
    erased = await find_erased(connection, set().union(*words.values()))
    return {source for source in sources if not erased.isdisjoint(words[source])}


def _without_person(refused: Refused) -> str:
    """The message of a refusal, which is kept for longer than a person may want, without whose it was."""
    key = key_of(refused.record)
    message = refused.message.replace(key, "…") if key else refused.message
    return "".join(c if can_be_stored(c) else "\ufffd" for c in message[:_LONGEST_MESSAGE])
