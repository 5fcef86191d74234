"""Every row of docs/reliability.md names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what ")]


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_are_rows() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:60] for row in ROWS])
def test_its_test_exists(row: str) -> None:
    last = row.rstrip(" |").rsplit("|", 1)[1]
    named = re.findall(r"`([^`]+)`", last)
    assert named
    for name in named:
        if name.startswith("make "):
            assert re.search(
                rf"^{name.removeprefix('make ')}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
            )
            continue
        file, _, function = name.partition("::")
        path = ROOT / "tests" / (file if "/" in file else f"faults/{file}")
        assert function in functions(path), name
