"""What others wrote, and an operator looks at: it is shown, and neither a terminal nor a command obeys it."""

import re
import uuid

import pytest
from typer.testing import CliRunner

from services.operator_cli.options import console
from tests.support.world import Message, World, completed, eventually

pytestmark = pytest.mark.integration

#: Paints the terminal red, sets the title of its window, rings; the same beyond ASCII; and ends a style of ours.
ORDERS = "\x1b[31m \x1b]0;owned\x07 \x9b31m \x7f \u202e [/bold] [link=http://evil.example]here"
#: What no line that is shown may hold.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


async def shown(world: World, *command: str) -> str:
    """What a command prints; a person, or a program behind a pipe, sees all of it on a terminal in the end."""
    done = await world.invoke(*command)
    text = f"{done.stdout}{done.stderr}"
    assert (found := OBEYED.search(text)) is None, (command, found, text)
    return text


@pytest.fixture
async def written(world: World) -> World:
    """A walkthrough of a tenant, whose words are orders to a terminal."""
    await world.offer(steps="ab")
    for table, column in (
        ("organization", "name"),
        ("mcp_servers", "name"),
        ("walkthroughs", "title"),
        ("walkthrough_steps", "title"),
    ):
        await world.db.execute(f"update {table} set {column} = $1", f"{ORDERS}\n{ORDERS}")
    return world


async def test_titles_and_names_are_shown_and_not_obeyed(written: World) -> None:
    assert "\\x1b[31m" in await shown(written, "walkthroughs", "show", "wt_a")
    for command in (
        ("organizations", "list"),
        ("servers", "list"),
        ("walkthroughs", "list"),
        ("walkthroughs", "versions", "wt_a"),
        ("walkthroughs", "move-step", "wt_a", "a", "--to", "2"),
        ("keys", "create", "--organization", "org", "--name", ORDERS),
        ("keys", "list"),
    ):
        await shown(written, *command)


async def test_json_holds_them_and_no_control_character(written: World) -> None:
    for command in (
        ("organizations", "list", "-o", "json"),
        ("servers", "list", "-o", "json"),
        ("walkthroughs", "list", "-o", "json"),
    ):
        done = await written.invoke(*command)
        assert "\\u001b[31m" in done.stdout
        assert "\\u009b31m" in done.stdout
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout), command
    exported = (await written.invoke("export", "wt_a")).stdout
    assert "\\u009b31m" in exported
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", exported)


async def test_a_title_that_looks_like_a_style_stops_no_command(written: World) -> None:
    """Square brackets are a style's where the command line writes for people: a title has none."""
    plan = await written.invoke("walkthroughs", "archive", "wt_a")
    assert plan.returncode == 0
    assert "[/bold] [link=http://evil.example]here" in plan.stderr
    await shown(written, "walkthroughs", "archive", "wt_a")


async def test_dead_letters_are_shown_and_not_obeyed(world: World) -> None:
    await world.offer(steps="ab")
    world.start_both()
    source = ORDERS.encode()
    await world.produce(
        [
            Message(source, b'{"type": "' + source + b'"}', [("ce_source", source)]),
            Message(source, str(completed(ORDERS, "a", 1)).encode(), [(ORDERS, source)]),
        ]
    )
    await world.drained()
    for command in (
        ("dlq", "list"),
        ("dlq", "summary"),
        ("dlq", "redrive"),
        ("status",),
        ("erase", ORDERS),
        ("verify", "--against-topic"),
    ):
        await shown(world, *command)
    exported = (await world.invoke("dlq", "export")).stdout
    assert exported.count("\n") == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", exported)


async def test_the_name_of_a_prepared_transaction_is_shown_and_not_obeyed(world: World) -> None:
    """Whoever may connect chooses it, and `status` names it to whoever has to end it."""
    if await world.db.fetchval("show max_prepared_transactions") == "0":
        pytest.skip("this PostgreSQL prepares no transactions")
    name = f"{ORDERS}{uuid.uuid4()}"
    async with world.connection() as other:
        await other.execute("begin; lock table dead_letters_handled in share mode")
        await other.execute(f"prepare transaction '{name}'")

    async def is_told() -> bool:  # a lock of a moment is not
        return "\\x1b[31m" in await shown(world, "status")

    try:
        await eventually(is_told, "status names it")
    finally:
        await world.db.execute(f"rollback prepared '{name}'")


def test_what_a_command_says_beside_its_result_is_not_obeyed_either() -> None:
    with CliRunner().isolation() as (_, errors, _):
        console.print(f"nobody is called {ORDERS[:20]}", markup=False)
        console.file.flush()
        text = errors.getvalue().decode() if errors else ""
    assert "nobody is called \\x1b[31m" in text
    assert OBEYED.search(text) is None
