"""`stepstream demo`: the whole pipeline in a minute."""

from pathlib import Path
from typing import Annotated

import typer

from services.operator_cli.stack import StackDir, stack_errors
from services.runtime.errors import UsageError

app = typer.Typer()


@app.command()
def demo(
    people: Annotated[int, typer.Option(min=1, max=50_000, help="How many people to simulate.")] = 200,
    folder: StackDir = Path(".stepstream-demo"),
    keep: Annotated[bool, typer.Option(help="Leave the stack and its data for a look around.")] = False,
    running: Annotated[
        bool, typer.Option("--running", help="Use the services that run already, as the settings say.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="With --running: nobody comes where the demo has been already.")
    ] = False,
) -> None:
    """See the whole pipeline in a minute: real servers and services, simulated people and agents.

    It ends with the address of the dashboard. In a terminal it stays up until Ctrl-C.
    """
    from services.demo import run_demo, run_on_running_services

    if running:
        run_on_running_services(people, once=once)
        return
    if once:
        raise UsageError("--once goes with --running")
    with stack_errors():
        run_demo(folder, people, keep=keep)
