"""Every fault there is, by name."""

from tests.nemesis.faults import database, kafka, network, processes
from tests.nemesis.faults.base import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault for fault in (*database.FAULTS, *kafka.FAULTS, *network.FAULTS, *processes.FAULTS)
}

__all__ = ["FAULTS", "Fault"]
