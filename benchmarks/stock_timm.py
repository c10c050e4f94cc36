"""Which plain networks stock timm loads: ``python -m benchmarks.stock_timm [PATTERN ...]``.

For every model of timm that matches and holds a norm, and for each of ``--to ln`` and ``--to gn``: the ``norm_layer``
with which ``timm.create_model`` builds the same network, so that the checkpoint loads there without this library.
Structures only, no weights.
"""

from __future__ import annotations

import argparse
import warnings
from fnmatch import fnmatchcase

from ilmconvert import convert
from ilmconvert.errors import ILMConvertError
from ilmconvert.export.stock_timm import timm_arguments
from ilmconvert.models.create import ModelSpec
from ilmconvert.models.norm_counts import skeleton, stored_counts

TARGETS = ("ln", "gn")
PATTERNS = (
    "resnet18", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "seresnet50", "resnetv2_50",
    "regnetx_032", "regnety_032", "efficientnet_b0", "tf_efficientnet_lite0", "efficientnetv2_rw_s", "mobilenetv2_100",
    "mobilenetv3_large_100", "mnasnet_100", "densenet121", "vgg16_bn", "inception_v3", "xception41", "dla34",
    "hrnet_w18", "cspresnet50", "res2net50_26w_4s", "resnest50d", "repvgg_b0", "ghostnet_100", "levit_256",
)  # fmt: skip


def norm_layer(name: str, to: str) -> str | None:
    """timm's name of the norm with which it builds the plain network itself, or None.

    >>> norm_layer("resnet18", "gn"), norm_layer("resnet18", "ln"), norm_layer("vgg16_bn", "ln")
    ('groupnorm', 'groupnorm1', None)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # skeletons were never trained
        arguments = timm_arguments(convert(skeleton(ModelSpec("timm", name, {})), to))
    return None if arguments is None else str(arguments["norm_layer"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stock_timm", description=__doc__)
    parser.add_argument("patterns", nargs="*", default=PATTERNS, help="of names of timm")
    patterns = parser.parse_args().patterns
    names = [n for n, count in stored_counts().items() if count and any(fnmatchcase(n, p) for p in patterns)]
    print("| model | --to ln | --to gn |\n|---|---|---|")
    for name in (name for name in names if not name.startswith("torchvision/")):
        cells = []
        for to in TARGETS:
            try:
                cells.append(norm_layer(name, to) or "-")
            except ILMConvertError as error:
                cells.append(str(error))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
