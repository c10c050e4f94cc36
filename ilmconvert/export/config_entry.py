"""The entry that a conversion has in another library's config.json."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from ilmconvert._constants import __version__
from ilmconvert.checkpoint.metadata import LARGEST_METADATA, Metadata
from ilmconvert.errors import CheckpointError
from ilmconvert.surgery.conversion_info import noted
from ilmconvert.surgery.converted_layers import ConvertedLayer

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
