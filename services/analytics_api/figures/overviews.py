"""All walkthroughs of an organization in a few figures each."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.analytics_api.figures.common import share
from services.analytics_api.models import OverviewRow, OverviewWalkthrough
from services.runtime.finish_rules import said_of


def overview_of(rows: Sequence[Mapping[str, Any]], servers: dict[str, str]) -> list[OverviewWalkthrough]:
    """Rows by walkthrough and server as walkthroughs, each with the servers that are known."""
    by_walkthrough: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_walkthrough.setdefault(row["id"], []).append(row)
    return [
        OverviewWalkthrough(
            **_overview_row(of, None, None),
            servers=[
                OverviewRow(**_overview_row([row], row["mcp_server_id"], servers.get(row["mcp_server_id"])))
                for row in of
                if row["mcp_server_id"] in servers
            ],
        )
        for of in by_walkthrough.values()
    ]


def _overview_row(rows: Sequence[Mapping[str, Any]], server: str | None, name: str | None) -> dict[str, Any]:
    sums = {
        key: sum(row[key] for row in rows) for key in ("started", "finished", "in_progress", "steps_done")
    }
    one, started, finished = rows[0], sums["started"], sums["finished"]
    return {
        "walkthrough_id": one["id"],
        "title": one["title"],
        "type": one["type"],
        "status": one["status"],
        "steps": one["steps"],
        "finished_means": one["finished_means"]
        or said_of(one["optional"], one["goal_titles"], one["end_titles"]),
        "mcp_server_id": server,
        "server": name,
        "started": started,
        "finished": finished,
        "in_progress": sums["in_progress"],
        "dropped": started - finished - sums["in_progress"],
        "completion_rate": share(finished, started),
        "average_progress": share(sums["steps_done"], started * one["steps"]),
        "last_active_on": max((r["last_active_on"] for r in rows if r["last_active_on"]), default=None),
    }
