"""What the commands share: warnings, progress and options."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ilmconvert._constants import INITS, TARGETS
from ilmconvert.cli._complete import models
from ilmconvert.cli._global import verbosity
from ilmconvert.cli._progress import progress as progress
from ilmconvert.cli._progress import to_stderr
from ilmconvert.errors import one_line

Command = TypeVar("Command", bound=Callable[..., Any])


def print_json(data: dict[str, Any]) -> None:
    """The one JSON object of ``--json``, on stdout. NaN and infinities, which JSON lacks, become null."""
    click.echo(json.dumps(_finite(data), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def warn(message: object, *, loud: bool = False) -> None:
    """One line on stderr; after ``--quiet`` only a loud one."""
    if verbosity() < 0 and not loud:
        return
    to_stderr(click.style(f"Warning: {one_line(message)}", fg="red" if loud else "yellow", bold=loud))


class _OnStderr(logging.Handler):
    """A line for each record; ``--verbose`` has its own way."""

    def emit(self, record: logging.LogRecord) -> None:
        if verbosity() == 0:
            to_stderr(one_line(record.getMessage()))


@contextmanager
def library_warnings() -> Iterator[None]:
    """What this library warns of and logs, one line each on stderr; that of others only after ``--verbose``."""
    package = str(Path(__file__).parent.parent) + os.sep

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        if filename.startswith(package) or verbosity() > 0:
            warn(message)

    logger, handler = logging.getLogger("ilmconvert"), _OnStderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def model_args(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs as a dict; a VALUE that isn't JSON is a string."""
    result = {}
    for pair in values:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE, as in num_classes=10")
        try:
            result[key] = json.loads(text)
        except ValueError:
            result[key] = text
    return result


def model_argument(command: Command) -> Command:
    """``MODEL``, by name."""
    return click.argument("model", shell_complete=models)(command)


def conversion_options(command: Command) -> Command:
    """The options that ``convert`` and ``plan`` have in common."""
    positive = click.IntRange(min=1)
    options = [
        click.option(
            "--to",
            type=click.Choice(tuple(TARGETS)),
            default="ilm_gn",
            show_default=True,
            help="Target layer: ILM Norm of 32 groups, of one, or of one per channel (ilm_gn, ilm_ln, ilm_in; exact), "
            "or stock nn.GroupNorm with these groups (gn, ln, in; close to the source, not equal).",
        ),
        click.option(
            "--init",
            type=click.Choice(INITS),
            help="Initial values. identity: what the source computes; moments: the paper's layer alone, "
            "initialised from running statistics, close to it.  [default: identity; moments for gn, ln, in]",
        ),
        click.option(
            "--include", multiple=True, metavar="PATTERN", help="Convert only layers whose name matches. Repeatable."
        ),
        click.option(
            "--exclude", multiple=True, metavar="PATTERN", help="Leave out layers whose name matches. Repeatable."
        ),
        click.option("--first-only", is_flag=True, help="Convert only the first norm layer; the others stay."),
        click.option(
            "--num-groups", type=positive, metavar="N", help="Largest number of groups of ilm_gn.  [default: 32]"
        ),
        click.option(
            "--key-group-size",
            type=positive,
            metavar="N",
            help="Number of channels whose mean and variance the auto-encoder gets (a key group).  [default: 16]",
        ),
        click.option(
            "--reduction",
            type=positive,
            metavar="N",
            help="Number of key groups for each hidden unit of the auto-encoder.  [default: 16]",
        ),
        click.option(
            "--restore-bound",
            type=click.FloatRange(min=0, min_open=True),
            metavar="T",
            help="Soft bound of the restoring path, which makes identity exact, in standard deviations of the running "
            "statistics.  [default: none]",
        ),
        model_arg_option("the model"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_SETTINGS = "to|init|num_groups|key_group_size|reduction|restore_bound"


def in_options(message: object) -> str:
    """What the library says of the settings of a conversion, with the names that they have here.

    >>> in_options("restore_bound needs init='identity': other layers have no restoring path")
    '--restore-bound needs --init identity: other layers have no restoring path'
    """
    text = re.sub(rf"\b({_SETTINGS})='?([\w.+-]+)'?", r"--\1 \2", str(message))
    text = re.sub(r"\b(?<!--)(num_groups|key_group_size|restore_bound)\b", r"--\1", text)
    return re.sub(r"--\w+", lambda found: found[0].replace("_", "-"), text)


def given(**settings: Any) -> dict[str, Any]:
    """Arguments of ``ilmconvert.convert`` from those options that were given."""
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return {key: value for key, value in kept.items() if value not in (None, [])}


#: Of corruptions, where ``--severity`` isn't given.
SEVERITIES = (1, 3, 5)


def severity_option() -> Callable[[Command], Command]:
    """``--severity`` of corruptions, as a tuple that is empty unless it is given."""
    return click.option(
        "--severity",
        "severities",
        type=click.IntRange(1, 5),
        multiple=True,
        metavar="N",
        help=f"Severity of the corruptions, from 1 to 5. Repeatable.  [default: {' '.join(map(str, SEVERITIES))}]",
    )


def model_arg_option(whose: str) -> Callable[[Command], Command]:
    """``--model-arg``, for the constructor of ``whose`` model."""
    return click.option(
        "--model-arg",
        "model_args",
        multiple=True,
        metavar="KEY=VALUE",
        callback=model_args,
        help=f"Argument for the constructor of {whose}, as in num_classes=10; a JSON value. Repeatable.",
    )


def refuse_ignored(place: str, names: Sequence[str]) -> None:
    """Refuse options of a model by name, given on the command line, where ``place`` is a checkpoint.

    Args:
        place: what the command was given.
        names: parameters of the command that a checkpoint has no use for.
    """
    from ilmconvert.checkpoint.safetensors_io import checkpoint_file

    context = click.get_current_context()
    given = [
        next(opt for opt in parameter.opts if opt.startswith("--"))
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given and checkpoint_file(place).is_file():
        raise click.UsageError(
            f"{place} is a checkpoint, whose model and weights are settled; leave out {', '.join(given)}"
        )
