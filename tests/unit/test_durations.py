"""Durations of the command line: none is less than nothing, and what is done again is done after some time."""

from typing import Any

import click
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from services.operator_cli.app import app
from services.operator_cli.options import parse_duration, parse_some_time


def durations(command: Any, path: tuple[str, ...] = ()) -> list[list[str]]:
    """Each option of each command that takes a duration, as arguments of the command line."""
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        return [found for name, sub in command.commands.items() for found in durations(sub, (*path, name))]
    return [
        [*path, option.opts[0]]
        for option in command.params
        if "DURATION" in (option.metavar or "") and option.opts[0].startswith("--")
    ]


OPTIONS = durations(get_command(app))


def test_there_are_some() -> None:
    assert ["verify", "--wait"] in OPTIONS


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_an_option_takes_no_time_that_is_less_than_nothing(
    option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("STEPSTREAM_DATABASE_URL", "postgresql://u@127.0.0.1:1/x")
    required = ["--organization", "o"] if option[0] == "keys" else []
    done = CliRunner().invoke(app, [*option, "-1s", *required])
    assert done.exit_code == 2
    assert "`-1s` is less than nothing" in done.output


@pytest.mark.parametrize("text", ["-1s", "-0.5s", "-1h30m", "-1us"])
def test_a_duration_is_not_less_than_nothing(text: str) -> None:
    for parse in (parse_duration, parse_some_time):
        with pytest.raises(typer.BadParameter, match="less than nothing"):
            parse(text)


def test_what_is_done_again_is_done_after_some_time() -> None:
    assert parse_duration("0s") == 0
    assert parse_some_time("1m30s") == 90
    with pytest.raises(typer.BadParameter, match="lasts no time"):
        parse_some_time("0s")
