"""The README's commands do what it says."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    os.environ.get("STEPSTREAM_TEST_STACK", "embedded") != "embedded", reason="about the embedded stack"
)
def test_the_commands_by_hand_work_as_written(short_tmp: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"run by tests/integration/test_readme\.py -->\n```sh\n(.*?)```", text, re.DOTALL)
    # Somebody else may use these here; and ports of other tests' servers come from elsewhere.
    own = random.sample(range(10_000, 20_000), 5)
    for port, other in zip(("8081", "8082", "8083", "8084", "8085"), own, strict=True):
        assert port in block
        block = block.replace(port, str(other))
    (short_tmp / ".venv").symlink_to(Path(sys.prefix))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")}
    log = short_tmp / "log"
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-emo", "pipefail", "-c", block],
            cwd=short_tmp,
            env=clean,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            shell.wait(180)
        except subprocess.TimeoutExpired:
            for process in (*psutil.Process(shell.pid).children(recursive=True), shell):
                process.kill()
    said = log.read_text()
    # Where a command failed, what ran in the background still does.
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(short_tmp) and "run" in (process.info["cmdline"] or ()):
            process.kill()
    subprocess.run([".venv/bin/stepstream", "stack", "down", "--purge"], cwd=short_tmp, check=False)
    assert shell.returncode == 0, said
    assert said.count("exact: every cell") == 2


def test_every_file_that_the_docs_point_to_exists() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"
