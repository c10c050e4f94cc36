"""What a shell offers for a word: names of models, and files. Nothing here imports torch or a model library."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from ilmconvert.models.names import stored_counts


def models(context: click.Context, parameter: click.Parameter | None, incomplete: str) -> list[CompletionItem]:
    """Models with a norm layer whose name begins so; ``torchvision/`` counts as one name until it is written out."""
    names = [name for name, count in stored_counts().items() if count and name.startswith(incomplete)]
    folder = "torchvision/"
    if not incomplete.startswith(folder):
        names = [*(name for name in names if "/" not in name), *[folder] * any("/" in name for name in names)]
    return [CompletionItem(name) for name in names]


def models_and_files(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For an argument that takes both; files where no model fits, since a shell takes only one kind at a time."""
    found = models(context, parameter, incomplete) if incomplete else []
    return found or [CompletionItem(incomplete, type="file")]
