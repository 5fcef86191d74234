"""What needs no key is answered for a few at once, and addresses take turns."""

import asyncio
from typing import Any, cast

from starlette.types import Message, Receive, Scope, Send

from services.analytics_api.admission import Admission
from services.analytics_api.fair import Lanes
from services.analytics_api.keys_and_rates import KeysAndRates, denied
from services.analytics_api.problems import invalid
from services.runtime.fair import Asker
from services.runtime.settings import Settings
from tests.support.world import eventually

SETTINGS = Settings(kafka_bootstrap_servers=["127.0.0.1:1"], database_url="postgresql://nowhere/none")


class Site:
    """Answers each request when it is let to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_answer = asyncio.Event()
        self.refused = 0
        self.admission = Admission(
            self._answer, cast("KeysAndRates", self), Lanes(SETTINGS), cast("Any", None)
        )

    async def arrive(self, _: Any) -> Asker:
        """Lets nobody in who has to have a key."""
        raise denied("no")

    async def _answer(self, scope: Scope, _: Receive, send: Send) -> None:
        self.begun.append(scope["client"][0])
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()  # the client never reads it

    def ask(self, address: str, path: str = "/v1/openapi.json") -> "asyncio.Task[None]":
        async def send(message: Message) -> None:
            self.refused += message.get("status") == 401

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": (address, 1)}
        return asyncio.create_task(self.admission(scope, cast("Any", None), send))


async def test_who_floods_the_files_keeps_neither_others_nor_health_waiting() -> None:
    site = Site()
    asked = [site.ask("10.0.0.1", path) for path in ("/", "/v1/openapi.json", "/assets/a.js", "/nowhere") * 5]

    async def full() -> bool:
        return len(site.begun) >= 2

    await eventually(full, "two are answered")
    asked += [site.ask("10.0.0.2"), site.ask("10.0.0.3", "/health/live"), site.ask("10.0.0.3", "/metrics")]
    await asyncio.sleep(0)
    assert site.begun == ["10.0.0.1"] * 2 + ["10.0.0.3"] * 2
    site.may_answer.set()

    async def all_begun() -> bool:
        return len(site.begun) == len(asked)

    await eventually(all_begun, "who reads nothing keeps no place")
    assert "10.0.0.2" in site.begun[4:6]
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)


async def test_what_is_answered_at_once_is_answered_for_a_few_in_each_round_too() -> None:
    site = Site()
    site.may_answer.set()
    asked = [site.ask("10.0.0.1", path) for path in ("/", "/v1/organization") * 10]
    for rounds in range(8):
        await asyncio.sleep(0)
        assert len(site.begun) + site.refused <= 2 * rounds
    assert site.begun
    assert site.refused
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)


async def test_where_strangers_have_all_places_a_key_that_exists_still_gets_in() -> None:
    class Strange(Site):
        async def arrive(self, request: Any) -> Asker:
            return Asker.stranger(request.client.host)

        async def knows_id(self, request: Any) -> bool:
            return bool(request.client.host == "10.1.0.1")

    site, statuses = Strange(), list[int]()
    settings = SETTINGS.model_copy(update={"api_organization_questions": 1})
    site.admission = Admission(site._answer, cast("KeysAndRates", site), Lanes(settings), cast("Any", None))

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    def ask(address: str) -> "asyncio.Task[None]":
        scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": [], "client": (address, 1)}
        return asyncio.create_task(site.admission(scope, cast("Any", None), send))

    asked = [ask(f"10.0.0.{n}") for n in range(30)]

    async def refused() -> bool:
        return statuses.count(503) == 22

    await eventually(refused, "strangers have all places that they may have")
    asked.append(ask("10.1.0.1"))
    site.may_answer.set()

    async def all_answered() -> bool:
        return len(site.begun) == 9

    await eventually(all_answered, "whoever got in is answered")
    assert site.begun[-1] == "10.1.0.1"
    assert statuses.count(503) == 22
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)


async def test_a_question_with_more_parameters_than_any_has_is_refused_unread() -> None:
    class Guarded(Site):
        async def arrive(self, _: Any) -> Asker:
            return Asker("key", "org")

    site, statuses = Guarded(), list[int]()

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/organization",
        "headers": [],
        "client": ("10.0.0.1", 1),
        "query_string": b"&".join(b"%x=" % n for n in range(10_000)),
    }
    await site.admission(scope, cast("Any", None), send)
    assert (statuses[0], site.begun) == (422, [])


def test_of_many_wrong_parameters_a_few_are_told() -> None:
    problem = invalid(
        [{"loc": ("query", str(n)), "msg": "Extra inputs are not permitted"} for n in range(9_000)]
    )
    assert len(problem.errors or ()) == 20
    assert len(str(problem)) < 2_000
