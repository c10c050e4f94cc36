"""Options of commands from a YAML file: a section a command, checked as strictly as the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ilmconvert.cli._exit import one_line

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
            raise click.UsageError(f"{path}: there is no command {name!r}{_hint(name, names)}")
        if not isinstance(section, Mapping):
            raise click.UsageError(f"{path}: {name} has to hold options, as in\n{name}:\n  option: value")
    options = {_kebab(option): option for option in context.command.params if isinstance(option, click.Option)}
    section = sections.get(context.info_name or "", {})
    return dict(
        _checked(f"{path}: {context.info_name}", key, value, options, context) for key, value in section.items()
    )


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"can't read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is no YAML file: {error}") from error
    if found is not None and not isinstance(found, Mapping):
        raise click.UsageError(f"{path} has to hold a section a command, as in verify: with options below it")
    return found or {}


def _checked(
    place: str, key: object, value: Any, options: Mapping[str, click.Option], context: click.Context
) -> tuple[str, Any]:
    """The parameter's name and the value, if the option takes it."""
    option = options.get(str(key))
    if option is None or key in _NOT_IN_FILES:
        raise click.UsageError(f"{place} has no option {key!r}{_hint(str(key), options)}")
    if getattr(option, "section", "").startswith(_RECIPE):
        raise click.UsageError(f"{place}: {key} is a recipe's; write it into a recipe file and name that as recipe")
    if isinstance(value, Mapping) or (isinstance(value, list) != (option.multiple or option.nargs != 1)):
        kind = "a list" if option.multiple or option.nargs != 1 else "one value"
        raise click.UsageError(f"{place}: {key} takes {kind}")
    if option.is_flag != isinstance(value, bool):
        raise click.UsageError(f"{place}: {key} takes {'true or false' if option.is_flag else 'a value'}")
    try:
        option.type_cast_value(context, value)
    except click.BadParameter as error:
        raise click.UsageError(f"{place}: {key}: {one_line(error.message)}") from error
    assert option.name is not None
    return option.name, value


def _kebab(option: click.Option) -> str:
    """The long name of an option, as it is written in a file."""
    return max(option.opts, key=len).lstrip("-")


def _hint(name: object, names: Any) -> str:
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
