"""Events that come in by HTTP: each gets its verdict, nothing good is lost, and what is accepted is counted once."""

import gzip
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx2
import pytest

from services.analytics_api.intake.bodies import zstd
from services.analytics_api.keys import Grant
from services.analytics_api.keys import create as make_key
from tests.support.world import Api, World

pytestmark = pytest.mark.integration

#: The first moment of a test's events: some days ago, so that the hour of the day makes no difference.
BEGAN = int(time.time() * 1000) - 5 * 86_400_000
WRITES = Grant(may_read=False, may_write=True)


async def key_of(world: World, grant: Grant = WRITES, organization: str = "org") -> str:
    return (await make_key(world.db, organization, "writer", None, grant)).text


async def writing(world: World, grant: Grant = WRITES, **more: Any) -> Api:
    """The API, with a key that writes."""
    api = await world.start_api(**more)
    api.key = await key_of(world, grant)
    return api


def event(user: str = "ann", step: str = "a", at: int = BEGAN, **more: Any) -> dict[str, Any]:
    made = {
        "type": "step-completed",
        "event_id": str(uuid.uuid4()),
        "mcp_server_user_id": user,
        "walkthrough_id": "wt_a",
        "step_id": step,
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": f"s_{user}",
        "completed_at": at,
    }
    return {k: v for k, v in (made | more).items() if v is not None}


async def send(
    api: Api, body: Any, *, media_type: str = "application/json", key: str | None = None, **headers: str
) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {key or api.key}", "Content-Type": media_type}
    return await api.http.post("/v1/events", content=content, headers=given | headers)


def lines(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


def errors(response: httpx2.Response) -> list[tuple[int, str, str | None]]:
    """Index, class and field of what was refused."""
    return [
        (r["index"], r["error"]["class"], r["error"]["field"])
        for r in response.json()["results"]
        if r["status"] == "refused"
    ]


async def test_what_is_accepted_is_recorded_and_counted_whatever_its_form(world: World) -> None:
    """JSON as one, as many and in a wrapper, NDJSON, gzip and zstd; all of it twice."""
    await world.offer()
    people = [f"u{n}" for n in range(40)]
    await world.people(people)
    api = await writing(world)
    world.start_both()
    steps: dict[tuple[str, str], int] = {}
    events = []
    rng = random.Random(7)
    for user in people:
        for number, step in enumerate("abcde"[: rng.randint(1, 5)]):
            at = BEGAN + number * 60_000 + rng.randrange(30_000)
            steps[user, step] = at
            events.append(event(user, step, at))
    rng.shuffle(events)
    parts = [events[n::6] for n in range(6)]
    for _ in range(2):
        for response in (
            await send(api, parts[0]),
            await send(api, {"events": parts[1]}),
            await send(api, lines(parts[2]), media_type="application/x-ndjson"),
            await send(
                api,
                gzip.compress(lines(parts[3])),
                media_type="application/ndjson",
                **{"Content-Encoding": "gzip"},
            ),
            await send(api, zstd.compress(json.dumps(parts[4]).encode()), **{"Content-Encoding": "zstd"}),
            *[await send(api, one) for one in parts[5]],
        ):
            assert response.status_code == 200, response.text
            assert response.json()["through"] == "kafka"
    await world.drained()
    assert {key: at for key, (at, _) in (await world.completions()).items()} == steps
    links: Counter[tuple[int, str | None, str]] = Counter()
    for user in people:
        path = [None, *(s for _, s in sorted((at, s) for (u, s), at in steps.items() if u == user))]
        links.update((n, path[n], path[n + 1]) for n in range(len(path) - 1))
    assert await world.transitions() == links
    assert not await world.dead_letters()
    assert {h[0]: h[1] for h in (await world.events())[0].headers}["ce_source"].startswith(b"/keys/")
