"""The documents of the kit, read by the tools that others read them with."""

import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from schemas.generate import EXAMPLES, FOLDER
from tests.clients.building import packages
from tests.kit.catalogue import HERE, TOOLS

NODE = HERE / "node"
REASONS: dict[str, dict[str, Any]] = json.loads((EXAMPLES / "invalid" / "reasons.json").read_text("utf-8"))
SEEN = {name: reason for name, reason in REASONS.items() if reason["seen_by_schema"]}
UNION = "event.schema.json"


def node(script: str, *arguments: str | Path) -> Any:
    """What a script prints."""
    packages(NODE, str(TOOLS))
    env = os.environ | {"PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["node", script, *arguments],
        cwd=NODE,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def ajv(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, list[dict[str, str]]]]:
    """By schema and name of the file, what Ajv finds."""
    found = node("schemas.mjs", folder, *files)
    return {schema: {Path(f).stem: e for f, e in by_file.items()} for schema, by_file in found.items()}


def test_ajv_compiles_each_schema_in_strict_mode_and_takes_the_events_of_its_type() -> None:
    files = [file for kind in ("valid", "operator", "refused") for file in (EXAMPLES / kind).glob("*.json")]
    types = {file.stem: json.loads(file.read_bytes())["type"] for file in files}
    found = ajv(FOLDER, files)
    assert found.keys() == {UNION, *(f"types/{kind}.schema.json" for kind in types.values())}
    for schema, by_file in found.items():
        kind = Path(schema).name.removesuffix(".schema.json")
        taken = {name for name, errors in by_file.items() if not errors}
        assert taken == {name for name, of in types.items() if schema == UNION or of == kind}, schema


def test_ajv_names_the_field_of_each_invalid_example_that_a_schema_can_refuse() -> None:
    found = ajv(FOLDER, [EXAMPLES / "invalid" / f"{name}.json" for name in SEEN])[UNION]
    unnamed = [
        name
        for name, reason in SEEN.items()
        if (reason["field"] or "") not in {e["field"] for e in found[name]}
    ]
    assert unnamed == []
    text = [error["message"] for error in found["time-is-text"]]
    assert text[0] == "data/completed_at must be integer"
    types = [error["message"] for error in found["unknown-type"]]
    assert types == ["data/type must be equal to one of the allowed values"]
    # Of an event with one fault nothing is said but that fault, and that its type's branch did not match.
    assert {error["field"] for error in found["time-in-seconds"]} == {"completed_at", ""}


def test_a_schema_that_ajv_does_not_take_is_found(tmp_path: Path) -> None:
    """As the union was, with a keyword of OpenAPI."""
    schema = json.loads((FOLDER / UNION).read_text("utf-8")) | {"discriminator": {"propertyName": "type"}}
    (tmp_path / "types").mkdir()
    (tmp_path / UNION).write_text(json.dumps(schema))
    with pytest.raises(AssertionError, match="discriminator"):
        ajv(tmp_path, [])


def test_the_asyncapi_document_is_taken_by_its_own_parser_without_a_warning(tmp_path: Path) -> None:
    document = FOLDER / "asyncapi.json"
    # Past errors and warnings it only recommends the newest version of AsyncAPI.
    assert [found for found in node("asyncapi.mjs", document) if found["severity"] < 2] == []
    broken = json.loads(document.read_text("utf-8"))
    del broken["servers"]["local"]["protocol"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(AssertionError, match="protocol"):
        node("asyncapi.mjs", tmp_path / "broken.json")


def test_the_asyncapi_document_has_every_example_under_its_type() -> None:
    document = json.loads((FOLDER / "asyncapi.json").read_text("utf-8"))
    files = [*(EXAMPLES / "valid").glob("*.json"), *(EXAMPLES / "operator").glob("*.json")]
    shown = {
        example["name"]: (message["name"], example["payload"])
        for message in document["components"]["messages"].values()
        for example in message.get("examples", [])
    }
    events = {file.stem: json.loads(file.read_bytes()) for file in files}
    assert shown == {name: (event["type"], event) for name, event in events.items()}
    assert document["servers"].keys() == {"local", "deployed"}


def test_no_pattern_is_of_one_language_alone() -> None:
    """Go knows no `\\u`, and no look-ahead."""
    text = "".join(file.read_text("utf-8") for file in (FOLDER / UNION, *(FOLDER / "types").glob("*.json")))
    assert re.findall(r'"pattern": "[^"]*(?:\\\\u|\(\?)', text) == []
