"""Forgetting a person: rows, counts, what is on its way, dead letters; and an event, so that it stays so.

In this order, each step done again where the command is run again:

1. One transaction: note the person as erased, delete their rows and what is on its way, take them out of the
   counts and of the names of sources, and put the `user-erased` event into the outbox.
2. Send the event, unless a relay was quicker, and wait until the recorder has passed it: until then it may
   still refuse events of theirs into the dead letters.
3. Take them out of the names of sources once more: the recorder has written what it had counted.
4. Remove their dead letters. None can be removed from a topic by itself: the letters of others in the same
   partition are copied behind the last one, and what lies before the copies is removed.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uuid_utils
from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import KafkaError

from schemas import EventError, UserErased, decode, encode
from services.completion_recorder import erasure as erasures
from services.completion_recorder import source_names
from services.completion_recorder.dead_letters import Letter, Source, parse, read_partitions
from services.completion_recorder.decisions import operator_headers, wait_for_recorder
from services.completion_recorder.people import find_person
from services.consumers.lag import RECORDER
from services.outbox_relay import person as outbox
from services.runtime.alone import Act, be_alone
from services.runtime.crashpoints import crash_point
from services.runtime.database import Connection, connected, fetch_one, load_queries
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, Record, admin_client, unreachable
from services.runtime.producer import NULL, producer
from services.runtime.settings import Settings
from services.runtime.text import plural
from services.sankey_aggregator import counting

SQL = load_queries(__file__)

#: How long to wait for somebody who has locked the person, or something of theirs.
_LOCK = {"lock_timeout": "10s"}
#: What the transaction holds up ends with it: a command that is frozen in it loses its connection.
_TRANSACTION_SECONDS = 60
#: How long to wait for another who handles the dead letters, in seconds.
_LETTERS_SECONDS = 60.0
#: Of somebody whose id no event can have: events of theirs never count, so there is nothing to keep away.
_UNNAMEABLE = (
    "no event can have this id, so none says that they are erased: events of theirs never count, and become "
    "dead letters. Where some come later, run this again"
)
_SHARED_ADDRESS = (
    "their address is that of others, too, in another case: what holds it is theirs where it is written "
    "exactly as they have it"
)
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")
#: What `json` raises for what is no JSON, and for what is nested too deeply.
_UNREADABLE = (ValueError, RecursionError)


@dataclass(frozen=True)
class Names:
    """What a person is called; the patterns are regular expressions for Python and for PostgreSQL."""

    user: str
    tracking_id: str = ""
    email: str = ""
    #: The ids under which organizations have registered them. Another's may be the same, and many are short.
    registered: tuple[str, ...] = ()
    #: Others have the address in another case: what is in neither may be theirs.
    is_email_exact: bool = False

    @property
    def id_pattern(self) -> str:
        """Finds the person's id in a text, as a whole word: another's id may begin with it."""
        return _words(self.user)

    @property
    def pattern(self) -> str:
        """Finds them in a text, as whole words."""
        return _words(self.user, self.tracking_id, self.email, exact=self.is_email_exact)

    @property
    def source_pattern(self) -> str:
        """Finds them in a source.

        A tracking id, which people choose themselves, is all of it: as a word it may be another's name.
        """
        whole = f"|^{re.escape(self.tracking_id)}$" if self.tracking_id else ""
        email = self.email if "@" in self.email else ""
        return _words(self.user, email, exact=self.is_email_exact) + whole

    def are_in(self, text: str) -> bool:
        """Whether a text speaks of the person."""
        return re.search(self.pattern, text) is not None


class NameOfNobody(Names):
    """A name by which nobody is known: an e-mail address, or else all of a source.

    As a word it may be in the names of others: a slip would take what those have sent.
    """

    @property
    def pattern(self) -> str:
        return _words(self.user) if _ADDRESS.fullmatch(self.user) else f"^{re.escape(self.user)}$"

    @property
    def source_pattern(self) -> str:
        return self.pattern


def _words(*names: str, exact: bool = False) -> str:
    return rf"(?<![\w-])(?:{'|'.join(_word(name, exact) for name in names if name)})(?![\w-])"


def _word(name: str, exact: bool) -> str:
    """A name; an address in any case unless `exact`, and another's may end with it, or begin with it."""
    if "@" not in name:
        return re.escape(name)
    address = re.escape(name) if exact else "".join(map(_in_any_case, name))
    return rf"(?<![.+]){address}(?!\.[\w-])"


def _in_any_case(letter: str) -> str:
    """Python and PostgreSQL share no other way to say that a part of a pattern has no case."""
    lower, upper = letter.lower(), letter.upper()
    return f"[{lower}{upper}]" if lower != upper and len(lower + upper) == 2 else re.escape(letter)


@dataclass(frozen=True, slots=True)
class Letters:
    """Dead letters: the person's by partition, and those of others that name them."""

    theirs: dict[TopicPartition, list[Record]]
    naming: list[Letter]

    @property
    def count(self) -> int:
        """How many are the person's."""
        return sum(len(letters) for letters in self.theirs.values())


@dataclass
class Receipt:
    """What is, or was, there of a person; and where the topic says that they are erased."""

    user: str
    known: bool
    erased_at: int | None
    removed: dict[str, int] = field(default_factory=dict)
    #: Dead letters of others that name the person: they stay.
    named_in: list[str] = field(default_factory=list)
    event_id: str | None = None
    executed: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def nothing_known(self) -> bool:
        """Whether there is no trace of such a person; a source of that name, or a word, is none.

        Nor is a dead letter: whoever sends a wrong id has dead letters under it.
        """
        traces = any(n for what, n in self.removed.items() if what not in {"sources", "dead_letters"})
        return not self.known and self.erased_at is None and not traces

    @property
    def is_source(self) -> bool:
        """Whether it is a source, or in what was refused of one."""
        return self.removed["sources"] > 0


async def plan(
    settings: Settings, who: str, *, unknown_too: bool = False, organization: str | None = None
) -> Receipt:
    """What there is of a person; of a name that is nobody's, the sources, unless it is meant as an id.

    `who` and `organization` are as `find_person` takes them.

    Raises:
        UsageError: it means several people.
        StepstreamError: the database or Kafka cannot be reached.
    """
    async with connected(settings) as db:
        user = await find_person(db, who, organization)
        names = await _names_of(db, user)
        counts = await _count(db, names)
    known, erased_at = bool(counts.pop("known")), counts.pop("erased_at")
    letters = await _letters_of(settings, names)
    counts["dead_letters"] = letters.count
    named_in = [str(letter.source) for letter in letters.naming]
    found = Receipt(user, known, erased_at, counts, named_in, notes=_found_by(who, names))
    if found.nothing_known and not unknown_too:
        async with connected(settings) as db:
            found.removed["sources"] = await _count_sources(db, NameOfNobody(user))
    return found


async def _names_of(db: Connection, user: str) -> Names:
    row = await db.fetchrow(SQL["erase_names"], user)
    if row is None:
        return Names(user)
    registered = tuple(row["registered"])
    return Names(user, row["distinct_id"] or "", row["email"] or "", registered, row["is_email_exact"])


def _found_by(who: str, names: Names) -> list[str]:
    """Whom an operator has found who gave no id, and what of them is not looked for."""
    notes = [_SHARED_ADDRESS] if names.is_email_exact else []
    if who == names.user:
        return notes
    if who in names.registered:
        by = "id under which their organization registered them"
    else:
        by = "tracking id" if who == names.tracking_id else f"e-mail address {names.email}"
    return [f"`{who}` is {names.user}, by the {by}", *notes]


async def _count(db: Connection, names: Names) -> dict[str, Any]:
    rows = dict(await fetch_one(db, SQL["erase_plan"], names.user))
    on_their_way = await outbox.count_events(db, names.user, names.id_pattern)
    return rows | on_their_way | {"sources": await _count_sources(db, names)}


async def _count_sources(db: Connection, names: Names) -> int:
    return await source_names.count_names(db, names.source_pattern, names.pattern)


async def erase(
    settings: Settings, who: str, *, unknown_too: bool, organization: str | None = None
) -> Receipt:
    """Forgets a person. Doing it again removes what came since, and changes nothing else.

    Where nobody is known by what is given, and it is a source, or an e-mail address in one, only that is
    removed: it is no id, and nothing says that it is erased.

    Raises:
        UsageError: nothing is known of such a person, and `unknown_too` is not set.
        StepstreamError: the database or Kafka cannot be reached.
    """
    found = await plan(settings, who, unknown_too=unknown_too, organization=organization)
    if found.nothing_known and not unknown_too:
        under_it = found.removed["dead_letters"]
        if found.is_source and not under_it:
            return await _forget_source(settings, found)
        only = f", but {plural(under_it, 'dead letter')} with this id" if under_it else ""
        raise UsageError(
            f"nothing is known of `{found.user}`{only}: is it right? To have events of somebody whose rows "
            "are gone already refused for good, and to remove their dead letters, add --even-if-unknown"
        )
    async with connected(settings, counting.prepare, counting.SERVER_SETTINGS | _LOCK) as db:
        receipt, names = await _forget(db, found)
        receipt.notes[:0] = found.notes
        crash_point("operator.erase-committed")
        left = "The event waits in the outbox; run"
        try:
            announced_at = await _announce(settings, db, receipt)
            left = "Run"
            await _wait_for_recorder(settings, announced_at, receipt)
            # What it had counted, and not written yet, it has written with the event.
            async with _transaction(db):
                await source_names.forget_names(db, names.source_pattern, names.pattern)
            # Two at once would each copy the letters that the other removes.
            await be_alone(db, Act.HANDLE_LETTERS, _LETTERS_SECONDS)
            letters = await _remove_letters(settings, names)
            receipt.removed["dead_letters"] = letters.count
            receipt.named_in = [str(letter.source) for letter in letters.naming]
        except StepstreamError as error:
            raise StepstreamError(
                f"{receipt.user} is erased from the database, and not yet from Kafka: {error}. {left} "
                f"`stepstream erase {receipt.user} --execute` for the dead letters"
            ) from error
    receipt.executed = True
    return receipt


async def _forget_source(settings: Settings, found: Receipt) -> Receipt:
    names = NameOfNobody(found.user)
    async with connected(settings, server_settings=_LOCK) as db, _transaction(db):
        await source_names.forget_names(db, names.source_pattern, names.pattern)
    found.executed = True
    return found


@contextlib.asynccontextmanager
async def _transaction(db: Connection) -> AsyncIterator[None]:
    """A transaction that lets its locks go where the command is frozen in it."""
    async with db.transaction():
        await db.execute(f"set local transaction_timeout = '{_TRANSACTION_SECONDS}s'")
        yield


async def _forget(db: Connection, found: Receipt) -> tuple[Receipt, Names]:
    """All of the database's part, in one transaction, the counts too; and what the person was called."""
    user, erased_at, event_id = found.user, int(time.time() * 1000), str(uuid_utils.uuid7())
    event = {
        "type": "user-erased",
        "event_id": event_id,
        "mcp_server_user_id": user,
        "erased_at": erased_at,
    }
    value = encode(event)
    erasure = _readable(value, erased_at, found)
    async with _transaction(db):
        known = await db.fetchval(SQL["erase_lock"], user) is not None
        is_first = erasure is not None and await erasures.note_erased(db, [erasure])
        names = await _names_of(db, user)
        counts = {k: v for k, v in (await _count(db, names)).items() if k not in {"known", "erased_at"}}
        journeys = [(user, r["walkthrough_id"]) for r in await db.fetch(SQL["erase_journeys"], user)]
        await db.execute(SQL["erase_user"], user)
        await erasures.forget_waiting(db, user)
        await outbox.remove_events(db, user, names.id_pattern)
        await counting.recount_within(db, journeys)
        await db.execute(SQL["erase_marks"], user)
        if is_first:
            await outbox.announce(db, user, value, operator_headers(event, erased_at))
        elif erasure is not None:
            erased_at, event_id = await erasures.find_note(db, user)
        await source_names.forget_names(db, names.source_pattern, names.pattern)
    if erasure is None:
        return Receipt(user, known, None, counts, notes=[_UNNAMEABLE]), names
    return Receipt(user, known, erased_at, counts, event_id=event_id), names


def _readable(value: bytes, erased_at: int, found: Receipt) -> UserErased | None:
    """The event that says so; None for somebody whose id no event can have, whom a platform may have.

    Raises:
        UsageError: no event can have the id, and nothing is known of such a person.
    """
    try:
        erasure = decode(value, erased_at)
    except EventError as error:
        if not found.nothing_known:
            return None
        raise UsageError(
            f"`{found.user}` is no id that an event can have, so none can say that they are erased: {error}"
        ) from None
    assert isinstance(erasure, UserErased)  # noqa: S101 - its type says so
    return erasure


async def _announce(settings: Settings, db: Connection, receipt: Receipt) -> tuple[int, int] | None:
    """Sends the event that waits in the outbox, unless a relay is quicker; returns where it is."""
    event = await outbox.find_announcement(db, receipt.user)
    if event is None:
        return None
    async with producer(settings, settings.topic) as sender:
        sent = await (await sender.start()).send_and_wait(
            settings.topic, event.value, key=event.key, headers=event.headers
        )
    await outbox.remove(db, event)
    return sent.partition, sent.offset


async def _wait_for_recorder(settings: Settings, at: tuple[int, int] | None, receipt: Receipt) -> None:
    """Until it has passed the event: what it refused before is among the dead letters then."""
    if at is not None and not await wait_for_recorder(settings, *at):
        receipt.notes.append(
            f"the {RECORDER} has not passed the event yet; it will, and then drops what is left of this "
            "person"
        )


# --- dead letters --------------------------------------------------------------------------------------


def is_of(record: Record, names: Names) -> bool:
    """Whether a dead letter is about this person: by its key, or by what its value says.

    One that does not say whose it is, or cannot be read, is theirs if it holds their id.
    """
    if record.key == names.user.encode():
        return True
    value = record.value
    if value is None or (names.user.encode() not in value and b"\\" not in value):
        return False
    try:
        event = json.loads(value)
    except _UNREADABLE:
        event = None
    if isinstance(event, dict) and "mcp_server_user_id" in event:
        return bool(event["mcp_server_user_id"] == names.user)
    return re.search(names.id_pattern, value.decode(errors="replace")) is not None


def speaks_of(record: Record, names: Names) -> bool:
    """Whether a dead letter names a person anywhere: in key, value, headers, or why it was refused."""
    if any(_has_key(record, own) for own in names.registered):
        return True
    parts = [record.key, record.value, *(name.encode(errors="replace") for name, _ in record.headers)]
    parts += [value for _, value in record.headers]
    if any(names.are_in(part.decode(errors="replace")) for part in parts if part):
        return True
    if record.value is None or b"\\" not in record.value:
        return False
    try:
        return names.are_in(json.dumps(json.loads(record.value), ensure_ascii=False))
    except _UNREADABLE:
        return False


def _has_key(record: Record, own: str) -> bool:
    """Whether somebody sent an organization's own id as the user's: as the key, or in the value."""
    if record.key == own.encode():
        return True
    value = record.value or b""
    if own.encode() not in value and b"\\" not in value:
        return False
    try:
        event = json.loads(value)
    except _UNREADABLE:
        return False
    return isinstance(event, dict) and event.get("mcp_server_user_id") == own


async def _letters_of(settings: Settings, names: Names) -> Letters:
    found = Letters({}, [])
    async for record in read_partitions(settings, settings.dead_letter_topic):
        if is_of(record, names):
            found.theirs.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        elif speaks_of(record, names):
            found.naming.append(parse(record))
    return found


async def _remove_letters(settings: Settings, names: Names) -> Letters:
    found = await _letters_of(settings, names)
    for partition, theirs in found.theirs.items():
        # What comes after the last of theirs stays where it is: there may be a flood of it.
        end = theirs[-1].offset + 1
        await _copy_others(settings, partition, end, names)
        crash_point("operator.letters-copied")
        async with admin_client(settings) as admin:
            try:
                await admin.delete_records({partition: RecordsToDelete(end)})
            except KafkaError as error:
                raise unreachable(settings, error) from error
    return found


async def _sources_behind(settings: Settings, partition: TopicPartition, end: int) -> set[Source]:
    """The events of which there is a letter at `end` or later."""
    behind = {partition.partition: end}
    return {parse(r).source async for r in read_partitions(settings, partition.topic, behind)}


async def _copy_others(settings: Settings, partition: TopicPartition, end: int, names: Names) -> None:
    """Sends the letters of others before `end` again, each once, with the times that they had.

    Not those that are there again already: this may have ended half way before.
    """
    copied = await _sources_behind(settings, partition, end)
    sent = []
    async with producer(
        settings, partition.topic, max_request_size=DEAD_LETTER_MAX_BYTES, linger_ms=5
    ) as sender:
        letters = await sender.start()
        begin = {partition.partition: 0}
        async for record in read_partitions(settings, partition.topic, begin):
            if record.offset >= end:
                break
            source = parse(record).source
            if source in copied or is_of(record, names):
                continue
            copied.add(source)
            sent.append(
                await letters.send(
                    partition.topic,
                    NULL if record.value is None else record.value,
                    key=record.key,
                    partition=partition.partition,
                    timestamp_ms=record.timestamp,
                    headers=list(record.headers),
                )
            )
        await asyncio.gather(*sent)
