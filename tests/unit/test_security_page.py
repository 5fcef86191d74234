"""docs/security.md says of each table what ops/roles.sql grants: `make docs` writes it."""

import os
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
_GRANT = re.compile(r"^grant\s+([^;]*?)\s+on\s+(?!schema|database)([^;]*?)\s+to\s+([^;]*?);", re.MULTILINE)
_BETWEEN = re.compile(
    r"(?<=<!-- rights: written by `make docs` -->\n\n).*?(?=<!-- end of rights -->)", re.DOTALL
)


def rights() -> dict[tuple[str, str], list[str]]:
    """What each role may do with each table."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    text = (ROOT / "ops" / "roles.sql").read_text("utf-8")
    for what, tables, roles in _GRANT.findall(text.partition("-- --- tables ---")[2]):
        for table in re.split(r",\s*", tables):
            for role in re.split(r",\s*", roles):
                found[table.strip(), role.strip()] += re.findall(r"\w+(?: \([^)]*\))?", what)
    return found


def written() -> str:
    found = rights()
    roles = ["recorder", "aggregator", "relay", "mcp", "api", "operator"]
    lines = ["| table | " + " | ".join(f"`{role}`" for role in roles) + " |", "|---" * (len(roles) + 1) + "|"]
    for table in sorted({table for table, _ in found}):
        cells = (", ".join(found.get((table, f"stepstream_{role}"), ())) for role in roles)
        lines.append(f"| `{table}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n"


def test_the_page_says_what_each_role_may() -> None:
    assert len(rights()) > 50
    page = PAGE.read_text("utf-8")
    if os.environ.get("STEPSTREAM_WRITE_DOCS"):
        PAGE.write_text(_BETWEEN.sub(lambda _: written(), page), "utf-8")
    assert written() in PAGE.read_text("utf-8"), "run `make docs`"
