"""The SBOM says under which licence each package ships."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_package_that_ships_has_its_licence(tmp_path: Path) -> None:
    rows = re.findall(
        r"^\| (\S+) \| (.+?) \| Python \|$", (ROOT / "docs/licences.md").read_text("utf-8"), re.MULTILINE
    )
    names = [name.replace("-", "_") for name, _ in rows]
    file = tmp_path / "sbom.json"
    file.write_text(json.dumps({"components": [{"name": n} for n in [*names, "of-another-system"]]}), "utf-8")
    subprocess.run([sys.executable, ROOT / ".ci/sbom.py", file], check=True)
    *ours, other = json.loads(file.read_text("utf-8"))["components"]
    stated = [one["licenses"][0] for one in ours]
    assert [s.get("expression") or s["license"]["id"] for s in stated] == [licence for _, licence in rows]
    assert "licenses" not in other
