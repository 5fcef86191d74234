"""The command line: a file for each command, which imports what it needs when it runs: help is quick."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, TextIO, cast

import typer
from rich.markup import escape

from services.operator_cli import (
    backfill,
    check_events,
    completions,
    contract_examples,
    demo,
    dlq,
    erase,
    exchange,
    gone,
    interrupts,
    keys,
    lag,
    migrate,
    move_cluster,
    organizations,
    produce,
    rebuild,
    register,
    replay,
    run,
    servers,
    skip,
    stack,
    status,
    verify,
    walkthroughs,
)
from services.operator_cli.options import console
from services.runtime.errors import StepstreamError

app = typer.Typer(
    name="stepstream",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (
    migrate,
    run,
    check_events,
    produce,
    contract_examples,
    exchange,
    demo,
    status,
    lag,
    replay,
    skip,
    move_cluster,
):
    app.add_typer(command.app)
for command in (verify, rebuild, erase, backfill):
    app.add_typer(command.app)
_GROUPS = {
    "organizations": organizations,
    "servers": servers,
    "walkthroughs": walkthroughs,
    "stack": stack,
    "dlq": dlq,
    "gone": gone,
    "keys": keys,
    "completions": completions,
    "register": register,
}
for name, group in _GROUPS.items():
    app.add_typer(group.app, name=name)


def _show_version(wanted: bool) -> None:
    if wanted:
        from services.runtime.version import VERSION

        typer.echo(f"stepstream {VERSION}")
        raise typer.Exit


#: These end by a line until they send, and keep to it until they say themselves that they do.
_SENDING = {"produce", "backfill"}


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show which release this is.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Exact Sankey flows of walkthroughs, from Kafka into PostgreSQL."""
    if context.invoked_subcommand not in _SENDING:
        interrupts.end()


def report_error(error: StepstreamError) -> int:
    """Says what went wrong, and returns the exit code for it."""
    console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    return error.exit_code


def main() -> None:
    """Runs a command; an error that a person is meant to read ends with its own exit code."""
    _open_what_is_closed()
    try:
        app()
    except StepstreamError as error:
        sys.exit(report_error(error))
    except OSError as error:
        if (problem := _problem_of_writing(error)) is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in buffers would fail again
        sys.exit(report_error(StepstreamError(problem)))
    except SystemExit as ended:
        if ended.code == interrupts.INTERRUPTED:  # so typer ends a command that Ctrl-C has ended
            console.print("interrupted")
        raise


def _open_what_is_closed() -> None:
    """Standard files that whoever starts us has closed: no other file gets their numbers.

    Standard output is then one that cannot be written to: only a command that has something to say fails.
    """
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("r")
    sys.stderr = sys.stderr or _null("w")


def _null(mode: str) -> TextIO:
    return cast("TextIO", Path(os.devnull).open(mode, encoding="utf-8"))


def _problem_of_writing(error: OSError) -> str | None:
    is_refused = isinstance(error, io.UnsupportedOperation) or error.errno == errno.EBADF
    if is_refused and not sys.stdout.writable():
        return "cannot write: standard output is closed"
    is_writing = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
    return f"cannot write: {error.strerror}" if is_writing else None
