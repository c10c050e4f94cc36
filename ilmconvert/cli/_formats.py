"""The forms in which a converted model is written: one file, a folder for the hub, a delta."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ilmconvert.cli._common import Command
from ilmconvert.cli._outputs import check_output

if TYPE_CHECKING:
    from torch import nn

FORMATS = ("checkpoint", "hub", "delta")
_ENDINGS = {"checkpoint": ".safetensors", "hub": "", "delta": ".delta.safetensors"}


def push_options(command: Command) -> Command:
    """``--push`` and ``--private``."""
    private = click.option("--private", is_flag=True, help="Make a new repository of --push private.")
    push = click.option(
        "--push", metavar="ORG/NAME", help="Publish the folder of --format hub on the Hugging Face hub."
    )
    return push(private(command))


def check_push(kind: str, push: str | None, private: bool) -> None:
    """Refuse options that would be ignored."""
    if push is not None and kind != "hub":
        raise click.UsageError("--push publishes a folder: add --format hub")
    if private and push is None:
        raise click.UsageError("--private is for the repository of --push; add that, or leave --private out")


def default_place(stem: str, kind: str) -> Path:
    """Where a model goes if nothing else is said.

    >>> str(default_place("resnet50-ilm_gn", "delta"))
    'resnet50-ilm_gn.delta.safetensors'
    """
    return Path(f"{stem}{_ENDINGS[kind]}")


def check_place(path: Path, kind: str, force: bool) -> None:
    """Refuse a place that can't or mustn't be written, before the slow work."""
    if kind != "hub":
        check_output(path, force)
        return
    parent = path.absolute().parent
    if path.is_file():
        raise click.UsageError(f"the output {path} is a file, and --format hub writes a folder; name one with -o")
    if not parent.is_dir():
        raise click.UsageError(f"there is no folder {parent} to make {path.name} in; make it first")
    if not os.access(path if path.is_dir() else parent, os.W_OK):
        raise click.UsageError(f"{path.absolute()} can't be written to; name another place with -o")
    if path.is_dir() and any(path.iterdir()) and not force:
        raise click.UsageError(f"{path} exists already; replace its files with --force or name another folder with -o")


def write(
    model: nn.Module,
    output: Path,
    kind: str,
    source: nn.Module | None,
    say: Callable[[str], None],
    *,
    push: str | None = None,
    private: bool = False,
) -> dict[str, Any]:
    """Write the model, publish it if that was asked for, and say what was done: of a summary the last entries."""
    say(f"writing {output}")
    published = None
    if kind == "hub":
        from ilmconvert.export.hub import save_pretrained

        save_pretrained(model, output, source=source, name=None if push is None else f"hf-hub:{push}")
        if push is not None:
            from ilmconvert.export.hub.push import upload

            say(f"publishing {push}")
            published = upload(output, push, private=private or None)
    elif kind == "delta":
        from ilmconvert.checkpoint.delta import save_delta

        assert source is not None
        save_delta(model, output, base=source)
    else:
        from ilmconvert.checkpoint.save_load import save

        save(model, output)
    return {"format": kind, "output": str(output), "share": _share(model, output, kind), "published": published}


def _share(model: nn.Module, output: Path, kind: str) -> float | None:
    """Size of a delta over that of all tensors."""
    if kind != "delta":
        return None
    whole: int = sum(t.nbytes for t in model.state_dict().values())
    return output.stat().st_size / whole


def written(summary: dict[str, Any]) -> str:
    """What was written where, for people."""
    share = summary["share"]
    text = f"Wrote {summary['output']}" + ("" if share is None else f" ({share:.1%} of the whole checkpoint)")
    return text if summary["published"] is None else f"{text}\nPublished: {summary['published']}"
