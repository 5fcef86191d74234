"""The commands as an operator uses them, in one go; what they print is what docs/operating.md shows.

`make docs` writes the page's part anew from a run of this file.
"""

import gzip
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from schemas import TOPIC
from services.operator_cli.app import app as command_line
from tests.support.world import AGGREGATOR, RECORDER, Message, World, completed, started

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
BEGIN, END = "<!-- what the commands print: written by `make docs` -->", "<!-- end of what they print -->"
DAY = 86_400_000
START = 20_400 * DAY  # 2025-11-08
STEPS = ("install", "sign-in", "configure", "deploy")
WHERE = {"walkthrough_id": "wt_quick", "mcp_server_id": "docs"}


@pytest.fixture
async def plain(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """A world with the names that an operator sees."""
    made = await World.make(*addresses, template, topic=TOPIC, group_prefix="")
    try:
        await furnish(made)
        yield made
    finally:
        await made.close()


async def furnish(world: World) -> None:
    await world.offer("wt_quick", STEPS, "docs")
    await world.people([f"mcpu_{name}" for name in NAMES], "docs")


NAMES = [f"{chr(97 + i % 26)}{i:02}" for i in range(30)]


def crowd() -> list[dict[str, Any]]:
    """Thirty people, who each come a little further."""
    events: list[dict[str, Any]] = []
    for i, name in enumerate(NAMES):
        user = f"mcpu_{name}"
        at = START + i * 3_600_000
        session = {"mcp_server_session_id": f"s_{user}"}
        events.append(started(user, at, **WHERE, **session))
        events += [completed(user, STEPS[n], at + (n + 1) * 90_000, **WHERE, **session) for n in range(i % 5)]
    return events


def bad() -> list[Message]:
    """What dead letters are made of."""
    late = completed("mcpu_new", "install", START, **WHERE, event_id="0192f4c1-7a3d-4b11-8e20-5f6a7b8c9d0e")
    return [
        Message(b"mcpu_a00", b'{"type": "step-completed", "event_id": 17'),
        Message.of(late),
        Message.of(late | {"step_id": "configure", "event_id": "0192f4c1-7a3d-4b11-8e20-5f6a7b8c9d0f"}),
    ]


class Terminal:
    """Runs commands, and keeps what a terminal would show, without what differs from run to run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.text: list[str] = []

    async def __call__(self, line: str, code: int = 0) -> str:
        done = await self.world.invoke(*shlex.split(line))
        assert done.returncode == code, (line, done.stdout, done.stderr)
        shown = "\n".join(text.rstrip() for text in (done.stdout + done.stderr).splitlines())
        told = f"  (exit {code})" if code else ""
        self.text.append(f"$ stepstream {_steady(line)}{told}\n{_steady(shown).strip(chr(10))}\n")
        return done.stdout

    def block(self) -> str:
        text, self.text = "\n".join(self.text), []
        return f"```console\n{text.rstrip()}\n```\n"


def _steady(text: str) -> str:
    """The same text with times, random ids and durations of no meaning, in the same width."""

    def same_width(value: str) -> Callable[[re.Match[str]], str]:
        return lambda match: value.ljust(len(match[0]))

    text = re.sub(r"\n\s*\n\s*\n", "\n\n", text)
    text = re.sub(r"20[2-9]\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", _moment, text)
    text = re.sub(r"(?:\b|(?<=_))[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-", "019b2c3d-4e5f-7a6b-", text)
    text = re.sub(r"(019b2c3d-4e5f-7a6b-)[0-9a-f]{4}-[0-9a-f]{12}", r"\g<1>8c7d-6e5f4a3b2c1d", text)
    text = re.sub(r"sst_[0-9a-f]{12}_[\w-]{43}", "sst_1f9c3a7b20de_" + "k3J" * 14 + "9", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "1f9c3a7b20de", text)
    text = re.sub(r"\b(org|wt|wts)_[0-9a-f]{8,12}\b", _numbered, text)
    text = re.sub(r"(mcp_server_id: |\n id {20})[0-9a-f]{8}\b", r"\g<1>5e1f2a3b", text)
    text = re.sub(r"\b(mcpu)_[0-9a-f]{20}\b", _numbered, text)
    text = re.sub(r"\b\d+\.\d\d s\b", "0.01 s", text)
    text = re.sub(r", [\d,]+ a second$", ", 2,000 a second", text, flags=re.MULTILINE)
    return re.sub(r"(?<= )(\d+m)?\d+s(?=\s*$)", same_width("2s"), text, flags=re.MULTILINE)


#: Random ids in the order in which they were shown.
_ids: dict[str, str] = {}


def _numbered(match: re.Match[str]) -> str:
    """A random id as one that is the same in every run, in the same width."""
    number = f"{len(_ids) + 1}".rjust(len(match[0]) - len(match[1]) - 1, "0")
    return _ids.setdefault(match[0], f"{match[1]}_{number}")


def _moment(match: re.Match[str]) -> str:
    """Times of the events are always the same; those of this run become one."""
    if match[0] < "2025-12-31":
        return match[0]
    ahead = datetime.fromisoformat(match[0]) > datetime.now(UTC) + timedelta(days=1)
    return "2027-02-22T09:00:00Z" if ahead else "2026-11-24T09:00:00Z"


Action = Callable[[], Awaitable[Any]]


async def tell(world: World) -> str:  # noqa: PLR0915 - a story from start to end
    """The section, from a run of everything that it shows."""
    run = Terminal(world)
    parts: list[str] = []

    def part(title: str, text: str) -> None:
        parts.append(f"### {title}\n\n{text}\n\n{run.block()}")

    recorder, aggregator = world.start_both()
    await world.produce(crowd())
    await world.drained()
    for message in bad():
        await world.produce([message])
    await world.drained()

    await run("status")
    part(
        "See how far everything is",
        "`status` looks at Kafka and at the database, each without the other, and says what is down; `lag` goes\n"
        "partition by partition. Both watch with `--watch`; `lag --fail-above 1000` or `--fail-above 5m` is for a\n"
        "cron job.",
    )
    assert recorder.terminate() == 0
    await world.produce(
        [completed("mcpu_a00", "install", START + 5, **WHERE, mcp_server_session_id="s_mcpu_a00")]
    )
    await run("lag --group completion-recorder --fail-above 0", 3)
    part("A service is down", "Who waits, since when, and where.")

    await run("check-events --topic walkthrough.progress.v1", 3)
    part(
        "Would these events count?",
        "For whoever writes a producer: of a file before it is sent, or of what is in a topic. It reads without a\n"
        "group, writes nothing, and waits for no lock. With `--source /checkout` it looks at one producer alone. The\n"
        "last event of these is one that the recorder, which is down, has yet to read.",
    )

    await run("dlq list")
    await run("dlq summary")
    letters = json.loads((await world.invoke("dlq", "list", "-o", "json")).stdout)
    await run(f"dlq show {letters[0]['id']}")
    await run("dlq redrive --class unknown-user")
    await world.people(["mcpu_new"], "docs")
    recorder = await world.start(RECORDER).ready()
    await run("dlq redrive --class unknown-user --execute")
    await world.drained()
    await run("dlq drop --class not-json --execute")
    await run("dlq list --all")
    part(
        "Dead letters",
        "By error class, then the newest; `summary` counts them by who sent them. The cause is mended between the\n"
        "plan and the redrive. What fails again comes back as one letter, with its history; what was sent is never\n"
        "sent twice, also when the command was interrupted. However many there are, a command holds 2,000 of them, or\n"
        "16 MiB, at a time: `-o json` and `export` print them as they are read.",
    )

    await world.db.execute(
        "update sankey_transitions set journeys = journeys + 4 where to_step_id = 'deploy'"
    )
    await world.db.execute("delete from sankey_journeys where mcp_server_user_id = 'mcpu_j09'")
    await run("verify", 3)
    await run("rebuild")
    await run("rebuild --execute")
    await run("verify")
    part(
        "Verify and rebuild",
        "Somebody has changed the Sankey tables by hand. Both commands work while traffic flows; neither stops\n"
        "anybody.",
    )

    await run("replay --group sankey-aggregator --from-beginning --execute", 4)
    assert aggregator.terminate() == 0
    await run("replay --group sankey-aggregator --from-beginning")
    await run("replay --group sankey-aggregator --from-beginning --execute")
    aggregator = await world.start(AGGREGATOR).ready()
    await world.drained()
    assert recorder.terminate() == 0
    await run("replay --group completion-recorder --from -1h --to-offset 10 --execute")
    part(
        "Replay",
        "Stop the group's services, replay, start them again. With an end, the range is fed through and the group\n"
        "stays where it is. Whichever is replayed, the tables are the same afterwards.",
    )

    await run("erase mcpu_e04")
    await run("erase mcpu_e04 --execute")
    recorder = await world.start(RECORDER).ready()
    await world.drained()
    await run("verify")
    part(
        "Forget a person",
        "By id, tracking id, the id under which an organization registered them, or e-mail address; of addresses upper and "
        "lower case are\nthe same, and the plan says whom it found. Where several organizations have registered the same id, "
        "`--organization` says whose\nis meant; so it does for `stepstream completions`. Of a name that only dead letters have, "
        "nothing is known: whoever sends a wrong\nid has dead letters under it. `--even-if-unknown` says that it is meant as an "
        "id, and removes them. A\nplatform may have people whose id no event can have (over 64 characters): they are erased as well, "
        "without an event.",
    )

    await run("completions show mcpu_c02")
    await run("completions correct mcpu_c02 install --completed-at 2025-11-08T02:00:30Z")
    await run("completions correct mcpu_c02 install --completed-at 2025-11-08T02:00:30Z --execute")
    await run("completions remove mcpu_c02 sign-in --execute")
    await run("completions show mcpu_c02")
    await world.drained()
    await run("verify")
    part(
        "Mend a completion",
        "When it was, or that it was not. Each is an event in the topic, so a replay does not bring the wrong one\n"
        "back; what the person completes later counts as ever.",
    )

    await run("keys create --organization org --name dashboard --expires-in 90d")
    await run("keys create --organization org --name shop --may-write --source /shop")
    await run("keys list")
    key = await world.db.fetchval("select id from api_keys where name = 'dashboard'")
    await run(f"keys revoke {key} --execute")
    part(
        "API keys",
        "The key alone is on stdout. One that writes sends events, and registers people and sessions; it opens no\n"
        "figures unless it is made with `--may-read` too.",
    )

    await run('organizations create "Acme Tools"')
    await run('servers create "Acme docs" --organization acme-tools')
    identifier = (await run('walkthroughs create "First steps" --server acme-docs --minutes 10')).strip()
    for title in ("Sign in", "Install it"):
        await run(f'walkthroughs add-step {identifier} "{title}" --operations "Lead the person through it."')
    await run(f"walkthroughs publish {identifier} --execute")
    last = await world.db.fetchval("select id from walkthrough_steps where title = 'Install it'")
    await run(f"walkthroughs move-step {last} --to 1")
    await run(f"walkthroughs move-step {last} --to 1 --execute")
    await run(f"walkthroughs show {identifier}")
    await run(f"walkthroughs versions {identifier}")
    await run("servers show acme-docs")
    part(
        "From nothing to a walkthrough",
        "An organization, an MCP server, and a walkthrough with its steps; `import` makes a whole one from a file.\n"
        "What changes what people are offered is a plan first, which says how many are under way. Each edit of steps\n"
        "that somebody has met makes a version, by which figures tell who had which steps before them.",
    )

    await run("register people --organization org --distinct-id u-1 --distinct-id u-2")
    await run("register sessions --organization org --session-id s-1 --distinct-id u-1 -o ndjson")
    part(
        "People and sessions",
        "By ids of their organization's own: one by one, or from a file, CSV or NDJSON. To repeat it is safe.",
    )

    await world.people([f"mcpu_old{i}" for i in range(3)], "docs")
    await world.db.executemany(
        "insert into walkthrough_progress (id, mcp_server_user_id, walkthrough_id, completed_steps, started_at,"
        " last_activity_at) values ($1, $2, 'wt_quick', $3, $4, $5)",
        [
            ("wtp_1", "mcpu_old0", '["install", "sign-in"]', START, START + 600_000),
            ("wtp_2", "mcpu_old1", '["install", "removed-step"]', START, START + 300_000),
            ("wtp_3", "mcpu_old2", '["install"]', None, None),
        ],
    )
    await run("backfill --from-progress")
    await run("backfill --from-progress --execute")
    await world.drained()
    await run("backfill --from-progress")
    part(
        "Completions from before",
        "From a file (`backfill completions.csv`, with the fields of the event as columns), or from what the platform\n"
        "knows: there a step's time is not known, only when the person began and was last active, so times are\n"
        "spread evenly in between and marked so in `metadata`. What is a completion already is left out. In a file "
        "people may\nbe named by `distinct_id` in place of `mcp_server_user_id`: as the organization whose walkthrough it is "
        "registered them. Exit 1\nwhere all rows were left out.",
    )
    await run("status")
    part("And afterwards", "The relay and the MCP layer do not run in this example.")
    await world.assert_exact()
    return "\n".join(parts)


async def test_the_page_shows_what_the_commands_print(plain: World) -> None:
    told = await tell(plain)
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    shown, _, after = rest.partition(END)
    if os.environ.get("STEPSTREAM_WRITE_DOCS"):
        PAGE.write_text(f"{before}{BEGIN}\n\n{told}\n{END}{after}", "utf-8")
        return
    assert shown.strip() == told.strip(), (
        "docs/operating.md is stale: run `make docs`, and look at what changed"
    )


# --- the examples in the help ----------------------------------------------------------------------------


def examples() -> Iterator[str]:
    """The lines of every command's help that begin with `$ stepstream`."""

    def walk(command: Any) -> Iterator[str]:
        for line in (command.epilog or "").splitlines():
            if line.startswith("$ stepstream "):
                yield line.removeprefix("$ stepstream ")
        for child in getattr(command, "commands", {}).values():
            yield from walk(child)

    yield from walk(typer.main.get_command(command_line))


async def test_each_example_of_the_help_works(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, on a world that has what they name."""
    from services.demo import run as demo

    await furnish(world)

    monkeypatch.chdir(tmp_path)
    export = Path(demo.__file__).parent / "walkthroughs" / "first-webhook.json"
    (tmp_path / "walkthrough.json").write_bytes(export.read_bytes())
    (tmp_path / "events.ndjson").write_text("")
    (tmp_path / "for-http.ndjson").write_text("")
    (tmp_path / "events.json.gz").write_bytes(gzip.compress(b"[]"))
    (tmp_path / "export.csv.gz").write_bytes(
        gzip.compress(
            b"user,walkthrough_id,step_id,finished,note\nmcpu_b01,wt_quick,deploy,2025-11-09T00:00:00Z,x\n"
        )
    )
    (tmp_path / "mended.ndjson").write_text("")
    (tmp_path / "install.md").write_text("Run the installer.")
    (tmp_path / "people.csv").write_text("distinct_id\nu-1\nu-2\n")
    (tmp_path / "customers.csv").write_text("customer;plan\nu-1;free\n")
    (tmp_path / "sessions.ndjson").write_text('{"session_id": "s-1", "distinct_id": "u-1"}\n')
    (tmp_path / "completions.csv").write_text(
        "mcp_server_user_id,walkthrough_id,step_id,completed_at\nmcpu_b01,wt_quick,deploy,2025-11-09T00:00:00Z\n"
    )
    await world.people(["mcpu_k3Jd82LsQ0aZ"], "docs")
    await world.db.execute(
        "insert into organization (id, name, created_at) values ('org_demo', 'demo', now());"
        "insert into api_keys values ('1f9c3a7b20de', 'org_demo', '', '\\x')"
    )
    async with world.producing() as producer:
        for _ in range(5):
            await producer.send_and_wait(world.settings.topic, b"no event", key=b"k", partition=0)
    session = {"mcp_server_session_id": "s_mcpu_b01"}
    event = completed("mcpu_b01", "install", START, **WHERE, **session)
    await world.produce([event, replace(Message.of(event), headers=[("ce_source", b"/checkout")])])
    services = world.start_both()
    await world.drained()
    for service in services:
        assert service.terminate() == 0
    async with world.producing() as producer:
        for _ in range(5):
            await producer.send_and_wait(world.settings.topic, b"no event", key=b"k", partition=2)
    # Last what needs the organization that others make.
    lines = sorted(examples(), key=lambda line: "for-http" in line)
    assert len(lines) > 25
    for line in lines:
        if line.startswith("gone acknowledge 1"):
            await world.db.execute(
                "insert into gone_events (topic, partition, cause, from_offset, until_offset)"
                " values ($1, 0, 'expired', 5, 9)",
                world.settings.topic,
            )
        done = await world.invoke(*shlex.split(line.replace(TOPIC, world.settings.topic)))
        readable = line.startswith("skip --partition 2")  # where all can be read, there is nothing to pass
        assert done.returncode == (2 if readable else 0), (line, done.stdout, done.stderr)


def test_every_command_that_operates_has_an_example_and_says_what_it_is() -> None:
    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", {})
        if not children:
            yield name, command
        for child, found in children.items():
            yield from walk(f"{name} {child}".strip(), found)

    without = {n for n, c in walk("", typer.main.get_command(command_line)) if not c.epilog}
    assert without == {"stack up", "stack env", "stack down", "run", "demo"}
    assert all(c.help for _, c in walk("", typer.main.get_command(command_line)))
