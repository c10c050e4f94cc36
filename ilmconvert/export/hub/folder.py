"""Folders for timm and the Hugging Face hub: weights, settings and a model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ilmconvert.checkpoint import save_load
from ilmconvert.checkpoint.atomic_write import remove_leftovers, sync_folder, temporary_folder, write_atomically
from ilmconvert.checkpoint.metadata import Metadata
from ilmconvert.checkpoint.safetensors_io import FOLDER_FILE
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.errors import CheckpointError
from ilmconvert.evaluation.outputs import output_error
from ilmconvert.export.hub.card import Measured, card_of
from ilmconvert.export.hub.config import config_of

if TYPE_CHECKING:
    from ilmconvert.models.create import ModelSpec

_INPUTS = 8


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    source: nn.Module | None = None,
    spec: ModelSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Path:
    """Write a converted timm model as the folder that ``timm.create_model("local-dir:FOLDER")`` reads.

    ``model.safetensors`` is what :func:`ilmconvert.save` writes, ``config.json`` is in timm's layout, and ``README.md``
    is the model card: base, its licence and origin, the norm layers, and a comparison with ``source``.
    :func:`ilmconvert.load` takes the folder, too.

    Args:
        model: a converted model that timm built.
        folder: is made if it isn't there; the three files in it are replaced, each as a whole, and others stay.
        source: the model before its conversion. If it is given, both are run on eight random inputs and the card
            tells how far apart they are; otherwise it says that nothing was measured.
        spec, provenance: see :func:`ilmconvert.save`.
        name: what the card tells to load, ``hf-hub:ORG/NAME``. By default ``local-dir:`` and the folder's name.

    Raises:
        CheckpointError: not a model of timm, see also :func:`ilmconvert.save`; nothing was replaced.

    >>> import tempfile, timm, torch
    >>> from ilmconvert import convert
    >>> from ilmconvert.testing import randomize_norms
    >>> model = convert(randomize_norms(timm.create_model("test_resnet"))).eval()
    >>> with tempfile.TemporaryDirectory() as place:
    ...     written = save_pretrained(model, Path(place) / "mine")
    ...     found = sorted(file.name for file in written.iterdir())
    ...     again = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    >>> found
    ['README.md', 'config.json', 'model.safetensors']
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.equal(again(x), model(x))
    True
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        with temporary_folder(folder) as made:
            _write(model, made, name or f"local-dir:{folder.name}", source, spec, provenance)
            _move(made, folder)
        sync_folder(folder)
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror or error}; choose another place") from error
    return folder


def _write(
    model: nn.Module,
    folder: Path,
    name: str,
    source: nn.Module | None,
    spec: ModelSpec | None,
    provenance: Mapping[str, Any] | None,
) -> None:
    path = save_load.save(model, folder / WEIGHTS, spec=spec, provenance=provenance)
    metadata = Metadata.from_json(json.dumps(save_load.read_header(path)))
    config = config_of(model, metadata)
    measured = None if source is None else measure(source, model)
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", CARD: card_of(config, metadata, name, measured)}
    for file, text in texts.items():
        write_atomically(folder / file, partial(_write_text, text=text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _move(made: Path, folder: Path) -> None:
    """The finished files into their place: the weights first, so that settings never describe older ones."""
    folder.mkdir(exist_ok=True)
    for name in (WEIGHTS, CONFIG, CARD):
        os.replace(made / name, folder / name)


def measure(source: nn.Module, model: nn.Module) -> Measured:
    """Both models on the same random inputs."""
    inputs = example_inputs(source, batch_size=_INPUTS)
    shape = " x ".join(map(str, inputs[0].shape[1:]))
    return Measured(output_error(source, model, inputs), f"{_INPUTS} random inputs of {shape}")


WEIGHTS = FOLDER_FILE


CONFIG = "config.json"


CARD = "README.md"
