"""The paper's own claim: networks trained from scratch with and without the meta-network.

    python -m benchmarks.evidence.from_scratch --out DIR [--batch-sizes 2 32] [--quick]
    python -m benchmarks.evidence.from_scratch --out DIR --longer
    python -m benchmarks.evidence.from_scratch --out benchmarks/evidence/results --table [--longer]

A small ResNet on Fashion-MNIST. The rate is chosen per norm and batch size on validation images with a seed of its own,
then each norm is trained with new seeds and tested on the full test set. Runs are lines of ``DIR/from_scratch.jsonl``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.evidence.sets import Images, Splits, draw, load_splits, smaller
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert.evaluation.estimate import estimate
from ilmconvert.nn import ILMNorm

SIZE = 28
SELECTION_SEED = 1000
FINAL_SEEDS: tuple[int, ...] = (0, 1, 2, 3)
_WIDTHS = (16, 32, 64)

MakeNorm = Callable[[int], nn.Module]


class Scale(NamedTuple):
    """How much is trained."""

    images: int = 6_000
    epochs: int = 3
    rates: tuple[float, ...] = (0.005, 0.02, 0.08)
    seeds: tuple[int, ...] = FINAL_SEEDS


USUAL = Scale()
LONGER = Scale(epochs=15, rates=(0.02, 0.08, 0.32))
QUICK = Scale(images=16, epochs=1, seeds=FINAL_SEEDS[:2])


def _ilm(groups: Callable[[int], int], key_group_size: int = 16, reduction: int = 16) -> MakeNorm:
    return lambda channels: ILMNorm(channels, groups(channels), key_group_size=key_group_size, reduction=reduction)


def authors_start(layer: ILMNorm) -> ILMNorm:
    """The initial values of the authors' code: random decoders, and a scale of about 1.49, in place."""
    with torch.no_grad():
        for matrix in (layer.encoder, layer.weight_decoder, layer.bias_decoder):
            bound = matrix.shape[1] ** -0.5  # of nn.Linear
            matrix.uniform_(-bound, bound)
        if layer.weight is not None:
            layer.weight.fill_(1.5)
    return layer


def _half(channels: int) -> int:
    return channels // 2


def _one(channels: int) -> int:
    return 1


def _all(channels: int) -> int:
    return channels


#: Norms by name; each ILM Norm stands behind the norm that it is to be compared with.
NORMS: dict[str, MakeNorm] = {
    "BN": nn.BatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(_half(channels), channels),
    "ILM-GN": _ilm(_half),
    "ILM-GN, authors' start": lambda channels: authors_start(ILMNorm(channels, _half(channels))),
    "ILM-GN, key groups of 4": _ilm(_half, key_group_size=4),
    "ILM-GN, key groups of 4, wide": _ilm(_half, key_group_size=4, reduction=1),
    "LN": lambda channels: nn.GroupNorm(1, channels),
    "ILM-LN": _ilm(_one),
    "IN": lambda channels: nn.GroupNorm(channels, channels),
    "ILM-IN": _ilm(_all),
}
BASES = {"ILM-GN": "GN", "ILM-LN": "LN", "ILM-IN": "IN"}


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def small_resnet(norm: MakeNorm, num_classes: int = 10) -> nn.Sequential:
    """One block a stage, 16 to 64 channels, for grey images of 28 pixels.

    >>> small_resnet(NORMS["ILM-GN"])(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    stem = (nn.Conv2d(1, _WIDTHS[0], 3, 1, 1, bias=False), norm(_WIDTHS[0]), nn.ReLU())
    widths = (_WIDTHS[0], *_WIDTHS)
    blocks = [Block(a, b, 1 if a == b else 2, norm) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_WIDTHS[-1], num_classes))


def train(norm: str, rate: float, batch_size: int, images: Images, epochs: int, seed: int) -> nn.Module:
    """SGD with momentum 0.9, weight decay 1e-4, a cosine schedule and flips."""
    torch.manual_seed(seed)
    network = small_resnet(NORMS[norm])
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(epochs):
        for indices in torch.randperm(len(images))[: steps // epochs * batch_size].split(batch_size):
            x = _input(images.pixels[indices])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
            F.cross_entropy(network(x), images.labels[indices]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: Images) -> float:
    """The share of images of the right class."""
    classes = torch.cat([network(_input(pixels)).argmax(-1) for pixels in images.pixels.split(100)])
    return (classes == images.labels).double().mean().item()


def _input(pixels: Tensor) -> Tensor:
    return pixels[:, :1].float() / 128 - 1


class Comparison:
    """Runs of every norm at every batch size, each made once; without ``splits`` those of the file alone."""

    def __init__(self, splits: Splits | None, lines: Lines, scale: Scale = USUAL) -> None:
        self._splits, self._lines, self._scale = splits, lines, scale

    def table(self, norms: Sequence[str], batch_size: int) -> Table:
        """Mean accuracy with its interval, and each ILM Norm less the norm that it is built on."""
        scale = self._scale
        made = Table(f"From scratch, batch size {batch_size}: {scale.images} images, {scale.epochs} epochs")
        rates, found = self._results(norms, batch_size)
        edges = (min(scale.rates), max(scale.rates))
        for norm, by_seed in found.items():
            base = found.get(BASES.get(norm.split(",")[0], ""), {})
            common = [value - base[seed] for seed, value in by_seed.items() if seed in base]
            row: dict[str, Cell] = {
                "norm": norm,
                "rate": f"{rates[norm]:g}" + (" (edge)" if rates[norm] in edges else ""),
                "seeds": len(by_seed),
                "accuracy": estimate(list(by_seed.values())).text(),
            }
            made.rows.append({**row, "less its base": estimate(common).as_difference() if common else "-"})
        return made

    def _results(self, norms: Sequence[str], batch_size: int) -> tuple[dict[str, float], dict[str, dict[int, float]]]:
        """The rate of each norm, and its test accuracy by seed; seed by seed, so that what there is is paired."""
        rates: dict[str, float] = {}
        for norm in norms:
            with suppress(MissingLine):
                scores = {rate: self._accuracy(norm, batch_size, rate, SELECTION_SEED) for rate in self._scale.rates}
                rates[norm] = max(scores, key=lambda rate, scores=scores: scores[rate])  # type: ignore[misc]
        found: dict[str, dict[int, float]] = {}
        for seed in self._scale.seeds:
            for norm, rate in rates.items():
                with suppress(MissingLine):
                    found.setdefault(norm, {})[seed] = self._accuracy(norm, batch_size, rate, seed)
        return rates, {norm: by_seed for norm, by_seed in found.items() if by_seed}

    def _accuracy(self, norm: str, batch_size: int, rate: float, seed: int) -> float:
        key: dict[str, str | int | float] = {"norm": norm, "batch": batch_size, "rate": rate, "seed": seed}
        key |= {"images": self._scale.images, "epochs": self._scale.epochs}
        return self._lines.value(key, lambda: self._trained(norm, batch_size, rate, seed))

    def _trained(self, norm: str, batch_size: int, rate: float, seed: int) -> float:
        if self._splits is None:
            raise MissingLine
        images = draw(self._splits.train, self._scale.images, seed)
        network = train(norm, rate, batch_size, images, self._scale.epochs, seed)
        return accuracy(network, self._splits.val if seed == SELECTION_SEED else self._splits.test)


def main(argv: Sequence[str] | None = None) -> None:
    """Run it and print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 2])
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS), metavar="NORM")
    parser.add_argument("--longer", action="store_true", help="Five times as long, and higher rates.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--table", action="store_true", help="What has been measured; nothing is trained.")
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    options = parser.parse_args(argv)
    splits = None if options.table else load_splits("fashion-mnist", SIZE, options.out / "cache", options.data_root)
    scale = LONGER if options.longer else USUAL
    if options.quick:
        splits, scale = splits and smaller(splits, QUICK.images), QUICK
    comparison = Comparison(splits, Lines(options.out / "from_scratch.jsonl"), scale)
    for batch_size in options.batch_sizes:
        made = comparison.table(options.norms, batch_size)
        if made.rows:
            print(to_markdown(made), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
