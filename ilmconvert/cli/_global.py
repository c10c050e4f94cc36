"""Options that every command has: ``--help``, and before or after its name ``--quiet``, ``--verbose``, ``--config``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, TypeVar

import click

from ilmconvert.cli import _config

_VERBOSITY = "ilmconvert.verbosity"
_CONFIG = "ilmconvert.config"

CommandType = TypeVar("CommandType", bound=click.Command)


def verbosity() -> int:
    """-1 after ``--quiet``, 1 after ``--verbose``, else 0."""
    context = click.get_current_context(silent=True)
    return 0 if context is None else int(context.meta.get(_VERBOSITY, 0))


def speaks() -> bool:
    """Whether to tell on stderr what is going on: unless ``--quiet``."""
    return verbosity() >= 0


def shows_progress() -> bool:
    """Whether to tell it by something that moves: on a terminal, and not between the lines of ``--verbose``."""
    return sys.stderr.isatty() and verbosity() == 0


def with_global_options(command: CommandType) -> CommandType:
    """The command with these options and ``--help``, once."""
    if not any(parameter.name == "quiet" for parameter in command.params):
        command.params.extend([*global_options(), help_option()])
    return command


def help_option() -> click.Option:
    """``-h`` and ``--help``. click would take the names from the first context and keep them for all others."""
    return click.Option(
        ["-h", "--help"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_help,
        help="Show this message and exit.",
    )


def _show_help(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(context.get_help(), color=context.color)
        context.exit()


def global_options() -> list[click.Option]:
    """New options; none of them is handed to the command's function."""
    shared: dict[str, Any] = {"is_eager": True, "expose_value": False}
    flag = shared | {"is_flag": True}
    config = click.Path(path_type=Path, dir_okay=False)
    return [
        click.Option(
            ["-q", "--quiet"], callback=_quiet, help="Print results and errors only, no progress or warnings.", **flag
        ),
        click.Option(
            ["-v", "--verbose"],
            callback=_verbose,
            help="Print log messages of all libraries and tracebacks, too.",
            **flag,
        ),
        click.Option(
            ["--config"],
            type=config,
            metavar="FILE.yaml",
            callback=_configure,
            help="Read options from a file.",
            **shared,
        ),
    ]


def _quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        _set(context, -1)


def _verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        _set(context, 1)
        _log_to_stderr(context.find_root())


def _set(context: click.Context, level: int) -> None:
    if context.meta.get(_VERBOSITY, level) != level:
        raise click.UsageError("--quiet and --verbose exclude each other", context)
    context.meta[_VERBOSITY] = level


def _log_to_stderr(root: click.Context) -> None:
    """Log records of all libraries on stderr until the program ends."""
    logger = logging.getLogger()
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    @root.call_on_close
    def restore() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _configure(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.meta[_CONFIG] = value
    path = context.meta.get(_CONFIG)
    if path is not None and context.parent is not None and not context.resilient_parsing:
        context.default_map = _config.options_for(path, context)
