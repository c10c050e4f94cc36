"""The entry that a conversion has in another library's config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ilmconvert._constants import __version__
from ilmconvert.checkpoint.metadata import LARGEST_METADATA, Metadata
from ilmconvert.errors import CheckpointError
from ilmconvert.surgery.conversion_info import note, noted
from ilmconvert.surgery.converted_layers import ConvertedLayer, replace_layers

#: The ``quant_method`` in config.json: the package to import, for whoever meets it in a warning of the library.
METHOD = "ilmconvert"


def metadata_of(model: nn.Module, layers: tuple[ConvertedLayer, ...]) -> dict[str, Any]:
    """What is known of the conversion, as JSON values.

    Raises:
        CheckpointError: it is longer than whoever reads it accepts.
    """
    found = noted(model)
    metadata = Metadata(
        spec=None,
        layers=layers,
        settings=dict(found.settings),
        provenance=dict(found.provenance),
        ilmconvert=__version__,
    ).to_dict()
    if len(json.dumps(metadata)) > LARGEST_METADATA:
        raise CheckpointError(f"the conversion takes more than {LARGEST_METADATA} characters; use ilmconvert.save")
    return metadata


def build_again(
    model: nn.Module,
    entry: Mapping[str, Any],
    layers_in: Callable[[nn.Module, Iterable[ConvertedLayer]], Iterable[ConvertedLayer]] = lambda _, layers: layers,
) -> nn.Module:
    """Put the layers of an entry into a model that a library has built on the meta device, in place.

    Args:
        model: without values.
        entry: what :func:`metadata_of` gave.
        layers_in: those that belong into ``model``, by their names in it; called before anything is changed.

    Raises:
        CheckpointError: the entry is damaged, or of another model.
    """
    try:
        metadata = Metadata.from_json(json.dumps(entry))
        with torch.device("cpu"):  # where norms can be tried out
            replace_layers(model, layers_in(model, metadata.layers))
    except ValueError as error:
        raise CheckpointError(f"the conversion in config.json can't be built again: {error}") from error
    return note(model, settings=metadata.settings, provenance=metadata.provenance)
