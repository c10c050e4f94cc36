"""Which models of timm and torchvision hold norm layers that can be converted."""

from __future__ import annotations

import csv
from importlib import resources

import torch
from torch import nn

from ilmconvert.errors import ModelError
from ilmconvert.models import ModelSpec, parse_name
from ilmconvert.surgery import plan

COUNTS_FILE = "zoo_norms.csv"


def skeleton(spec: ModelSpec) -> nn.Module:
    """The model without values, which costs neither time nor memory where the model can do without them.

    For looking at its structure only: parameters and buffers may be on the meta device.
    """
    try:
        with torch.device("meta"):
            return spec.build(initialize=False)
    except ModelError:  # some constructors compute with tensors
        return spec.build(initialize=False)


def count_norms(name: str) -> int:
    """How many layers of a model would be converted; builds its skeleton.

    >>> count_norms("test_resnet"), count_norms("test_vit")
    (15, 0)
    """
    return len(plan(skeleton(parse_name(name))).converted)


def stored_counts() -> dict[str, int]:
    """:func:`count_norms` for the models of the libraries' versions named in the packaged file.

    >>> stored_counts()["resnet50"]
    53
    """
    text = resources.files("ilmconvert").joinpath(COUNTS_FILE).read_text(encoding="utf-8")
    rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    return {name: int(count) for name, count in rows}
