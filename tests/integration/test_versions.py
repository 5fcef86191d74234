"""Edits of a walkthrough make versions: by whom and how ever they are made, and without harm to an edit."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.runtime.database import connected
from services.walkthrough_mcp import catalog
from tests.support.figures import DAY
from tests.support.world import OPERATOR, Api, World, completed, eventually, skipped, started

pytestmark = pytest.mark.integration


async def orders(world: World, walkthrough: str = "wt_a") -> list[str]:
    """The steps of each version, one after the other."""
    rows = await world.db.fetch(
        "select step_ids, made_at from walkthrough_versions where walkthrough_id = $1 order by made_at, id",
        walkthrough,
    )
    assert len({row["made_at"] for row in rows}) == len(rows), "each is later than the one before"
    return ["".join(row["step_ids"]) for row in rows]


async def somebody(world: World, name: str, at: int | None = None) -> None:
    """Somebody does the first step as soon as the newest version is there, or at a time."""
    await world.people([name])
    newest = await world.db.fetchval(
        "select max(made_at) from walkthrough_versions where walkthrough_id = 'wt_a'"
    )
    await world.insert(completed(name, "a", newest if at is None else at))


def exported(steps: list[str], content: str = "x") -> dict[str, Any]:
    return {
        "version": "1.0",
        "walkthrough": {"id": "wt_a", "title": "wt_a", "status": "published"},
        "steps": [
            {
                "id": step,
                "title": f"title of {step}",
                "contentFields": {"version": "v1", "contentForUser": content},
                "displayOrder": i,
            }
            for i, step in enumerate(steps)
        ],
    }


async def test_an_edit_that_people_can_meet_makes_a_version_and_an_import_one(
    world: World, tmp_path: Path
) -> None:
    await world.offer(steps="abc")
    async with connected(world.settings_of(OPERATOR)) as db:
        for i in range(5):
            await catalog.add_step(db, "wt_a", f"more {i}", {"contentForUser": "x"})
    (built,) = await orders(world)
    assert (built[:3], await world.db.fetchval("select count(*) from walkthrough_steps")) == ("abc", 8)
    await world.db.execute("delete from walkthrough_steps where title like 'more%'")
    assert await orders(world) == ["abc"], "nobody has come yet"

    await somebody(world, "ann")
    await world.db.execute("update walkthrough_steps set updated_at = 5, next_step_id = 'c' where id = 'a'")
    assert await orders(world) == ["abc"], "nobody sees that"
    file = tmp_path / "export.json"
    many = [*"cab", *(f"s{i}" for i in range(100))]
    file.write_text(json.dumps(exported(many)))
    done = await world.invoke("import", str(file), "--server", "srv_1")
    assert done.returncode == 0, done.stderr
    assert await orders(world) == ["abc", "".join(many)]

    await world.db.execute("delete from walkthrough_steps where length(id) > 1")
    await world.db.execute("update walkthrough_steps set title = 'new' where id = 'b'")
    assert await orders(world) == ["abc", "cab"], "nobody met what was there in between"
    await somebody(world, "bob")
    for edit in (
        "update walkthrough_steps set title = 'newer' where id = 'b'",
        'update walkthrough_steps set content_fields = content_fields || \'{"contentForUser": "y"}\'',
        "update walkthrough_steps set metadata = '{\"optional\": true}' where id = 'b'",
    ):
        await world.db.execute(edit)
        assert await orders(world) == ["abc", "cab", "cab"], edit
    assert (
        await world.db.fetchval(
            "select count(distinct contents || titles) from walkthrough_versions where step_ids = '{c,a,b}'"
        )
        == 2
    )
    await world.db.execute(
        "update walkthrough_steps set title = 'new', metadata = null,"
        " content_fields = content_fields || '{\"contentForUser\": \"x\"}' where id = 'b';"
        'update walkthrough_steps set content_fields = content_fields || \'{"contentForUser": "x"}\''
    )
    assert await orders(world) == ["abc", "cab"], "an edit that is taken back before anybody came is none"

    await world.db.execute("delete from organization")
    assert await world.db.fetchval("select count(*) from walkthrough_versions") == 0


#: What makes somebody known to have come to a walkthrough, which has one step of its own.
MET = {
    "start": "insert into walkthrough_starts values ('1', 'ann', 'start', 'srv_1', 's_ann', 5, null)",
    "skip": "insert into walkthrough_step_skips values ('1', 'ann', 'skip', 'skip_1', 'srv_1', 's_ann', 5)",
    "showing": "insert into walkthrough_step_showings"
    " values ('1', '1', 'ann', 'showing', 'showing_1', 'srv_1', 's_ann', 5, 5)",
    "completion": "insert into walkthrough_step_completions"
    " values ('1', 'ann', 'completion', 'completion_1', 'srv_1', 's_ann', 5, null)",
    "progress": "insert into walkthrough_progress (id, mcp_server_user_id, walkthrough_id)"
    " values ('1', 'ann', 'progress')",
}


async def test_whoever_comes_by_whatever_event_has_met_a_version_and_masses_are_edited_at_once(
    world: World,
) -> None:
    await world.offer()
    await world.people(["ann"])
    many = [*MET, *(f"nobody {i}" for i in range(150))]
    await world.db.execute(
        "insert into walkthroughs (id, organization_id, title) select id, 'org', id from unnest($1::text[]) as id",
        many,
    )
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields)"
        " select id || '_1', id, '1', '{}' from unnest($1::text[]) as id",
        many,
    )
    for statement in MET.values():
        await world.db.execute(statement)
    await world.db.execute("update walkthrough_steps set title = '2'")
    for walkthrough in many:
        steps = f"{walkthrough}_1"
        assert await orders(world, walkthrough) == ([steps] * 2 if walkthrough in MET else [steps])


async def test_what_services_counted_has_met_a_version(world: World) -> None:
    """Starts, skips and showings have no index by time: the newest that was counted tells of them."""
    await world.offer(steps="abc")
    await world.people(["ann", "bob"])
    await somebody(world, "ann")
    await world.db.execute("update walkthrough_steps set display_order = -1 where id = 'c'")
    now = await world.db.fetchval("select made_at from walkthrough_versions order by made_at desc limit 1")
    services = world.start_both()
    await world.produce([started("bob", now + 1), skipped("bob", "b", now + 2)])
    await world.drained()
    for service in services:
        service.terminate()
    await world.db.execute("update walkthrough_steps set display_order = -2 where id = 'b'")
    assert await orders(world) == ["abc", "cab", "bca"]


async def test_edits_at_once_each_make_a_version_and_none_fails(world: World) -> None:
    """Two transactions that edit two walkthroughs in opposite order, and one that waits for both in vain."""
    for walkthrough, steps in (("wt_a", "abc"), ("wt_b", "xyz")):
        await world.offer(walkthrough, steps)
    await world.people(["ann"])
    for i, walkthrough in enumerate(("wt_a", "wt_b")):
        await world.db.execute(
            "insert into walkthrough_starts values ($1, 'ann', $2, 'srv_1', 's_ann', 5, null)",
            str(i),
            walkthrough,
        )
    edit = "update walkthrough_steps set display_order = 9 where id = "

    async def both(first: str, second: str) -> None:
        async with world.connection() as db, db.transaction():
            await db.execute(f"{edit}'{first}'")
            await db.execute(f"{edit}'{second}'")

    await asyncio.gather(both("a", "y"), both("x", "b"))
    a, b = await orders(world), await orders(world, "wt_b")
    assert (a[0], a[-1]) == ("abc", "cab")
    assert (b[0], b[-1]) == ("xyz", "zxy")
    assert 2 <= len(a) <= 3

    async with world.connection() as slow, world.connection() as quick:
        transaction = slow.transaction()
        await transaction.start()
        # It keeps its turn for as long as its transaction lasts; and locks the walkthrough, as an import does.
        await slow.execute("select from walkthroughs where id = 'wt_a' for update")
        await slow.execute("update walkthrough_steps set title = 'slow' where id = 'a'")
        await slow.execute("set constraints all immediate")
        await quick.execute("set lock_timeout = '3s'")
        await quick.execute("update walkthrough_steps set title = 'quick' where id = 'b'")
        await transaction.commit()
    titles = await world.db.fetch(
        "select titles from walkthrough_versions where walkthrough_id = 'wt_a' order by id"
    )
    assert "quick" in str(titles[-2:])
    assert "slow" in str(titles[-2:])
    assert await orders(world) == [*a[:-1], *["cab"] * (len(titles) - len(a) + 1)]


async def test_an_edit_in_a_snapshot_of_its_own_does_not_fail(world: World) -> None:
    await world.offer(steps="abc")
    await somebody(world, "ann", 5)
    for isolation in ("repeatable_read", "serializable"):
        async with world.connection() as db, db.transaction(isolation=isolation):
            await db.execute("update walkthrough_steps set title = title || 'mine' where id = 'a'")
            await world.db.execute("update walkthrough_steps set title = title || 'theirs' where id = 'b'")
    titles = await world.db.fetchval("select array_agg(title order by id) from walkthrough_steps")
    assert titles == ["title of aminemine", "title of btheirstheirs", "title of c"]
    assert set(await orders(world)) == {"abc"}


async def test_who_has_no_right_on_versions_edits_all_the_same(world: World) -> None:
    await world.offer(steps="abc")
    await somebody(world, "ann", 5)
    role = f"platform_{world.settings.dsn[-8:]}"
    await world.db.execute(
        f"create role {role} login password 'p'; grant select, insert, update, delete on walkthrough_steps to {role};"
        f" grant select on walkthroughs to {role}"
    )
    try:
        host = world.settings.dsn.split("@")[-1]
        platform = await asyncpg.connect(f"postgresql://{role}:p@{host}")
        await platform.execute("update walkthrough_steps set display_order = 9 where id = 'a'")
        await platform.execute(
            "insert into walkthrough_steps (id, walkthrough_id, title, content_fields) values ('n', 'wt_a', 'n', '{}')"
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await platform.execute("select from walkthrough_versions")
        await platform.close()
    finally:
        await world.db.execute(f"drop owned by {role}; drop role {role}")
    assert await orders(world) == ["abc", "nbca"]


async def test_a_step_that_goes_to_another_walkthrough_is_an_edit_of_both(world: World) -> None:
    for walkthrough, steps in (("wt_a", "abc"), ("wt_b", "xyz")):
        await world.offer(walkthrough, steps)
    await somebody(world, "ann", 5)
    await world.db.execute("update walkthrough_steps set walkthrough_id = 'wt_b' where id = 'c'")
    assert (await orders(world), await orders(world, "wt_b")) == (["abc", "ab"], ["xycz"])
    await world.db.execute("truncate walkthroughs cascade")
    assert await world.db.fetchval("select count(*) from walkthrough_versions") == 0


async def test_an_edit_that_cannot_be_noted_is_made_and_a_warning_says_so(world: World) -> None:
    await world.offer(steps="abc")
    await somebody(world, "ann", 5)
    await world.db.execute(
        "alter table walkthrough_versions add constraint broken check (titles is null) not valid"
    )
    warnings: list[str] = []
    async with world.connection() as db:
        db.add_log_listener(lambda _, message: warnings.append(str(message)))
        await db.execute("update walkthrough_steps set title = 'new' where id = 'a'")

        async def warned() -> bool:
            return bool(warnings)

        await eventually(warned, "it warns")
    assert "the version of walkthrough wt_a is not kept" in warnings[0]
    assert await orders(world) == ["abc"]
    assert await world.db.fetchval("select title from walkthrough_steps where id = 'a'") == "new"


# --- what people did before an edit ----------------------------------------------------------------------


async def history(world: World) -> Api:
    """Of those who began three weeks ago, 35 were shown what they stopped at, 40 were not, and 31 finished."""
    await world.offer(steps="abcde")
    names = {
        kind: [f"{kind}{i:02}" for i in range(n)] for kind, n in (("shown", 35), ("not", 40), ("done", 31))
    }
    await world.people([name for of in names.values() for name in of])
    began = int(time.time() * 1000) - 21 * DAY
    steps = {"shown": "ab", "not": "ab", "done": "abcde"}
    events = [
        completed(name, step, began + 1000 * i + 60_000 * place**2)
        for kind, of in names.items()
        for i, name in enumerate(of)
        for place, step in enumerate(steps[kind])
    ]
    await world.insert(*events)
    await world.db.executemany(
        "insert into walkthrough_step_showings values ($1, $1, $1, 'wt_a', $2, 'srv_1', 's_' || $1, $3, $3)",
        [(name, "cd"[i % 2], began + DAY) for i, name in enumerate(names["shown"])],
    )
    await world.drain_marks()
    return await world.start_api()


async def told(api: Api) -> dict[str, Any]:
    """Everything that says where people stand and stopped, without the places that steps have now."""
    route = "walkthroughs/wt_a"
    steps = await api.get(f"{route}/steps")
    people = (await api.get(f"{route}/journeys", limit=500))["journeys"]
    diagnosis = await api.get(f"{route}/diagnose")
    return {
        "steps": {s["step_id"]: {**s, "place": 0} for s in steps["steps"]},
        "assumed": steps["assumed"],
        "standing": {p["mcp_server_user_id"]: (p["next_step_id"], p["next_step_assumed"]) for p in people},
        "says": [f["says"] for f in diagnosis["findings"]],
        "stops": {s["step_id"]: {**s, "place": 0} for s in diagnosis["steps"]},
        "changes": diagnosis["changes"],
        "funnel of then": (await api.get(f"{route}/funnel", version=1))["stages"],
    }


async def test_a_moved_step_changes_no_figure_and_no_sentence_of_who_stopped_before(world: World) -> None:
    api = await history(world)
    before = await told(api)
    assert before["assumed"] == 40
    assert before["steps"]["c"]["dropped_here"] == 40 + 18
    assert any("58 of 75 people who stopped did so before “title of c”" in says for says in before["says"])
    await world.db.execute("update walkthrough_steps set display_order = -1 where id = 'e'")
    assert [s["id"] for s in (await api.get("walkthroughs/wt_a/steps"))["walkthrough"]["steps"]] == list(
        "eabcd"
    )
    assert await told(api) == before
    found = await api.get("walkthroughs/wt_a/journeys", next_step="e")
    assert found["journeys"] == []


async def test_an_added_and_a_removed_step_leave_those_where_they_stopped_who_stopped_before(
    world: World,
) -> None:
    api = await history(world)
    before = await told(api)
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " values ('n', 'wt_a', 'new', '{}', -1)"
    )
    after = await told(api)
    new = after["steps"].pop("n")
    assert after["steps"] == before["steps"]
    # Who had finished stays finished: it was not asked of them.
    assert (new["reached"], new["dropped_here"], after["assumed"]) == (0, 0, 40)
    assert after["funnel of then"] == before["funnel of then"]
    assert after["standing"] == before["standing"]

    await somebody(world, "late")
    await world.db.execute("delete from walkthrough_steps where id = 'c'")
    await world.drain_marks()
    gone = await told(api)
    assert {gone["standing"][f"not{i:02}"] for i in range(40)} == {("d", True)}, (
        "the next that is still there"
    )
