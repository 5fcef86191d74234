"""Writes the generated files, or checks that they are what the models say.

python -m schemas.generate [--check]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from jsonschema import Draft202012Validator

from schemas.documents import asyncapi, json_schema, partition_vectors
from schemas.events import MAX_TIME_MS, EventError, decode

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER / "examples"
GENERATED = {
    "event.schema.json": json_schema,
    "asyncapi.json": asyncapi,
    "partition-vectors.json": partition_vectors,
}
#: Where the Python client, which installs without the server, has its copy of these modules.
PYTHON_CLIENT = FOLDER.parent / "clients" / "python" / "stepstream_client" / "contract"
COPIED = ("events.py", "causes.py", "advice.py")


def main() -> None:
    """Writes, or with --check compares, and exits 1 when something is not as the models say."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is stale")
    check = parser.parse_args().check
    problems = [] if not check else list(_stale())
    if not check:
        for name, make in GENERATED.items():
            (FOLDER / name).write_text(_text(make()), "utf-8")
        for name in COPIED:
            (PYTHON_CLIENT / name).write_text(copied(name), "utf-8")
    problems += check_examples()
    for problem in problems:
        print(problem, file=sys.stderr)  # noqa: T201 - what the command says
    sys.exit(1 if problems else 0)


def _text(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _stale() -> Iterator[str]:
    for name, make in GENERATED.items():
        file = FOLDER / name
        if not file.exists() or file.read_text("utf-8") != _text(make()):
            yield f"schemas/{name} is not what the models say: run `make generate`, and look at what changed"
    for name in COPIED:
        file = PYTHON_CLIENT / name
        if not file.exists() or file.read_text("utf-8") != copied(name):
            yield f"{file.relative_to(FOLDER.parent)} is not schemas/{name}: run `make generate`"


def copied(name: str) -> str:
    """A module of the contract as the Python client has it."""
    text = (FOLDER / name).read_text("utf-8").replace("from schemas", "from stepstream_client.contract")
    return f"# Written by `make generate` from schemas/{name}.\n{text}"


def check_examples() -> Iterator[str]:
    """Holds the examples against the models and against the published schema."""
    validator = Draft202012Validator(json_schema(), format_checker=Draft202012Validator.FORMAT_CHECKER)
    for file in sorted((*EXAMPLES.glob("valid/*.json"), *EXAMPLES.glob("operator/*.json"))):
        value = file.read_bytes()
        try:
            decode(value, MAX_TIME_MS)
        except EventError as error:
            yield f"{file.name} is among the valid examples, but: {error}"
        for problem in validator.iter_errors(json.loads(value)):
            yield f"{file.name} is among the valid examples, but the published schema says: {problem.message}"
    reasons = json.loads((FOLDER / "examples" / "invalid" / "reasons.json").read_text("utf-8"))
    files = {f.stem: f for f in (FOLDER / "examples" / "invalid").glob("*.json") if f.stem != "reasons"}
    if files.keys() != reasons.keys():
        yield f"reasons.json and the invalid examples differ: {sorted(files.keys() ^ reasons.keys())}"
    for name, reason in reasons.items():
        yield from _check_invalid(name, files[name].read_bytes(), reason, validator)


def _check_invalid(
    name: str, value: bytes, reason: dict[str, str], validator: Draft202012Validator
) -> Iterator[str]:
    try:
        decode(value, int(reason.get("now_ms", MAX_TIME_MS)))
    except EventError as error:
        if error.rejection != reason["class"] or reason["message"] not in str(error):
            yield f"{name}: expected {reason}, but it is {error.rejection}: {error}"
    else:
        yield f"{name} is among the invalid examples, but is read without complaint"
    if reason["seen_by_schema"] and validator.is_valid(json.loads(value)):
        yield f"{name}: the published schema accepts it"


if __name__ == "__main__":
    main()
