"""Alerts and dashboard: the rules do what their tests say, and all of both is about metrics that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

import services.runtime.telemetry  # noqa: F401 - the metrics register themselves

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "ops" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "ops" / "grafana" / "stepstream.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def promtool(*args: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["promtool", *args], cwd=cwd, capture_output=True, text=True, check=False)


def samples() -> set[str]:
    """Names of samples that the services give."""
    names = {"up", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
    for family in REGISTRY.collect():
        if family.name.startswith("stepstream_"):
            kinds = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
            names |= {family.name + ending for ending in kinds.get(family.type, [""])}
    return names


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:stepstream|process)_[a-z_]+\b", text)) - {"stepstream_rules"}


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    done = promtool("test", "rules", "alerts_test.yml", cwd=ALERTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    names = re.findall(r"alert: (\w+)", ALERTS.read_text("utf-8"))
    tests = (ALERTS.parent / "alerts_test.yml").read_text("utf-8")
    assert names
    for name in names:
        assert re.search(rf"alertname: {name}\n\s+exp_alerts:", tests), name


def test_what_alerts_point_to_is_in_the_docs() -> None:
    docs = (ROOT / "docs" / "operating.md").read_text("utf-8")
    for part in re.findall(r'see \\"([^"\\]+)\\"', ALERTS.read_text("utf-8"), re.IGNORECASE):
        assert f"**{part}.**" in docs or f"**{part}** (" in docs or f"**{part}**" in docs, part


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    known = samples()
    assert (
        metrics_in(
            " ".join(re.findall(r"expr: (.*?)\n\s+(?:for|labels):", ALERTS.read_text("utf-8"), re.DOTALL))
        )
        <= known
    )
    assert metrics_in(" ".join(expressions())) <= known


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    shown = metrics_in(" ".join(expressions()))
    for family in REGISTRY.collect():
        if family.name.startswith("stepstream_"):
            assert any(name.startswith(family.name) for name in shown), family.name


@needs_promtool
def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{n}", "expr": expr.replace("$__rate_interval", "5m")}
        for n, expr in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    done = promtool("check", "rules", str(file), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
