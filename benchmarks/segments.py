"""What it costs to ask for a segment, to list segments, and to break figures down.

    python -m benchmarks.segments [--completions 1000000 10000000]

One walkthrough as in `benchmarks.reading`, ten steps a person, two thirds of the people with a start.
Sessions have one of five agents with one of three versions, and each first event one of six plans. Of each
size, the first time that the service is asked: seconds, and how many seconds processors worked for it, in
PostgreSQL and in the service. Only the latter compare where something else runs on the machine.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import httpx2
import psutil

from benchmarks.history import make
from services.analytics_api.keys import create
from services.devstack import down, up
from services.devstack.processes import free_port
from services.runtime.environment import load_settings

TOLD = """
set session_replication_role = replica;
insert into mcp_session_clients
select 'mss_' || n, 'agent ' || n % 5, (1 + n / 5 % 3)::text from generate_series(1, {people}) as n;
update walkthrough_starts set metadata = jsonb_build_object('plan', 'plan ' || abs(hashtext(id)) % 6);
update walkthrough_step_completions
set metadata = jsonb_build_object('plan', 'plan ' || abs(hashtext(id)) % 6)
where step_id = 'wts_0_0';
"""

QUESTIONS = {
    "variants of everybody": "sankey?start_at=wts_0_1",
    "variants of one agent, a fifth": "sankey?segment=agent:agent%201",
    "variants of all but one agent": "sankey?segment=not_agent:agent%201",
    "variants of a value of metadata, a sixth": "sankey?segment=metadata.plan:plan%201",
    "steps of another agent": "steps?segment=agent:agent%202",
    "segments by everything, of completion": "segments",
    "segments by everything, of a step": "segments?step=wts_0_6",
    "which keys of metadata there are": "breakdown",
    "funnel broken down by agent": "breakdown?by=agent&of=funnel",
    "the same again": "breakdown?by=agent&of=funnel",
    "summary broken down by agent": "breakdown?by=agent",
    "a page of the people of an agent": "journeys?segment=agent:agent%203",
}
#: As a table, which is read while it is sent, a thousand people at a time.
EXPORT = "journeys?segment=agent:agent%204"


def processor_seconds(postmaster: psutil.Process, service: psutil.Process) -> float:
    """What PostgreSQL and the service have worked so far, with the processes of PostgreSQL that ended."""
    ended = postmaster.cpu_times()
    total = ended.children_user + ended.children_system
    for process in (postmaster, service, *postmaster.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


async def measure(url: str, port: int, service: psutil.Process) -> dict[str, tuple[float, float]]:
    db = await asyncpg.connect(url, command_timeout=3600)
    key = await create(db, "org", "benchmark", None)
    backend = psutil.Process(await db.fetchval("select pg_backend_pid()"))
    postmaster = backend.parent()
    assert postmaster is not None
    headers = {"Authorization": f"Bearer {key.text}"}
    results = {}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=3600) as http:
        for _ in range(300):
            try:
                if (await http.get("/health/ready")).status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            await asyncio.sleep(0.1)

        async def take(name: str, path: str, accept: str = "application/json") -> None:
            before, began = processor_seconds(postmaster, service), time.perf_counter()
            response = await http.get(f"/v1/walkthroughs/wt_0/{path}", headers={"Accept": accept})
            assert response.status_code == 200, response.text[:500]
            took = time.perf_counter() - began
            results[name] = took, processor_seconds(postmaster, service) - before

        for name, path in QUESTIONS.items():
            await take(name, path)
        await take("an export of the people of an agent", EXPORT, "text/csv")
    await db.close()
    return results


def of_size(server_url: str, environment: dict[str, str], completions: int) -> dict[str, tuple[float, float]]:
    name = f"size_{completions}"
    url = server_url.rsplit("/", 1)[0] + "/" + name

    async def execute(to: str, *statements: str) -> None:
        db = await asyncpg.connect(to, command_timeout=3600)
        for statement in statements:
            await db.execute(statement)
        await db.close()

    asyncio.run(execute(server_url, f"create database {name}"))
    environment = {
        **environment,
        "STEPSTREAM_DATABASE_URL": url,
        "STEPSTREAM_API_STATEMENT_SECONDS": "1200",
        "STEPSTREAM_API_KEY_RATE": "",
    }
    run = [sys.executable, "-m", "services.operator_cli"]
    subprocess.run([*run, "migrate"], env=environment, check=True, capture_output=True)
    asyncio.run(make(url, completions, walkthroughs=1))
    asyncio.run(execute(url, TOLD.format(people=completions // 10)))
    subprocess.run([*run, "rebuild", "--execute"], env=environment, check=True, capture_output=True)
    asyncio.run(execute(url, "vacuum analyze"))
    port = free_port()
    service = subprocess.Popen([*run, "run", "analytics-api", "--port", str(port)], env=environment)
    try:
        return asyncio.run(measure(url, port, psutil.Process(service.pid)))
    finally:
        service.terminate()
        service.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segments")
    parser.add_argument("--completions", type=int, nargs="+", default=[1_000_000])
    sizes = parser.parse_args().completions
    folder = Path(tempfile.mkdtemp(prefix="segments-"))
    try:
        addresses = up(folder)
        os.environ |= addresses.environment()
        load_settings()
        results = [of_size(addresses.database_url, dict(os.environ), size) for size in sizes]
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{'seconds (of processors), of journeys':<44}" + "".join(f"{size // 10:>20,}" for size in sizes))
    for name in results[0]:
        cells = (f"{took:.2f} ({worked:.2f})" for took, worked in (result[name] for result in results))
        print(f"{name:<44}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
