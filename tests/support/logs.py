"""The real event logs, when they are beside the checkout, and what an independent program says of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.world import World

SHARED = Path(__file__).parents[3] / "shared"
NAMES = ("receipt", "helpdesk", "bpic2013_incidents")

needs_logs = pytest.mark.skipif(
    not (SHARED / "outside" / "eventlog.py").exists(),
    reason="the real event logs are not beside this checkout",
)


def path(name: str) -> str:
    return str(SHARED / "data" / "event-logs" / f"{name}.csv.gz")


def oracle() -> ModuleType:
    """eventlog.py: events, reference rows and expectations, by the standard library alone."""
    spec = importlib.util.spec_from_file_location("eventlog", SHARED / "outside" / "eventlog.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["eventlog"] = module
    spec.loader.exec_module(module)
    return module


async def copy_completions(world: World, events: list[dict[str, Any]]) -> None:
    """What the recorder would make of them; it is the reading that is tried here."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for e in sorted(events, key=lambda e: (e["completed_at"], e["event_id"])):
        best.setdefault((e["mcp_server_user_id"], e["step_id"]), e)
    columns = (
        "mcp_server_user_id",
        "walkthrough_id",
        "step_id",
        "mcp_server_id",
        "mcp_server_session_id",
        "completed_at",
    )
    await world.db.copy_records_to_table(
        "walkthrough_step_completions",
        columns=("id", *columns),
        records=[("wtsc_" + e["event_id"], *(e[c] for c in columns)) for e in best.values()],
    )
    await world.drain_marks()
