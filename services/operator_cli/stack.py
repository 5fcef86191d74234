"""`stepstream stack`: a real Kafka and PostgreSQL on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from services.operator_cli.options import console
from services.runtime.errors import StepstreamError, UsageError

app = typer.Typer(help="A real Kafka and PostgreSQL on this machine, without Docker.", no_args_is_help=True)

StackDir = Annotated[
    Path, typer.Option("--dir", help="Where the stack keeps its data; two folders are two stacks.")
]


@app.command("up")
def stack_up(folder: StackDir = Path(".stepstream")) -> None:
    """Start what does not run yet and wait until it answers; the data of last time are kept."""
    with stack_errors():
        from services.devstack import up

        addresses = up(folder, lambda text: console.print(f"[dim]{text}[/]"))
    console.print(
        f"Kafka at {addresses.kafka_bootstrap_servers}, PostgreSQL at {addresses.database_url}",
        soft_wrap=True,
    )
    console.print(
        f'[dim]next: eval "$(stepstream stack env --dir {folder})" && stepstream migrate[/]', soft_wrap=True
    )


@app.command("env")
def stack_env(folder: StackDir = Path(".stepstream")) -> None:
    """Print the settings that lead to the running stack, as export lines for a shell."""
    import shlex

    with stack_errors():
        from services.devstack import status

        addresses = status(folder)
    for name, value in addresses.environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command("down")
def stack_down(
    folder: StackDir = Path(".stepstream"),
    purge: Annotated[bool, typer.Option(help="Remove its data too.")] = False,
) -> None:
    """Stop the stack; its data stay."""
    with stack_errors():
        from services.devstack import down

        ran = down(folder, purge=purge)
    console.print("stopped" if ran else "nothing was running")


class stack_errors:  # noqa: N801 - reads as a block
    """Turns the stack's errors into ours."""

    def __enter__(self) -> None:
        try:
            import services.devstack  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"the embedded stack is not installed ({error.name} is missing): it is the extra `devstack`, "
                "as in `uv tool install 'FILE.whl[devstack]'`"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from services.devstack import StackError

        if isinstance(error, StackError | OSError):
            raise StepstreamError(str(error)) from error
