"""The README's commands do what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.devstack.processes import free_port

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("embedded-stack")]

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    os.environ.get("STEPSTREAM_TEST_STACK", "embedded") != "embedded", reason="about the embedded stack"
)
def test_the_commands_by_hand_work_as_written(short_tmp: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"run by tests/integration/test_readme\.py -->\n```sh\n(.*?)```", text, re.DOTALL)
    for port in ("8081", "8082", "8083", "8084"):  # somebody else may use these here
        assert port in block
        block = block.replace(port, str(free_port()))
    (short_tmp / ".venv").symlink_to(Path(sys.prefix))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")}
    done = subprocess.run(
        ["bash", "-emo", "pipefail", "-c", block],
        cwd=short_tmp,
        env=clean,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    subprocess.run([".venv/bin/stepstream", "stack", "down", "--purge"], cwd=short_tmp, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("exact: every cell") == 2


def test_every_file_that_the_docs_point_to_exists() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("services/*/README.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"
