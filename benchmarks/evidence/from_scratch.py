"""The paper's own claim: networks trained from scratch with and without the meta-network.

    python -m benchmarks.evidence.from_scratch --out DIR [--batch-sizes 2 32] [--quick]
    python -m benchmarks.evidence.from_scratch --out DIR --longer
    python -m benchmarks.evidence.from_scratch --out DIR --longer --set cifar-10 --data-root FOLDER [--device cuda]
    python -m benchmarks.evidence.from_scratch --out benchmarks/evidence/results --table [--longer] [--set cifar-10]

A small ResNet on Fashion-MNIST, or on CIFAR-10, which is the paper's. The rate is chosen per norm and batch size on
validation images with a seed of its own, then each norm is trained with new seeds and tested on the full test set. Runs
are lines of ``DIR/from_scratch.jsonl``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.evidence.images import Images, Splits, draw, smaller
from benchmarks.evidence.lines import Lines, MissingLine
from benchmarks.evidence.sets import load_splits
from benchmarks.evidence.small_resnet import BASES, NORMS, small_resnet
from benchmarks.report import Cell, Table, to_markdown
from ilmconvert.evaluation.estimate import estimate

#: Sets, and how many pixels and channels their images have.
SHAPES = {"fashion-mnist": (28, 1), "cifar-10": (32, 3)}
SELECTION_SEED = 1000
FINAL_SEEDS: tuple[int, ...] = (0, 1, 2, 3)


class Scale(NamedTuple):
    """How much is trained."""

    images: int = 6_000
    epochs: int = 3
    rates: tuple[float, ...] = (0.005, 0.02, 0.08)
    seeds: tuple[int, ...] = FINAL_SEEDS


USUAL = Scale()
LONGER = Scale(epochs=15, rates=(0.02, 0.08, 0.32))
QUICK = Scale(images=16, epochs=1, seeds=FINAL_SEEDS[:2])


def train(norm: str, rate: float, batch_size: int, images: Images, epochs: int, seed: int) -> nn.Module:
    """SGD with momentum 0.9, weight decay 1e-4, a cosine schedule and flips, on the images' device."""
    torch.manual_seed(seed)
    device = images.pixels.device
    network = small_resnet(NORMS[norm], images.pixels.shape[1]).to(device)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    if device.type == "cuda":  # a step of so small a network takes as long as it takes to start its kernels
        torch.cuda.make_graphed_callables(network, (_scaled(images.pixels[:batch_size]),))
    for _ in range(epochs):
        for indices in torch.randperm(len(images))[: steps // epochs * batch_size].split(batch_size):
            side = (torch.rand(len(indices), 1, 1, 1) < 0.5).to(device)
            indices = indices.to(device)
            x = _scaled(images.pixels[indices])
            F.cross_entropy(network(torch.where(side, x, x.flip(-1))), images.labels[indices]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: Images) -> float:
    """The share of images of the right class."""
    classes = torch.cat([network(_scaled(pixels)).argmax(-1) for pixels in images.pixels.split(100)])
    return (classes == images.labels).double().mean().item()


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 128 - 1


def load(name: str, cache: Path, root: Path | None = None) -> Splits:
    """A set of :data:`SHAPES` at its own size; grey images have one channel."""
    size, channels = SHAPES[name]
    found = load_splits(name, size, cache, root)
    train, val, test = (Images(p.pixels[:, :channels], p.labels) for p in (found.train, found.val, found.test))
    return Splits(train, val, test, found.num_classes)


class Comparison:
    """Runs of every norm at every batch size on a set, each made once; without ``splits`` those of the file alone."""

    def __init__(
        self, image_set: str, splits: Splits | None, lines: Lines, scale: Scale = USUAL, device: str = "cpu"
    ) -> None:
        self._set, self._splits, self._lines, self._scale = image_set, splits, lines, scale
        self._device = device

    def table(self, norms: Sequence[str], batch_size: int) -> Table:
        """Mean accuracy with its interval, and each ILM Norm less the norm that it is built on."""
        scale = self._scale
        made = Table(
            f"From scratch, {self._set}, batch size {batch_size}: {scale.images} images, {scale.epochs} epochs"
        )
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
        key: dict[str, str | int | float] = {
            "set": self._set,
            "norm": norm,
            "batch": batch_size,
            "rate": rate,
            "seed": seed,
        }
        key |= {"images": self._scale.images, "epochs": self._scale.epochs}
        return self._lines.value(key, lambda: self._trained(norm, batch_size, rate, seed))

    def _trained(self, norm: str, batch_size: int, rate: float, seed: int) -> float:
        if self._splits is None:
            raise MissingLine
        images = draw(self._splits.train, self._scale.images, seed).to(self._device)
        network = train(norm, rate, batch_size, images, self._scale.epochs, seed)
        seen = self._splits.val if seed == SELECTION_SEED else self._splits.test
        return accuracy(network, seen.to(self._device))


def main(argv: Sequence[str] | None = None) -> None:
    """Run it and print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=SHAPES, default="fashion-mnist")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 2])
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS), metavar="NORM")
    parser.add_argument("--longer", action="store_true", help="Five times as long, and higher rates.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--table", action="store_true", help="What has been measured; nothing is trained.")
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    options = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on the processor
    splits = None if options.table else load(options.set, options.out / "cache", options.data_root)
    scale = LONGER if options.longer else USUAL
    if options.quick:
        splits, scale = splits and smaller(splits, QUICK.images), QUICK
    comparison = Comparison(options.set, splits, Lines(options.out / "from_scratch.jsonl"), scale, options.device)
    for batch_size in options.batch_sizes:
        made = comparison.table(options.norms, batch_size)
        if made.rows:
            print(to_markdown(made), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
