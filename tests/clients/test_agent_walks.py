"""Clients of MCP lead people through walkthroughs, and the Sankey is what each wrote down for itself.

    make test-clients

Each client has a process of its own for each mode: the newest protocol, without sessions, and the one with them. In
each it leads people with every habit that `agents/python/walk.py` names, three times: people with a tracking id in the
path, people known by the `visitor` of an answer, and people who are signed in. Whoever loses an answer really does: the
connection ends before it has come. A client whose tools are not on the
machine is skipped; with STEPSTREAM_CLIENTS=all it fails.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.devstack.processes import free_port
from services.walkthrough_mcp.app import McpProcess
from tests.clients.agent_catalogue import AGENT_CLIENTS, NEWEST, AgentClient, need
from tests.clients.building import Command
from tests.integration.test_mcp_sign_in import Issuer
from tests.support.agents import endings_of, transitions_of
from tests.support.world import MCP, RELAY, World

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

#: How people are known, and the order of the steps on the server of each.
SERVERS = {"tracking": "abcd", "visitor": "cadb", "token": "dcba"}
#: Habits, and after how many steps those people leave.
PEOPLE = (
    *(("plain", 9), ("plain", 2), ("plain", 0)),
    *(("unnamed", 2), ("repeats", 9), ("anew", 3), ("loses", 2), ("forgets", 2)),
)
#: For a client that needs a process for each call.
FEW_PEOPLE = (("anew", 3), ("unnamed", 1), ("loses", 1), ("forgets", 1))


@dataclass(frozen=True)
class Person:
    """Whom a client leads."""

    line: str
    known_by: str
    habit: str
    most: int


@dataclass
class Watched:
    """A server's application. Who names `lose` in their address loses the first answer to `get_next_step`.

    Attributes:
        app: what answers.
        revisions: those of the protocol that requests name, by the server's slug.
        lost: the addresses whose answer was lost: the head came, and the connection ended.
    """

    app: ASGIApp
    revisions: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    lost: set[str] = field(default_factory=set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/mcp/"):
            await self.app(scope, receive, send)
            return
        named = dict(scope["headers"]).get(b"mcp-protocol-version", b"").decode()
        self.revisions[scope["path"].split("/")[2]].add(named)
        loses = scope["query_string"] == b"lose" and scope["path"] not in self.lost
        asked = b""

        async def hear() -> Message:
            nonlocal asked
            message = await receive()
            asked += message.get("body", b"")
            return message

        async def say(message: Message) -> None:
            if not loses or b'"get_next_step"' not in asked:
                await send(message)
            elif message["type"] == "http.response.start":
                self.lost.add(scope["path"])
                await send(message)

        await self.app(scope, hear, say)


@dataclass
class Place:
    """A world with all services, and the record of everybody who was led there."""

    world: World
    issuer: Issuer
    watched: Watched
    url: str
    records: list[list[str]] = field(default_factory=list)

    async def offer(self, slug: str, steps: str, *, sign_in: bool) -> None:
        """A server with a walkthrough of its own, whose steps have names of their own."""
        await self.world.offer(f"wt_{slug}", [f"{slug}_{step}" for step in steps], slug)
        if sign_in:
            await self.world.db.execute(
                "update mcp_servers set auth_type = 'custom_oauth', oauth_issuer_url = $2 where slug = $1",
                slug,
                self.issuer.url,
            )

    def person(self, slug: str, known_by: str, number: int, habit: str, most: int) -> Person:
        url, token = f"{self.url}/mcp/{slug}", "-"
        if known_by == "tracking":
            url += f"/{slug}-person-{number}"
        elif known_by == "token":
            token = self.issuer.token(url, f"{slug} {number}")
        url += "?lose" if habit == "loses" else ""
        return Person(f"{url} {token} {habit} {most}\n", known_by, habit, most)

    async def drained(self) -> None:
        await self.world.relayed()
        await self.world.drained()

    async def flow(self, slug: str) -> tuple[Counter[Any], Counter[Any]]:
        """Transitions and endings of a server's walkthrough."""
        transitions = await self.world.db.fetch(
            "select position, from_step_id, to_step_id, sum(journeys)::int from sankey_transitions"
            " where walkthrough_id = 'wt_' || $1 group by 1, 2, 3 having sum(journeys) <> 0",
            slug,
        )
        endings = await self.world.db.fetch(
            "select steps_done, step_id, sum(journeys)::int from sankey_endings"
            " where walkthrough_id = 'wt_' || $1 group by 1, 2 having sum(journeys) <> 0",
            slug,
        )
        return Counter({tuple(row[:3]): row[3] for row in map(tuple, transitions)}), Counter(
            {tuple(row[:2]): row[2] for row in map(tuple, endings)}
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(addresses: tuple[str, str], template: str) -> AsyncIterator[Place]:
    """One for all clients."""
    world, issuer = await World.make(*addresses, template), Issuer()
    try:
        world.start_both()
        world.start(RELAY)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        settings = world.settings_of(MCP, public_url=url)
        watched = Watched(McpProcess(MCP, settings).application())
        await world.serve(MCP, watched, port)
        yield Place(world, issuer, watched, url)
    finally:
        await world.close()
        issuer.server.shutdown()


async def led(command: Command, mode: str, people: list[Person]) -> list[dict[str, Any]]:
    """What a program wrote down of each person."""
    process = await asyncio.create_subprocess_exec(
        *command,
        mode,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(300):
            said, complaints = await process.communicate("".join(p.line for p in people).encode())
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, complaints.decode()
    return [json.loads(line) for line in said.splitlines()]


def is_lost(client: AgentClient, mode: str, person: Person) -> bool:
    """Whether nothing says who calls: no session, and no `visitor` that is passed on."""
    without = mode == NEWEST or client.connects_anew
    return person.known_by == "visitor" and person.habit == "forgets" and without


MATRIX = [(client, mode) for client in AGENT_CLIENTS for mode in client.modes]


@pytest.mark.parametrize(("client", "mode"), MATRIX, ids=[f"{client} {mode}" for client, mode in MATRIX])
async def test_the_sankey_is_what_a_client_wrote_down(place: Place, client: AgentClient, mode: str) -> None:
    need(client.needs)
    command = await asyncio.to_thread(client.walks)
    cell = f"c{MATRIX.index((client, mode)):02}"
    slugs = {f"{cell}-{known_by}": known_by for known_by in SERVERS}
    people: dict[str, list[Person]] = {}
    for slug, known_by in slugs.items():
        await place.offer(slug, SERVERS[known_by], sign_in=known_by == "token")
        habits = FEW_PEOPLE if client.connects_anew else PEOPLE
        people[slug] = [place.person(slug, known_by, i, *habit) for i, habit in enumerate(habits)]

    everybody = [person for group in people.values() for person in group]
    records = iter(await led(command, mode, everybody))
    found = {slug: [next(records) for _ in group] for slug, group in people.items()}
    assert next(records, None) is None

    for slug, group in people.items():
        steps = [f"{slug}_{step}" for step in SERVERS[slugs[slug]]]
        for person, record in zip(group, found[slug], strict=True):
            lost = is_lost(client, mode, person)
            assert record["steps"] == ([] if lost else steps[: person.most]), (person, record)
            assert (record["last"] == "not-started") == lost, (person, record)
    assert len([path for path in place.watched.lost if path.split("/")[2] in slugs]) == len(slugs)
    revisions = set[str]().union(*(place.watched.revisions[slug] for slug in slugs)) - {""}
    assert revisions == {client.modes[mode]}

    await place.drained()
    for slug in slugs:
        written = [record["steps"] for record in found[slug]]
        assert await place.flow(slug) == (transitions_of(written), endings_of(written)), slug
        place.records += written


async def test_the_sankey_is_what_all_clients_wrote_down_together(place: Place) -> None:
    await place.drained()
    assert await place.world.transitions() == transitions_of(place.records)
    assert await place.world.endings() == endings_of(place.records)
    assert await place.world.dead_letters() == []
    await place.world.assert_exact()
