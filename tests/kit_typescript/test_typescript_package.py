"""What the README of the TypeScript client shows, as it stands there: compiled strictly, and run."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from services.analytics_api.keys import Grant
from tests.kit_typescript.conftest import Project, address_of, kafka_of, snippets
from tests.support.browser import chromium, needs_chromium
from tests.support.world import World, completed

pytestmark = pytest.mark.integration

#: The key that the README has made.
WRITES = Grant(may_read=False, may_write=True, source="/checkout")
WALKTHROUGH, STEPS, SERVER = "wt_9fQ2xL7b", ("wts_Rt41vKp8", "wts_Zt4n8Kd1"), "s7Yw2nQe"


async def offered(world: World) -> None:
    """The rows that the README's programs name."""
    await world.offer(WALKTHROUGH, STEPS, SERVER)


async def out_of(project: Project, program: str, **env: str) -> str:
    """What a program prints; it ends well, and complains of nothing."""
    done = await project.run(program, **env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_program_is_run_here() -> None:
    assert list(snippets()) == [
        "in-fifteen-minutes-by-http",
        "without-waiting",
        "what-can-go-wrong",
        "by-kafka",
        "is-it-an-event",
    ]


async def test_in_fifteen_minutes_by_http(world: World, project: Project) -> None:
    await offered(world)
    services = [await service.ready() for service in world.start_both()]
    address = await address_of(world, await world.start_api(), WRITES)
    said = await out_of(project, "in-fifteen-minutes-by-http", **address)
    assert said.splitlines() == ["2 accepted", "event 2: unknown-step"]
    await world.drained()
    rows = await world.db.fetch("select step_id, completed_at from walkthrough_step_completions")
    assert [tuple(row) for row in rows] == [(STEPS[0], 1_795_510_980_000)]
    assert await world.db.fetchval("select count(*) from walkthrough_starts") == 1
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0, 0]


async def test_without_waiting(world: World, project: Project) -> None:
    await offered(world)
    services = [await service.ready() for service in world.start_both()]
    address = await address_of(world, await world.start_api(), WRITES)
    said = await out_of(project, "without-waiting", **address)
    assert said == "3 accepted, 0 refused, 0 failed\n"
    await world.drained()
    kept = {
        table: await world.db.fetchval(f"select array_agg(step_id) from {table}")
        for table in ("walkthrough_step_completions", "walkthrough_step_skips", "walkthrough_step_showings")
    }
    assert kept == {
        "walkthrough_step_completions": [STEPS[0]],
        "walkthrough_step_skips": [STEPS[1]],
        "walkthrough_step_showings": [STEPS[0]],
    }
    assert [service.terminate() for service in services] == [0, 0]


async def test_what_can_go_wrong(project: Project) -> None:
    said = await out_of(project, "what-can-go-wrong")
    assert "1 of 1 without an answer, perhaps accepted: http://127.0.0.1:65000 cannot be reached" in said
    assert "1 to send later" in said


async def test_is_it_an_event(project: Project) -> None:
    first, second = (await out_of(project, "is-it-an-event")).splitlines()
    assert first == "invalid-event at completed_at"
    assert second.startswith("completed_at: Field required")
    assert "completed_at is perhaps `completedAt`" in second


async def test_by_kafka(world: World, project: Project) -> None:
    await offered(world)
    user, session = "mcpu_k3Jd82LsQ0aZ", "mss_5d0c1e7f2a9b4c68"
    await world.db.execute("insert into mcp_server_user (id) values ($1)", user)
    await world.db.execute(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date, mcp_server_user_id)"
        " values ($1, $2, current_date, $3)",
        session,
        SERVER,
        user,
    )
    services = [await service.ready() for service in world.start_both()]
    done = await project.run("by-kafka", **kafka_of(world))
    assert (done.returncode, done.stdout) == (0, "1 acknowledged\n"), done.stderr
    await world.drained()
    assert list(await world.completions()) == [(user, STEPS[0])]
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0, 0]


_PAGE = """<!doctype html>
<meta http-equiv="Content-Security-Policy" content="script-src 'self' 'unsafe-inline'">
<script type="importmap">{"imports": {
  "@stepstream/client": "/node_modules/@stepstream/client/dist/index.js",
  "is-network-error": "/node_modules/is-network-error/index.js",
  "p-retry": "/node_modules/p-retry/index.js",
  "uuid": "/node_modules/uuid/dist/index.js"
}}</script>"""
_SENDS = """async ([options, events]) => {
  const { createHttpClient } = await import("@stepstream/client");
  return await createHttpClient(options).send(events);
}"""


@pytest.fixture
def origin(project: Project) -> Iterator[str]:
    """A server of pages, which has the project's folder and a page that may make no code from text."""
    (project.folder / "index.html").write_text(_PAGE, "utf-8")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=project.folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@needs_chromium
async def test_a_page_of_another_origin_sends_as_well(world: World, origin: str) -> None:
    """Compressed, where the origin is allowed."""
    await world.offer()
    await world.people(["p"])
    api = await world.start_api(api_allowed_origins=origin)
    address = await address_of(world, api, WRITES)
    options = {"url": address["STEPSTREAM_URL"], "key": address["STEPSTREAM_KEY"]}
    events = [completed("p", step, at) for at, step in enumerate("abcde")]
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(origin)
        said = await page.evaluate(_SENDS, [options, events])
    assert (said["accepted"], said["through"]) == (5, "kafka")
    assert len(await world.events()) == 5
