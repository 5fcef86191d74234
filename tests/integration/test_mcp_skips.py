"""Steps that are skipped, and what people are shown, from an agent's call to the counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas import decode
from tests.support.agents import GENERATIONS, Agent, agent
from tests.support.world import RELAY, World

pytestmark = pytest.mark.integration

both_generations = pytest.mark.parametrize("generation", GENERATIONS)


async def told(world: World) -> list[tuple[str, str | None]]:
    """(type, step) of what the outbox holds, in order; each is an event of the contract."""
    rows = await world.db.fetch("select value, type from outbox order by id")
    events = [json.loads(row["value"]) for row in rows]
    for row in rows:
        decode(row["value"].encode(), 2**62)
    assert [event["type"] for event in events] == [row["type"] for row in rows]
    return [(event["type"], event.get("step_id")) for event in events]


async def make_optional(world: World, step: str) -> None:
    await world.db.execute(
        "update walkthrough_steps set metadata = '{\"optional\": true}' where id = $1", step
    )


async def outline_of(ann: Agent) -> dict[str, str]:
    return {s["id"]: s["state"] for s in (await ann.call("get_outline"))["outline"]}


@both_generations
async def test_an_optional_step_is_skipped_and_counts_as_skipped(world: World, generation: str) -> None:
    await world.offer(steps="abc")
    await make_optional(world, "b")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", generation) as ann:
        await ann.start()
        shown = await ann.next(current_step_id="a")
        assert shown["step"]["optional"]
        assert any("skip_step" in line and '"b"' in line for line in shown["then"])
        assert shown["then"][1] in ann.texts[-1]
        skipped = await ann.call("skip_step", step_id="b", reason="no\x07 TypeScript\nhere")
        assert (skipped["outcome"], skipped["step"]["id"]) == ("skipped", "c")
        assert (skipped["progress"]["completed_steps"], skipped["progress"]["skipped_steps"]) == (1, 1)
        assert "1 of 3 steps done, 1 skipped" in ann.texts[-1]
        assert await outline_of(ann) == {"a": "done", "b": "skipped", "c": "current"}
        again = await ann.call("skip_step", step_id="b")
        assert (again["outcome"], again["step"]["id"]) == ("skipped-before", "c")
        done = await ann.next(current_step_id="c")
        assert (done["outcome"], done["progress"]["is_finished"], done["progress"]["percent"]) == (
            "finished",
            True,
            100,
        )
    assert await told(world) == [
        ("walkthrough-started", None),
        ("step-shown", "a"),
        ("step-completed", "a"),
        ("step-shown", "b"),
        ("step-skipped", "b"),
        ("step-shown", "c"),
        ("step-shown", "c"),
        ("step-completed", "c"),
    ]
    progress = await world.db.fetchrow("select * from walkthrough_progress")
    assert progress is not None
    assert json.loads(progress["completed_steps"]) == ["a", "c"], "what was skipped is not done"
    assert progress["completed_at"] is not None
    world.start_both()
    world.start(RELAY)
    await world.relayed()
    await world.drained()
    skip = await world.db.fetchrow("select step_id, reason from walkthrough_step_skips")
    assert tuple(skip or ()) == ("b", "no TypeScript here")
    cells = await world.db.fetch(
        "select position, from_step_id, to_step_id, skipped, journeys from sankey_transitions order by 1"
    )
    assert [tuple(cell) for cell in cells] == [
        (0, None, "a", False, 1),
        (1, "a", "b", True, 1),
        (2, "b", "c", False, 1),
    ]
    await world.assert_exact()
    api = await world.start_api()
    summary = await api.get("walkthroughs/wt_a")
    assert (summary["started"], summary["finished"]) == (1, 1)


async def test_a_step_that_is_not_optional_is_skipped_where_the_person_insists(world: World) -> None:
    await world.offer(steps="ab")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        assert (await ann.call("skip_step", step_id="a"))["outcome"] == "not-started"
        await ann.start()
        before = await told(world)
        asked = await ann.call("skip_step", step_id="a")
        assert (asked["outcome"], asked["progress"]["current_step_id"]) == ("not-optional", "a")
        assert "insists" in ann.texts[-1]
        assert await told(world) == before, "nothing is written"
        assert (await ann.call("skip_step", step_id="b", insists=True))["outcome"] == "changed"
        assert (await ann.call("skip_step", step_id="a", insists=True))["step"]["id"] == "b"
        last = await ann.call("skip_step", step_id="b", insists=True)
        assert (last["outcome"], last["progress"]["is_finished"]) == ("finished", True)
        assert (await ann.call("skip_step", step_id="b"))["outcome"] == "already-finished"
        assert "done or skipped" in ann.texts[-1]
        assert (await ann.raw("skip_step", step_id="b", reason="x" * 501)).is_error


async def test_what_was_skipped_can_be_done_later_and_counts_as_done(world: World) -> None:
    await world.offer(steps="abc")
    await world.db.execute("update walkthrough_steps set title = 'Types (Optional)' where id = 'a'")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        await ann.call("skip_step", step_id="a")
        late = await ann.next(current_step_id="a")
        assert (late["outcome"], late["step"]["id"]) == ("done-after-all", "b")
        again = await ann.next(current_step_id="a")
        assert (again["outcome"], again["step"]["id"]) == ("repeated", "b")
        await ann.call("skip_step", step_id="b", insists=True)
        # Begun anew, nothing is passed, and what the platform keeps beside it stays.
        await world.db.execute("update walkthrough_progress set metadata = metadata || '{\"theirs\": 1}'")
        assert (await ann.start(restart=True))["step"]["id"] == "a"
        assert json.loads(await world.db.fetchval("select metadata from walkthrough_progress")) == {
            "theirs": 1
        }
        assert await outline_of(ann) == {"a": "current", "b": "open", "c": "open"}
    world.start_both()
    world.start(RELAY)
    await world.relayed()
    await world.drained()
    cells = await world.db.fetch(
        "select position, to_step_id, skipped, journeys from sankey_transitions order by 1"
    )
    assert [tuple(cell) for cell in cells] == [(0, "a", False, 1), (1, "b", True, 1)]
    await world.assert_exact()


@pytest.mark.parametrize("theirs", ["null", "[1]", '"x"', '{"a": 1}'])
async def test_a_skip_is_kept_whatever_the_platform_has_in_metadata(world: World, theirs: str) -> None:
    await world.offer(steps="ab")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        await world.db.execute("update walkthrough_progress set metadata = $1", theirs)
        await ann.call("skip_step", step_id="a", insists=True)
        assert (await ann.start())["step"]["id"] == "b"
        kept = json.loads(await world.db.fetchval("select metadata from walkthrough_progress"))
        assert kept.pop("skippedSteps") == ["a"]
        assert kept == (
            {} if theirs == "null" else {"a": 1} if "a" in theirs else {"before": json.loads(theirs)}
        )


async def test_a_skip_that_a_failover_lost_of_progress_follows_what_is_recorded(world: World) -> None:
    await world.offer(steps="abc")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        before = await world.db.fetchrow("select * from walkthrough_progress")
        await ann.call("skip_step", step_id="a", insists=True)
        world.start_both()
        world.start(RELAY)
        await world.relayed()
        await world.drained()
        names = ("current_step_id", "last_activity_at", "metadata")
        await world.db.execute(
            "update walkthrough_progress set current_step_id = $1, last_activity_at = $2, metadata = $3",
            *(before[name] for name in names),
        )
        assert (await ann.start())["step"]["id"] == "b"
        assert await outline_of(ann) == {"a": "skipped", "b": "current", "c": "open"}
        await world.db.execute("delete from walkthrough_progress")
        assert (await ann.start())["step"]["id"] == "b"


async def test_where_people_stop_is_what_was_shown_to_them_whatever_the_order_is_today(world: World) -> None:
    await world.offer(steps="abcd")
    service = await world.start_mcp()
    for name, steps in (("ann", "a"), ("bob", "ab"), ("cat", "")):
        async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/{name}") as who:
            await who.start()
            for step in steps:
                await who.next(current_step_id=step)
            # To look something up is no showing.
            await who.call("show_step", step_id="d")
    world.start_both()
    world.start(RELAY)
    await world.relayed()
    await world.drained()
    api = await world.start_api()

    async def stands() -> dict[str, int]:
        answer = await api.get("walkthroughs/wt_a/steps")
        assert answer["assumed"] == 0
        return {s["step_id"]: s["in_progress_here"] for s in answer["steps"]}

    before = await stands()
    assert before == {"a": 1, "b": 1, "c": 1, "d": 0}
    await world.db.execute("update walkthrough_steps set display_order = -display_order")
    assert await stands() == before, "an edit changes nothing of those who stopped before it"
    people = (await api.get("walkthroughs/wt_a/journeys"))["journeys"]
    assert sorted((p["next_step_id"], p["next_step_assumed"]) for p in people) == [
        ("a", False),
        ("b", False),
        ("c", False),
    ]
    progress: list[Any] = await world.db.fetch("select current_step_id from walkthrough_progress")
    assert sorted(row[0] for row in progress) == ["a", "b", "c"], "as the platform knows it"
    await world.assert_exact()


async def test_what_is_optional_is_said_by_command_kept_by_an_export_and_told_to_agents(
    world: World, tmp_path: Path
) -> None:
    await world.offer(steps="a")
    text = tmp_path / "types.md"
    text.write_text("Add types.")
    made = await world.invoke(
        "walkthroughs", "add-step", "wt_a", "Types", "--for-user", str(text), "--optional"
    )
    assert made.returncode == 0, made.stderr
    shown = await world.invoke("walkthroughs", "show", "wt_a")
    assert "Types (optional)" in shown.stdout
    exported = json.loads((await world.invoke("export", "wt_a")).stdout)
    assert [s.get("metadata") for s in exported["steps"]] == [None, {"optional": True}]
    await world.db.execute("delete from walkthroughs")
    file = tmp_path / "export.json"
    file.write_text(json.dumps(exported))
    again = await world.invoke("import", str(file), "--server", "srv_1")
    assert again.returncode == 0, again.stderr
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        await ann.next(current_step_id="a")
        outline = (await ann.call("get_outline"))["outline"]
        assert [(s["title"], s["optional"]) for s in outline] == [("title of a", False), ("Types", True)]
        assert (await ann.call("skip_step", step_id=outline[1]["id"]))["outcome"] == "finished"
