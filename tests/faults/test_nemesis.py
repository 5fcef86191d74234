"""The short form of `make nemesis`: a few rounds that are cheap and decisive, and proof that it can fail."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.nemesis.deployment import Bench, Deployment
from tests.nemesis.faults import FAULTS
from tests.nemesis.plan import draw
from tests.nemesis.rounds import Verdict, play

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        os.environ.get("STEPSTREAM_TEST_STACK", "embedded") != "embedded",
        reason="it breaks servers of its own",
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


def told(verdict: Verdict) -> str:
    """What a failing test shows."""
    return "\n".join([*verdict.timeline, *map(str, verdict.findings[:20]), f"logs: {verdict.logs}"])


async def take_one_away(deployment: Deployment) -> None:
    """A completion vanishes, as if its event had never been read."""
    await deployment.sql(
        "delete from walkthrough_step_completions where id in (select max(id) from walkthrough_step_completions)"
    )


async def test_a_round_is_exact_and_one_completion_taken_away_is_found_with_its_record(bench: Bench) -> None:
    verdict = await play(bench, draw(3, 0, FAULTS, ["kill-recorder+half-open"]), afterwards=take_one_away)
    assert verdict.findings == [], told(verdict)
    assert verdict.counts["acknowledged"] > 500
    assert verdict.counts["answers called current"] > 0
    lost = [finding for finding in verdict.afterwards if finding.kind == "lost"]
    assert len(lost) == 1
    assert lost[0].copies


@pytest.mark.parametrize(
    ("faults", "seed"),
    [("database-killed+kill-aggregator", 6), ("promote-standby-then-quiet", 1)],
)
async def test_a_round_is_exact(bench: Bench, faults: str, seed: int) -> None:
    verdict = await play(bench, draw(seed, 0, FAULTS, [faults]))
    assert verdict.findings == [], told(verdict)
