"""A network in two: what is frozen in every arm, computed once for each image, and the last stages, which train."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.evidence.begin import normalized
from benchmarks.evidence.images import Images, Splits, draw, smaller
from benchmarks.evidence.sets import load_splits
from ilmconvert.data.sample_photographs import load_lite0

LAST_STAGE = 6  # of EfficientNet-Lite0
SIZE, QUICK = 64, 16  # pixels, and images of each part where something is only to run
_EVALUATED = 50  # images of a batch without gradients


@dataclass(frozen=True)
class Features:
    """What reaches the stages that train: ``inputs`` (N, C, H, W), ``labels`` (N,)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Features:
        """The images of these indices, in their order."""
        return Features(self.inputs[indices], self.labels[indices])


@dataclass(frozen=True)
class Parts:
    """Features of the images that train, that settings are chosen on, and that are looked at once."""

    train: Features
    val: Features
    test: Features
    num_classes: int


def cut(network: nn.Module, stage: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The parts of timm's EfficientNet before ``stage`` and from it on; both hold its own modules.

    >>> import timm
    >>> network = timm.create_model("test_efficientnet").eval()
    >>> before, behind = cut(network, 3)
    >>> x = torch.rand(1, 3, 64, 64)
    >>> torch.equal(behind(before(x)), network(x))
    True
    """
    stem, blocks = (network.get_submodule("conv_stem"), network.get_submodule("bn1")), network.get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    names = ("conv_head", "bn2", "global_pool", "classifier")
    behind = nn.Sequential(*blocks[stage:], *(network.get_submodule(name) for name in names))
    return nn.Sequential(*stem, *blocks[:stage]), behind


def parts(source: nn.Module, stage: int, splits: Splits, images: int, tests: int, cache: Path) -> Parts:
    """The features of a set, from ``cache`` where they have been made before.

    Args:
        images: training images, drawn by seed 0.
        tests: test images, the first ones.
    """
    chosen = (
        draw(splits.train, images, seed=0),
        splits.val,
        Images(splits.test.pixels[:tests], splits.test.labels[:tests]),
    )
    before = cut(source, stage)[0].eval()
    train, val, test = (_features(before, part, stage, cache) for part in chosen)
    return Parts(train, val, test, splits.num_classes)


def run_options(description: str | None, file: str, arms: Iterable[str]) -> argparse.ArgumentParser:
    """The options of a comparison that trains the last stages only, whose lines go to ``file``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"Folder of {file}.")
    parser.add_argument("--arms", nargs="+", choices=list(arms), default=list(arms), metavar="ARM")
    parser.add_argument("--from-stage", type=int, default=LAST_STAGE, help="The first stage of which anything trains.")
    parser.add_argument("--table", action="store_true", help="Print what has been measured; train nothing.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cache", type=Path, help="Folder of decoded images and features; default: OUT/cache.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    return parser


def opened(options: argparse.Namespace, images: int, tests: int) -> tuple[nn.Module | None, Parts | None]:
    """The network and the features for :func:`run_options`; None for both where nothing is to be trained."""
    if options.table:
        return None, None
    cache = options.cache or options.out / "cache"
    splits = load_splits("fashion-mnist", SIZE, cache, options.data_root)
    splits = smaller(splits, QUICK) if options.quick else splits
    source = load_lite0()
    return source, parts(source, options.from_stage, splits, images, tests, cache)


def _features(before: nn.Module, images: Images, stage: int, cache: Path) -> Features:
    weights = next(before.parameters())
    seen = images.pixels.numpy().tobytes() + weights.detach().numpy().tobytes()
    file = cache / f"features-{stage}-{hashlib.sha256(seen).hexdigest()[:12]}.pt"
    if file.exists():
        return Features(torch.load(file, weights_only=True), images.labels)
    with torch.no_grad():
        inputs = torch.cat([before(normalized(pixels)) for pixels in images.pixels.split(_EVALUATED)])
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(inputs, file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)
    return Features(inputs, images.labels)


@torch.no_grad()
def accuracy(behind: nn.Module, features: Features) -> float:
    """The share of images of the right class, in evaluation mode; the mode stays so."""
    behind.eval()
    classes = torch.cat([behind(x).argmax(-1) for x in features.inputs.split(_EVALUATED)])
    return (classes == features.labels).double().mean().item()


def out_of_place(network: nn.Module) -> nn.Module:
    """Activations of their own tensors, in place: Opacus's hooks need them, and cached features must not change."""
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network
