"""docs/agents.md says which clients of MCP are tried, as the catalogue has them: `make docs` writes it."""

import os
import re
from pathlib import Path

from tests.clients.agent_catalogue import npm_version, table

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
_BETWEEN = re.compile(
    r"(?<=<!-- clients: written by `make docs` -->\n\n).*?(?=<!-- end of clients -->)", re.DOTALL
)


def test_the_page_has_the_clients_of_the_catalogue() -> None:
    page = PAGE.read_text("utf-8")
    if os.environ.get("STEPSTREAM_WRITE_DOCS"):
        PAGE.write_text(_BETWEEN.sub(lambda _: table(), page), "utf-8")
    assert table() in PAGE.read_text("utf-8"), "run `make docs`"


def test_the_page_names_what_they_are_tried_with() -> None:
    suite = "@modelcontextprotocol/conformance"
    page = " ".join(PAGE.read_text("utf-8").split())
    assert f"(`{suite}` {npm_version(suite)}," in page
    assert f"(`oidc-provider` {npm_version('oidc-provider')}," in page
