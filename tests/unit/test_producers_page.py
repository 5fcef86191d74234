"""The kit's page names all that is refused, its example is an event, and what it names is in its folder."""

import json
import re
from pathlib import Path

from aiokafka.partitioner import DefaultPartitioner

from schemas import Rejection, StepCompleted, decode
from schemas.documents import TOPIC_PARTITIONS
from schemas.generate import EXAMPLES, FOLDER

PAGE = (FOLDER / "README.md").read_text("utf-8")
BEYOND = (Path(__file__).parents[2] / "docs" / "producers.md").read_text("utf-8")


def test_it_says_the_conditions_first_and_names_each_class_of_what_is_refused() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert headings[:3] == ["An event counts when", "The event", "The record"]
    conditions = PAGE.partition("## The event")[0]
    assert [name for name in Rejection if f"`{name}`" not in conditions] == []


def test_its_example_is_an_event_with_every_field_of_a_completion() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    event = decode(example.encode(), 1_764_000_000_000)
    assert isinstance(event, StepCompleted)
    assert event.model_fields_set == set(StepCompleted.model_fields)
    sent = json.loads((EXAMPLES / "valid" / "step-completed.json").read_bytes())
    assert json.loads(example) | {"metadata": None} == sent | {"metadata": None}


def test_it_says_to_which_partition_its_example_goes() -> None:
    told = re.findall(
        r"`(examples/[\w/.-]+): partition (\d+), offset 0`.*?in a topic of (\d+) partitions", PAGE, re.DOTALL
    )
    assert [(file, int(size)) for file, _, size in told] == [
        ("examples/valid/step-completed.json", TOPIC_PARTITIONS)
    ]
    for file, partition, size in told:
        key = json.loads((FOLDER / file).read_bytes())["mcp_server_user_id"].encode()
        partitions = list(range(int(size)))
        assert DefaultPartitioner()(key, partitions, partitions) == int(partition)


def test_it_needs_nothing_but_its_folder() -> None:
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", PAGE) == [], "a copy of the folder has nothing to point to"
    named = re.findall(r"`((?:examples|clients|types)/[\w./-]*|[\w-]+\.(?:json|py))`", PAGE)
    assert len(named) > 10
    assert [name for name in named if not (FOLDER / name).exists()] == []


def test_no_sentence_is_on_both_pages() -> None:
    def sentences(page: str) -> set[str]:
        text = " ".join(page.split())
        return {part.strip() for part in re.split(r"(?<=[.:;])\s", text) if len(part) > 40}

    assert sentences(PAGE) & sentences(BEYOND) == set()
    assert "(../schemas/README.md)" in BEYOND


_EVENT_ID = r'"?event_id"?: "([0-9a-fA-F-]{36})"'


def what_it_says(event: str) -> str:
    """All of an event that decides what it is, however it is written."""
    return repr(sorted(re.findall(r'"?(\w+)"?:\s*("[^"]*"|\d+)', event.partition('"metadata"')[0])))


def test_no_two_different_events_on_the_pages_and_in_the_examples_have_one_id() -> None:
    """Whoever sends several of them is not refused for it, but by the example that shows just that."""
    root = FOLDER.parent
    pages = [root / "README.md", FOLDER / "README.md", *(root / "docs").glob("*.md")]
    pages += (root / "clients").glob("*/README.md")
    object_ = re.compile(r'\{[^{}]*"?event_id"?:[^{}]*(?:\{[^{}]*\}[^{}]*)?\}')
    events = [event for page in pages for event in object_.findall(page.read_text("utf-8"))]
    for folder in ("valid", "operator", "refused"):
        files = (EXAMPLES / folder).glob("*.json")
        events += [file.read_text("utf-8") for file in files if file.stem != "reused-event-id"]
    found: dict[str, set[str]] = {}
    for event in events:
        if id_ := re.search(_EVENT_ID, event):
            found.setdefault(id_[1].lower(), set()).add(what_it_says(event))
    assert len(found) > 20
    assert {id_: one for id_, one in found.items() if len(one) > 1} == {}
