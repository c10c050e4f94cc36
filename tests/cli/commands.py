"""Run a command in this process, and read its error."""

from __future__ import annotations

import re

import click
from click.testing import CliRunner, Result

from ilmconvert.cli import COMMANDS, main


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def fails(*args: str) -> str:
    """The one line of an error."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert not re.match(r"Error: unexpected [A-Z]\w*:", lines[0]), lines[0]
    check_options(lines[0], next((word for word in args if word in COMMANDS), "convert"))
    return lines[0]


def check_options(message: str, command: str) -> None:
    """Every option that a message names is one of the command, or of another one that it names first."""
    if "No such option" in message:
        return
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", message):
        before = message[: message.index(option)]
        others = [name for name in COMMANDS if f"ilmconvert {name} " in before]
        if "ilmconvert MODEL " in before:
            others.append("convert")
        assert any(option in options_of(name) for name in (command, *others)), (command, option, message)


def options_of(command: str) -> set[str]:
    """The names of all options of a command."""
    assert isinstance(main, click.Group)
    found = main.get_command(click.Context(main), command)
    assert found is not None
    return {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
