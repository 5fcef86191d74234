"""Writes the generated files, or checks that they are what the models say.

python -m schemas.generate [--check]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as JsonSchemaError

from schemas.documents import asyncapi, json_schema, partition_vectors, schemas_of_types
from schemas.events import MAX_TIME_MS, EventError, decode

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER / "examples"
#: Where the Python client, which installs without the server, has its copy of these modules.
PYTHON_CLIENT = FOLDER.parent / "clients" / "python" / "stepstream_client" / "contract"
COPIED = ("events.py", "causes.py", "advice.py", "names.py")


def documents() -> dict[str, Any]:
    """Each generated file, by its path in this folder."""
    return {
        "event.schema.json": json_schema(),
        **{f"types/{name}.schema.json": schema for name, schema in schemas_of_types().items()},
        "asyncapi.json": asyncapi(examples()),
        "partition-vectors.json": partition_vectors(),
    }


def examples() -> dict[str, dict[str, Any]]:
    """The events of examples/valid and examples/operator, by the name of their files."""
    files = (*EXAMPLES.glob("valid/*.json"), *EXAMPLES.glob("operator/*.json"))
    return {file.stem: json.loads(file.read_bytes()) for file in sorted(files, key=lambda file: file.stem)}


def main() -> None:
    """Writes, or with --check compares, and exits 1 when something is not as the models say."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is stale")
    check = parser.parse_args().check
    problems = list(_stale()) if check else []
    if not check:
        for name, document in documents().items():
            (FOLDER / name).parent.mkdir(exist_ok=True)
            (FOLDER / name).write_text(_text(document), "utf-8")
        for name in COPIED:
            (PYTHON_CLIENT / name).write_text(copied(name), "utf-8")
    problems += check_examples()
    for problem in problems:
        print(problem, file=sys.stderr)  # noqa: T201 - what the command says
    sys.exit(1 if problems else 0)


def _text(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _stale() -> Iterator[str]:
    made = documents()
    for name, document in made.items():
        file = FOLDER / name
        if not file.exists() or file.read_text("utf-8") != _text(document):
            yield f"schemas/{name} is not what the models say: run `make generate`, and look at what changed"
    for file in sorted((FOLDER / "types").glob("*.json")):
        if f"types/{file.name}" not in made:
            yield f"schemas/types/{file.name} is of a type that the models do not have: remove it"
    for name in COPIED:
        file = PYTHON_CLIENT / name
        if not file.exists() or file.read_text("utf-8") != copied(name):
            yield f"{file.relative_to(FOLDER.parent)} is not schemas/{name}: run `make generate`"


def copied(name: str) -> str:
    """A module of the contract as the Python client has it."""
    text = (FOLDER / name).read_text("utf-8").replace("from schemas", "from stepstream_client.contract")
    return f"# Written by `make generate` from schemas/{name}.\n{text}"


def check_examples() -> Iterator[str]:
    """Holds the examples against the models and against the published schemas."""
    validator = Draft202012Validator(json_schema())
    by_type = {name: Draft202012Validator(schema) for name, schema in schemas_of_types().items()}
    for file in sorted((*EXAMPLES.glob("valid/*.json"), *EXAMPLES.glob("operator/*.json"))):
        value = file.read_bytes()
        try:
            decode(value, MAX_TIME_MS)
        except EventError as error:
            yield f"{file.name} is among the valid examples, but: {error}"
        event = json.loads(value)
        for problem in (*validator.iter_errors(event), *by_type[event["type"]].iter_errors(event)):
            yield f"{file.name} is among the valid examples, but the published schema says: {problem.message}"
    reasons = json.loads((FOLDER / "examples" / "invalid" / "reasons.json").read_text("utf-8"))
    files = {f.stem: f for f in (FOLDER / "examples" / "invalid").glob("*.json") if f.stem != "reasons"}
    if files.keys() != reasons.keys():
        yield f"reasons.json and the invalid examples differ: {sorted(files.keys() ^ reasons.keys())}"
    for name, reason in reasons.items():
        yield from _check_invalid(name, files[name].read_bytes(), reason, validator)


def _check_invalid(
    name: str, value: bytes, reason: dict[str, Any], validator: Draft202012Validator
) -> Iterator[str]:
    try:
        decode(value, reason.get("now_ms", MAX_TIME_MS))
    except EventError as error:
        if error.rejection != reason["class"] or reason["message"] not in str(error):
            yield f"{name}: expected {reason}, but it is {error.rejection}: {error}"
    else:
        yield f"{name} is among the invalid examples, but is read without complaint"
    if not reason["seen_by_schema"]:
        return
    errors = list(validator.iter_errors(json.loads(value)))
    if not errors:
        yield f"{name}: the published schema accepts it"
    elif reason["field"] and not any(_names(error, reason["field"]) for error in errors):
        yield f"{name}: the published schema does not say that it is {reason['field']}, but {errors}"


def _names(error: JsonSchemaError, field: str) -> bool:
    """Whether an error is about a field: what is in it, or that it is missing."""
    return error.path[0] == field if error.path else f"'{field}' is a required property" in error.message


if __name__ == "__main__":
    main()
