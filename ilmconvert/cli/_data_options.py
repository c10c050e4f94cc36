"""Options of the commands that read images, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import Command
from ilmconvert.cli._recipe import section_option

if TYPE_CHECKING:
    from ilmconvert.data.open_data import Data

_SKIP = "Leave out images that can't be read; each is read once before the start."


def data_options(*, labels: bool, section: str | None = None) -> Callable[[Command], Command]:
    """What there is to say about ``--data``: where a named dataset lies, and what to do about damaged images.

    Args:
        labels: whether the command reads labels.
        section: the heading in help that they stand under.
    """
    options: list[tuple[str, dict[str, Any]]] = [
        ("--data-dir", {"type": click.Path(path_type=Path), "metavar": "DIR", "help": "Folder of torch/NAME."}),
        ("--dataset-download", {"is_flag": True, "help": "Let torchvision fetch torch/NAME."}),
        ("--input-key", {"metavar": "KEY", "help": "Column of the images in hfds/NAME."}),
        *([("--target-key", {"metavar": "KEY", "help": "Column of the labels in hfds/NAME."})] if labels else []),
        ("--skip-corrupt", {"is_flag": True, "help": _SKIP}),
    ]

    def decorate(command: Command) -> Command:
        for name, settings in reversed(options):
            make = click.option if section is None else lambda *a, **k: section_option(section, *a, **k)
            command = make(name, **settings)(command)
        return command

    return decorate


def take_data_options(options: dict[str, Any], data: str | None) -> dict[str, Any]:
    """The arguments of ``open_data`` that these options are, taken out of all options of a command.

    Raises:
        click.UsageError: they are given, and there are no ``data``.
    """
    names = ("data_dir", "dataset_download", "input_key", "target_key", "skip_corrupt")
    found = {name: value for name in names if (value := options.pop(name, None))}
    if data is None and found:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        raise click.UsageError(f"{given} says how --data is read; add that, or leave {given} out")
    return {{"dataset_download": "download"}.get(name, name): value for name, value in found.items()}


def open_images(data: str, arguments: dict[str, Any], **more: Any) -> Data:
    """``open_data`` with the arguments of :func:`take_data_options`."""
    from ilmconvert.data.open_data import open_data

    return open_data(data, **arguments, **more)


def echo_left_out(data: Data | None) -> None:
    """A line on what was left out, if anything was."""
    for label, text in left_out(data):
        click.echo(f"{label.capitalize()}: {text}")


def left_out(data: Data | None) -> list[tuple[str, str]]:
    """What was left out, as a row of a table; none where nothing was."""
    from ilmconvert.data.readable import unreadable_text

    return [("left out", unreadable_text(data.unreadable))] if data is not None and data.unreadable else []
