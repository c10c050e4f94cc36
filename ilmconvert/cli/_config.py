"""Options and arguments of commands from a YAML file: a section a command, as strict as the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ilmconvert.errors import one_line

_RECIPE = "Recipe: "
# Of the command line itself, so useless in a file.
_NOT_IN_FILES = ("help", "quiet", "verbose", "config")


def options_for(path: Path, context: click.Context) -> dict[str, Any]:
    """Defaults for the command of ``context``, by parameter: what the file says under the command's name.

    Raises:
        click.UsageError: no such file, no YAML, a section that is no command, an option that the command lacks, a
            value that doesn't fit.
    """
    assert context.parent is not None
    assert isinstance(context.parent.command, click.Group)
    names = context.parent.command.list_commands(context.parent)
    sections = _read(path)
    for name, section in sections.items():
        if name not in names:
            raise click.UsageError(f"{path}: there is no command {name!r}{_misplaced(name, names, context)}")
        if not isinstance(section, Mapping):
            raise click.UsageError(f"{path}: {name} has to hold options, as in\n{name}:\n  option: value")
    place = f"{path}: {context.info_name}"
    known = _known(context.command)
    found: dict[str, Any] = {}
    for key, value in sections.get(context.info_name or "", {}).items():
        name, checked = _checked(place, key, value, known, context)
        if name in found:
            raise click.UsageError(f"{place} holds {key} twice, by two names of the same option; leave one of them out")
        found[name] = checked
    return found


def _known(command: click.Command) -> dict[str, click.Parameter]:
    """Arguments, and options by every long name, as they are written in a file."""
    known: dict[str, click.Parameter] = {}
    for parameter in command.params:
        long = [name for name in parameter.opts if name.startswith("--")] or [parameter.name or ""]
        known |= {name.lstrip("-").replace("_", "-"): parameter for name in long}
    return known


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    from ilmconvert.finetune.read_yaml import read_yaml

    try:
        found = read_yaml(path)
    except OSError as error:
        raise click.UsageError(f"can't read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} can't be read as YAML: {error}") from error
    if found is not None and not isinstance(found, Mapping):
        raise click.UsageError(f"{path} has to hold a section a command, as in verify: with options below it")
    return found or {}


def _checked(
    place: str, key: object, value: Any, known: Mapping[str, click.Parameter], context: click.Context
) -> tuple[str, Any]:
    """The parameter's name and the value, if it takes that."""
    written = str(key).replace("_", "-")
    parameter = known.get(written)
    if parameter is None or written in _NOT_IN_FILES:
        raise click.UsageError(f"{place} has no option {key!r}{_hint(written, known)}")
    is_field = getattr(parameter, "section", "").startswith(_RECIPE)
    if is_field and value is None:
        value = "none"  # as on the command line; a null elsewhere would be an option that wasn't given
    if is_field and value is False and not getattr(parameter, "is_flag", False):
        value = "no"  # a bare no of YAML
    _check_kind(f"{place}: {key}", value, parameter)
    try:
        parameter.type_cast_value(context, value)
    except click.UsageError as error:
        message = one_line(error.message).removeprefix(f"--{written} ")
        raise click.UsageError(f"{place}: {key}{'' if message.startswith('has to be') else ':'} {message}") from error
    assert parameter.name is not None
    return parameter.name, value


def _check_kind(place: str, value: Any, parameter: click.Parameter) -> None:
    """Refuse lists for one value, one value for a list, and anything but true and false for a flag."""
    several = parameter.multiple or parameter.nargs != 1
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if isinstance(value, Mapping) or isinstance(value, list) != several:
        raise click.UsageError(f"{place} takes {'a list' if several else 'one value'}")
    if is_flag != isinstance(value, bool):
        raise click.UsageError(f"{place} takes {'true or false' if is_flag else 'a value'}")


def _hint(name: object, names: Any) -> str:
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _misplaced(name: object, names: Any, context: click.Context) -> str:
    """What to do about a section that is no command: it may be an option that stands too far to the left."""
    if str(name).replace("_", "-") in _known(context.command):
        return f"; write {name} below {context.info_name}:"
    return _hint(name, names)
