"""Run a command in this process, and read its error."""

from __future__ import annotations

from click.testing import CliRunner, Result

from ilmconvert.cli import main


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
    return lines[0]
