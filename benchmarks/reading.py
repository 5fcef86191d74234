"""How long a Sankey takes to read, however much there is to count.

    python -m benchmarks.reading [--completions 10000 1000000 10000000]

One walkthrough of 12 steps over two servers and 90 days, ten steps a person. Of each size: the Sankey by
HTTP from the service as a process, of all and of one server and a week; the window-function query over the
completions that says the same; and what reads the journeys, the first time and from what is kept then: a view
that changes paths, steps with medians, a summary, trends; a page of people; and what a finish rule with a
goal makes of it. The median of several, in ms.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from benchmarks.history import make
from services.analytics_api.keys import create
from services.devstack import down, up
from services.devstack.processes import free_port
from services.runtime.environment import load_settings

WINDOW = """
select position, from_step_id, step_id, count(*), sum(ms)
from (
  select
    row_number() over journey - 1 as position, lag(step_id) over journey as from_step_id, step_id,
    completed_at - lag(completed_at) over journey as ms
  from walkthrough_step_completions
  where walkthrough_id = 'wt_0'
  window journey as (partition by mcp_server_user_id order by completed_at, id collate "C")
) as done
group by 1, 2, 3
"""

QUESTIONS: list[tuple[str, str, int]] = [
    ("Sankey", "sankey", 30),
    ("Sankey, one server, a week", "sankey?server=srv_0&from=2026-02-01&to=2026-02-07", 30),
    ("Sankey from a step on, first time", "sankey?start_at=wts_0_2", 1),
    ("Sankey from a step on, another view", "sankey?start_at=wts_0_2&exclude=wts_0_5", 5),
    ("steps, with medians, first time", "steps", 1),
    ("Sankey with medians, first time", "sankey?times=true", 1),
    ("Sankey with medians, again", "sankey?times=true&min_share=0.01", 5),
    ("paths", "paths", 3),
    ("summary, first time", "", 1),
    ("trends, first time", "trends", 1),
    ("summary, again", "", 5),
    ("compare two servers, first time", "compare?server_a=srv_0&server_b=srv_1", 1),
    ("time to finish, first time", "time-to-finish", 1),
    ("a page of the people of a link", "journeys?position=3&step=wts_0_3&from_step=wts_0_2", 3),
]

#: With a goal, whether a journey is finished is read from the journeys.
OF_A_GOAL: list[tuple[str, str, int]] = [
    ("Sankey with a goal, first time", "walkthroughs/wt_0/sankey", 1),
    ("Sankey with a goal, again", "walkthroughs/wt_0/sankey", 10),
    ("trends with a goal, first time", "walkthroughs/wt_0/trends", 1),
    ("overview with a goal", "organization", 3),
]
GOAL = "insert into walkthrough_finish_rules (walkthrough_id, goal_step_ids) values ('wt_0', '{wts_0_8}')"


async def median_ms(times: int, ask: Callable[[], Awaitable[Any]]) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


async def measure(url: str, port: int) -> list[tuple[str, float]]:
    db = await asyncpg.connect(url, command_timeout=3600)
    key = await create(db, "org", "benchmark", None)
    results = [("window functions over the completions", await median_ms(3, lambda: db.fetch(WINDOW)))]
    cells = await db.fetchval("select count(*) from sankey_transitions")
    results.append(("(cells)", float(cells)))
    headers = {"Authorization": f"Bearer {key.text}"}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=600) as http:
        for _ in range(200):
            try:
                if (await http.get("/health/ready")).status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.1)

        async def ask(path: str) -> None:
            response = await http.get(f"/v1/{path}")
            assert response.status_code == 200, response.text

        await ask("walkthroughs/wt_0/sankey")
        for name, path, times in QUESTIONS:
            whole = f"walkthroughs/wt_0{'/' if path else ''}{path}"
            results.append((name, await median_ms(times, lambda path=whole: ask(path))))
        await db.execute(GOAL)
        for name, path, times in OF_A_GOAL:
            results.append((name, await median_ms(times, lambda path=path: ask(path))))
    await db.close()
    return results


def of_size(server_url: str, environment: dict[str, str], completions: int) -> list[tuple[str, float]]:
    name = f"size_{completions}"

    async def create_database() -> None:
        admin = await asyncpg.connect(server_url)
        await admin.execute(f"create database {name}")
        await admin.close()

    asyncio.run(create_database())
    url = server_url.rsplit("/", 1)[0] + "/" + name
    environment = {
        **environment,
        "STEPSTREAM_DATABASE_URL": url,
        "STEPSTREAM_API_STATEMENT_SECONDS": "600",
        "STEPSTREAM_API_KEY_RATE": "",
    }
    run = [sys.executable, "-m", "services.operator_cli"]
    subprocess.run([*run, "migrate"], env=environment, check=True, capture_output=True)
    asyncio.run(make(url, completions, walkthroughs=1))
    subprocess.run([*run, "rebuild", "--execute"], env=environment, check=True, capture_output=True)

    async def settle() -> None:
        db = await asyncpg.connect(url, command_timeout=3600)
        await db.execute("vacuum analyze")
        await db.close()

    asyncio.run(settle())
    port = free_port()
    service = subprocess.Popen([*run, "run", "analytics-api", "--port", str(port)], env=environment)
    try:
        return asyncio.run(measure(url, port))
    finally:
        service.terminate()
        service.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading")
    parser.add_argument("--completions", type=int, nargs="+", default=[10_000, 1_000_000])
    sizes = parser.parse_args().completions
    folder = Path(tempfile.mkdtemp(prefix="reading-"))
    try:
        addresses = up(folder)
        os.environ |= addresses.environment()
        load_settings()
        results = [of_size(addresses.database_url, dict(os.environ), size) for size in sizes]
        print(f"{'completions':<40}" + "".join(f"{size:>14,}" for size in sizes))
        for i, (name, _) in enumerate(results[0]):
            print(f"{name:<40}" + "".join(f"{result[i][1]:>14,.1f}" for result in results))
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
