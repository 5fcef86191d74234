"""The two lock files agree: what is tested is what ships."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    """The version of each package that a lock file holds, with the platforms that it is for."""
    text = (ROOT / name).read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^\\\n]+?) *\\$", text, re.MULTILINE))


def test_what_ships_is_what_is_tested() -> None:
    shipped, tested = pins("requirements.txt"), pins("requirements-dev.txt")
    assert shipped
    assert {name: tested.get(name) for name in shipped} == shipped, "run `make lock`"


def test_each_package_is_locked_by_hash() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        parts = re.split(r"^(?=[\w.-]+==)", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE)[1:]
        assert len(parts) >= len(pins(name)) > 0
        assert all("--hash=sha256:" in part for part in parts)
