"""Walkthroughs in and out: real exports, ids, links, updates, round trips, and errors that name the field."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.demo import run as demo
from services.runtime.database import Connection, Pool, open_pool
from services.runtime.errors import StepstreamError, UsageError
from services.walkthrough_mcp import store
from services.walkthrough_mcp.exchange import Export, import_walkthrough, read_export
from services.walkthrough_mcp.guide import start
from services.walkthrough_mcp.people import Caller
from tests.support import logs
from tests.support.world import MCP, World, eventually

pytestmark = pytest.mark.integration

OURS = sorted((Path(demo.__file__).parent / "walkthroughs").glob("*.json"))
REAL = sorted((logs.SHARED / "data" / "walkthroughs").glob("*.json"))


async def rows(world: World) -> list[tuple[Any, ...]]:
    found = []
    for table in ("walkthroughs", "walkthrough_steps", "mcp_server_walkthroughs"):
        found += [tuple(r) for r in await world.db.fetch(f"select *, xmin::text from {table} order by id")]
    return found


def exported(world: World, identifier: str) -> dict[str, Any]:
    done = world.command("export", identifier)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def plain(export: dict[str, Any]) -> dict[str, Any]:
    """An export without what says only when and from where, and without ids and nulls that a file may omit."""

    def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in value.items() if v is not None and k != "id"}

    times = {"createdAt", "updatedAt"}
    return {
        "walkthrough": {k: v for k, v in without_nulls(export["walkthrough"]).items() if k not in times},
        "steps": [{k: v for k, v in without_nulls(s).items() if k not in times} for s in export["steps"]],
    }


@pytest.mark.parametrize("file", [*REAL, *OURS], ids=lambda f: f.stem)
async def test_an_export_comes_in_and_goes_out_as_it_was(world: World, file: Path, tmp_path: Path) -> None:
    await world.offer(server="docs")
    given = json.loads(file.read_text())
    first = world.command("import", str(file), "--server", "docs")
    assert first.returncode == 0, first.stderr
    identifier = first.stdout.strip()
    if original := given.get("metadata", {}).get("originalId"):
        assert identifier == original
    out = exported(world, identifier)
    assert plain(out) == plain(given)
    for key in ("createdAt", "updatedAt"):
        if key in given["walkthrough"]:
            assert out["walkthrough"][key] == given["walkthrough"][key]
            assert [s[key] for s in out["steps"]] == [s[key] for s in given["steps"]]
    links = await world.db.fetch(
        "select a.display_order as here, b.display_order as there from walkthrough_steps a"
        " join walkthrough_steps b on b.id = a.next_step_id where a.walkthrough_id = $1",
        identifier,
    )
    orders = [s["displayOrder"] for s in given["steps"]]
    assert {(r["here"], r["there"]) for r in links} == {
        (s["displayOrder"], orders[s["nextStepReference"]])
        for s in given["steps"]
        if s.get("nextStepReference") is not None
    }
    before = await rows(world)
    again = world.command("import", str(file), "--server", "docs")
    assert again.stdout == first.stdout
    assert "created 0, updated 0" in again.stderr
    (tmp_path / "out.json").write_text(json.dumps(out))
    round_trip = world.command("import", str(tmp_path / "out.json"), "--server", "docs")
    assert "created 0, updated 0" in round_trip.stderr
    assert await rows(world) == before, "a round trip changes nothing"


async def test_an_export_keeps_its_ids_in_an_empty_database_and_gets_new_ones_where_they_are_taken(
    world: World, tmp_path: Path
) -> None:
    await world.offer(server="docs")
    file = tmp_path / "export.json"
    first = world.command("import", str(OURS[0]), "--server", "docs", anew=True).stdout.strip()
    out = exported(world, first)
    world.command("export", first, "--file", str(file), anew=True)
    assert json.loads(file.read_text())["steps"] == out["steps"]
    await world.db.execute("insert into organization (id, name, created_at) values ('two', 'two', now())")
    await world.db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('srv_two', 'two', 'two', 'two', 'two')"
    )
    for expected in (
        "created 9",
        "created 0, updated 0",
    ):  # a walkthrough, its steps, its place on the server
        copied = world.command("import", str(file), "--server", "two")
        assert expected.replace("9", str(len(out["steps"]) + 2)) in copied.stderr, copied.stderr
    copy = exported(world, copied.stdout.strip())
    assert copied.stdout.strip() != first
    assert not {s["id"] for s in copy["steps"]} & {s["id"] for s in out["steps"]}
    assert plain(copy) == plain(out)
    assert exported(world, first)["steps"] == out["steps"], "the other organisation's is as it was"
    await world.db.execute("delete from walkthroughs")
    restored = world.command("import", str(file), "--server", "two")
    assert restored.stdout.strip() == first
    assert [s["id"] for s in exported(world, first)["steps"]] == [s["id"] for s in out["steps"]]


async def test_of_two_imports_at_once_none_changes_what_another_organization_makes(
    world: World, tmp_path: Path
) -> None:
    """Both find the ids of the file free: the second is told so, and run again it takes others."""
    await world.offer(server="docs")
    await world.db.execute("insert into organization (id, name, created_at) values ('two', 'two', now())")
    await world.db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('srv_two', 'two', 'two', 'two', 'two')"
    )
    given = json.loads(OURS[0].read_text())
    given["walkthrough"]["id"] = "wt_both"
    given["steps"][0]["id"] = "wts_both"
    export = Export.model_validate(given)
    given["walkthrough"] |= {"id": "wt_theirs", "title": "theirs"}
    same_step = Export.model_validate(given)
    for of_other, what in ((export, "`wt_both`"), (same_step, "`wts_both`")):
        await world.db.execute("delete from walkthroughs where id <> 'wt_a'")
        async with world.connection() as first, world.connection() as second:
            async with first.transaction():
                await import_walkthrough(first, export, "docs")
                other = asyncio.create_task(import_walkthrough(second, of_other, "two"))
                await eventually(lambda: is_waiting(world, second), "the second waits for the first")
            with pytest.raises(StepstreamError, match=what):
                await other
            assert exported(world, "wt_both")["walkthrough"]["title"] == export.walkthrough.title
            offers = "select mcp_server_id from mcp_server_walkthroughs where walkthrough_id = 'wt_both'"
            assert [r[0] for r in await world.db.fetch(offers)] == ["docs"]
            plan = await import_walkthrough(second, of_other, "two")
            steps = {c.id for c in plan.changes if c.what == "step"}
            assert plan.walkthrough_id != "wt_both"
            assert plan.counts["create"] == len(steps) + 2
            assert "wts_both" not in steps


async def is_waiting(world: World, connection: Connection) -> bool:
    pid = connection.get_server_pid()
    return bool(await world.db.fetchval("select cardinality(pg_blocking_pids($1)) > 0", pid))


async def test_a_changed_file_updates_and_what_people_did_stays(world: World, tmp_path: Path) -> None:
    await world.offer(server="docs")
    given = json.loads(OURS[0].read_text())
    identifier = world.command("import", str(OURS[0]), "--server", "docs").stdout.strip()
    ids = [s["id"] for s in exported(world, identifier)["steps"]]
    steps = given["steps"]
    steps[0]["title"] = "A better title"  # found by its place
    steps[1]["displayOrder"], steps[2]["displayOrder"] = steps[2]["displayOrder"], steps[1]["displayOrder"]
    gone = steps.pop()
    steps.append(steps[-1] | {"title": "Quite new", "displayOrder": 90})
    given["walkthrough"]["description"] = "Changed."
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(given))

    before = await rows(world)
    planned = world.command("import", str(file), "--server", "docs", "--dry-run", "-o", "json")
    assert await rows(world) == before, "a dry run changes nothing"
    plan = json.loads(planned.stdout)
    actions = {change["title"]: change["action"] for change in plan["changes"]}
    assert actions["A better title"] == "update"
    assert actions["Quite new"] == "create"
    assert actions[gone["title"]] == "leave"
    assert plan["dry_run"]

    done = world.command("import", str(file), "--server", "docs")
    assert done.returncode == 0, done.stderr
    assert "(not in the file; it stays)" in done.stderr
    after = {s["id"]: s for s in exported(world, identifier)["steps"]}
    assert after[ids[0]]["title"] == "A better title"
    assert set(ids) < set(after)
    assert [after[i]["displayOrder"] for i in ids[1:3]] == [3, 2]
    assert exported(world, identifier)["walkthrough"]["description"] == "Changed."
    assert "created 0, updated 0" in world.command("import", str(file), "--server", "docs").stderr


async def test_steps_of_the_same_place_keep_the_file_s_order(world: World, tmp_path: Path) -> None:
    await world.offer(server="docs")
    given = json.loads(OURS[0].read_text())
    titles = [f"{name} comes" for name in ("zeta", "alpha", "mu", "beta", "omega", "iota")]
    given["steps"] = [given["steps"][0] | {"title": title, "displayOrder": 1} for title in titles]
    file = tmp_path / "ties.json"
    file.write_text(json.dumps(given))
    identifier = world.command("import", str(file), "--server", "docs").stdout.strip()
    assert [s["title"] for s in exported(world, identifier)["steps"]] == titles
    async with pool_of(world) as pool:
        server = await store.find_server(pool, "docs")
        assert server is not None
        none = store.Call(Caller(server), lambda offers, _: start(offers, "none", restart=False), 0)
        done = await store.call(pool, none)
    (offer,) = [o for o in done.offers if o.walkthrough_id == identifier]
    assert [step.title for step in offer.steps] == titles


@contextlib.asynccontextmanager
async def pool_of(world: World) -> AsyncIterator[Pool]:
    pool = await open_pool(world.settings_of(MCP))
    yield pool
    await pool.close()


def broken(change: str) -> str:
    export = json.loads(OURS[0].read_text())
    exec(
        change, {"x": export, "steps": export["steps"], "w": export["walkthrough"]}
    )  # the cases below, no input
    return json.dumps(export)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("x['version'] = '2.0'", "version: Input should be '1.0'"),
        ("del w['title']", "walkthrough.title: Field required"),
        ("w['type'] = 'novel'", "walkthrough.type: Input should be 'course'"),
        ("w['estimatedDurationMinutes'] = 'long'", "walkthrough.estimatedDurationMinutes: Input should be a valid integer"),
        ("w['tags'] = [1]", "walkthrough.tags.0: Input should be a valid string"),
        ("x['steps'] = []", "steps: List should have at least 1 item"),
        ("steps[2]['contentFields']['version'] = 'v9'", "steps.2.contentFields.version: Input should be 'v1'"),
        ("steps[2]['contentFields']['contentForUser'] = 5", "steps.2.contentFields.contentForUser: Input should be a valid string"),
        ("steps[1]['displayOrder'] = 10 ** 12", "steps.1.displayOrder: Input should be less than"),
        ("steps[1]['nextStepReference'] = 99", "steps.1.nextStepReference: 99 is no other step"),
        ("steps[1]['nextStepReference'] = 1", "steps.1.nextStepReference: 1 is no other step"),
        ("steps[1]['id'] = steps[3]['id'] = 'wts_x'", "steps: the id wts_x is there twice"),
        ("steps[0]['title'] = 'a' * 501", "steps.0.title: String should have at most 500 characters"),
        ("w['finishRule'] = {'goalReferences': [99]}", "walkthrough.finishRule.goalReferences: 99 is no step"),
        ("steps[0]['title'] = 'a\\0b'", "steps.0.title: it holds a NUL character"),
        ("steps[0]['metadata'] = {'a': ['\\0']}", "steps.0.metadata.a.0: it holds a NUL character"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(change: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(broken(change))
    with pytest.raises(UsageError) as caught:
        read_export(file)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"not json", b"[]", b"\xff\xfe", b'{"a":' * 3000])
def test_what_is_no_export_at_all_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "wrong.json"
    file.write_bytes(text)
    with pytest.raises(UsageError, match=r"is no export of format 1\.0"):
        read_export(file)


async def test_an_id_that_is_no_utf_8_is_told_in_words(world: World) -> None:
    done = world.command("export", "a\udcff")
    assert done.returncode == 1
    assert "bytes that are no UTF-8" in done.stderr.replace("\n", " ")


async def test_a_refused_file_changes_nothing(world: World, tmp_path: Path) -> None:
    await world.offer(server="docs")
    before = await rows(world)
    file = tmp_path / "wrong.json"
    file.write_text(broken("steps[2]['contentFields']['version'] = 'v9'"))
    done = world.command("import", str(file), "--server", "docs")
    assert done.returncode == 2
    assert "steps.2.contentFields.version: Input should be 'v1'" in done.stderr
    assert "Traceback" not in done.stderr
    assert await rows(world) == before


async def test_exporting_what_is_not_there_says_so(world: World, tmp_path: Path) -> None:
    done = world.command("export", "wt_none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no walkthrough with the id `wt_none`" in done.stderr
    await world.offer()
    done = world.command("export", "wt_a", "--file", str(tmp_path / "no" / "such" / "folder.json"))
    assert done.returncode == 2
    assert "No such file" in done.stderr
