"""Where commands write: the default place, and what mustn't be written over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from ilmconvert.cli._common import Command


def output_options(default: str) -> Callable[[Command], Command]:
    """``-o``, ``--force`` and ``--json`` of a command that writes a checkpoint, by default one that is called so."""

    def decorate(command: Command) -> Command:
        options = [
            click.option(
                "-o",
                "--output",
                type=click.Path(path_type=Path),
                metavar="OUT.safetensors",
                help=f"Checkpoint to write.  [default: {default}.safetensors]",
            ),
            click.option("--force", is_flag=True, help="Replace an existing file."),
            click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def beside(path: Path, ending: str, *, given: Path | None = None) -> Path:
    """The default output of a command: beside ``path``, under its name with another ending.

    A folder of ``save_pretrained`` is published whole, so that what is made of it goes beside the folder.

    Args:
        path: the checkpoint.
        ending: in the place of its own.
        given: what the command was given, if that may be the folder that holds the checkpoint.

    >>> str(beside(Path("run/best.safetensors"), "-plain.safetensors", given=Path("run")))
    'run/best-plain.safetensors'
    """
    if given is not None and given != path:
        from ilmconvert.checkpoint.safetensors_io import FOLDER_FILE

        folder = given.absolute() if given.name == "" else given  # "." has no name
        if path.name == FOLDER_FILE:
            return folder.with_name(f"{folder.name}{ending}")
    named = path.absolute() if path.name == "" else path
    return named.with_name(f"{named.stem}{ending}")


def check_page(path: Path) -> None:
    """Refuse a place for an HTML page that can't be written, or that holds something else; an older page may go."""
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent} to write {path.name} into; make it first")
    if path.is_dir() or (path.exists() and path.suffix.lower() not in (".html", ".htm")):
        raise click.UsageError(f"{path} exists already and is no page; name one that ends in .html with --html")


def check_output(path: Path, force: bool) -> None:
    """Refuse a place that can't or mustn't be written, before the slow work."""
    folder = path.parent
    if path.suffix != ".safetensors":
        raise click.UsageError(f"the output {path} has to end in .safetensors")
    if path.is_dir():
        raise click.UsageError(f"the output {path} is a folder; name a file in it")
    if not folder.is_dir():
        raise click.UsageError(f"there is no folder {folder} to write {path.name} into; make it first")
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"the folder {folder.absolute()} can't be written to; name another place with -o")
    if path.exists() and not force:
        raise click.UsageError(f"{path} exists already; replace it with --force or name another file with -o")
