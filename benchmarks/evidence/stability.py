"""Too high a rate: where training at batch size 2 falls back to chance, with and without a warm-up.

    python -m benchmarks.evidence.stability --out DIR [--quick]

Fashion-MNIST, 200 steps on 400 training images, without distillation and with norms at the full rate; the seed, the
images and the validation accuracy are those of the protocol's selection. Below the head is the part of the gradient's
squared length after the run that isn't the head's: 0 where the network has died. Runs are lines of
``DIR/stability.jsonl``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.evidence.arms import ARMS, FROZEN, WARM
from benchmarks.evidence.images import Images, Splits, draw, smaller
from benchmarks.evidence.lines import Lines
from benchmarks.evidence.sets import load_splits
from benchmarks.evidence.train import Settings, Trained, accuracy, train
from benchmarks.report import Table, to_markdown
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.finetune import Recipe
from ilmconvert.finetune.dead import part_below_head
from ilmconvert.finetune.optimizer import parameter_groups

SHOWN = (FROZEN, FROZEN + WARM, "ilm-gn-bound", "ilm-in-first", "ilm-in-first" + WARM)
STEPS = ((0.02, 2.0), (0.012, 2.0), (0.02, 0.5))  # rate and clip
SIZE, IMAGES, EPOCHS, SEED, BATCH = 64, 400, 1, 1000, 20
MEASURED = ("accuracy", "gradient", "below the head")


def measured(
    lines: Lines, arm: str, rate: float, clip: float, source: nn.Module, splits: Splits, images: int, epochs: int
) -> dict[str, float]:
    """Validation accuracy, the median length of the gradient, and its part below the head; measured once."""
    found: dict[str, float] = {}

    def make(name: str) -> float:
        if not found:
            part, classes = draw(splits.train, images, SEED), splits.num_classes
            settings = Settings(rate, distill=0.0, norm_scale=1.0)
            trained = train(ARMS[arm], settings, source, part, classes, epochs, seed=SEED, clip=clip)
            found["gradient"] = trained.gradient
            found["accuracy"] = accuracy(trained.network, trained.prepare, splits.val)
            found["below the head"] = below_head(trained, part)
        return found[name]

    key: dict[str, str | int | float] = {"arm": arm, "rate": rate, "clip": clip, "images": images, "epochs": epochs}
    return {n: lines.value({**key, "what": n}, lambda n=n: make(n)) for n in MEASURED}  # type: ignore[misc]


def below_head(trained: Trained, images: Images) -> float:
    """The part of the gradient's squared length that isn't the head's, on the training images."""
    network = trained.network
    for pixels, labels in zip(images.pixels.split(BATCH), images.labels.split(BATCH), strict=True):
        nn.functional.cross_entropy(network(trained.prepare(pixels)), labels, reduction="sum").backward()
    part = part_below_head(parameter_groups(network, Recipe()))
    network.zero_grad()
    assert part is not None
    return part.item()


def main(argv: Sequence[str] | None = None) -> None:
    """Run it and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=SHOWN, metavar="ARM")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="A few images, to see that it runs.")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    splits, images, epochs = (
        load_splits("fashion-mnist", SIZE, options.out / "cache", options.data_root),
        IMAGES,
        EPOCHS,
    )
    if options.quick:
        splits, images, epochs = smaller(splits, 8), 8, 1
    source, lines = load_lite0(), Lines(options.out / "stability.jsonl")
    table = Table("Rate and clip at batch size 2: validation accuracy of one seed")
    for rate, clip in STEPS:
        for arm in options.arms:
            found = measured(lines, arm, rate, clip, source, splits, images, epochs)
            table.rows.append(
                {
                    "rate": f"{rate:g}",
                    "clip": f"{clip:g}",
                    "rate x clip": f"{rate * clip:g}",
                    "network": ARMS[arm].title,
                    "median gradient": f"{found['gradient']:.0f}",
                    "below the head": f"{found['below the head']:.2f}",
                    "accuracy": f"{found['accuracy']:.3f}",
                }
            )
    print(to_markdown(table))


if __name__ == "__main__":
    main()
