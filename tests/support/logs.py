"""The real event logs, when they are beside the checkout, and what an independent program says of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
