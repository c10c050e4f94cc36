"""Does a bounded network give better features for a shifted target? A head is trained, the network isn't.

``python -m benchmarks.robust_probe`` takes the features of the real EfficientNet-Lite0, and of its conversion bounded
without images, for the image sets of :mod:`benchmarks.finetune_data`, fits a logistic regression on the training
images, and prints its accuracy on the validation images: mean and standard error over seeds, each of which chooses
other training images. The first is what a fine-tuning of the head on frozen BatchNorm gives.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.finetune_data import Example, examples
from benchmarks.report import Cell, Table, environment, publish
from ilmconvert import calibrate_bound, convert
from ilmconvert.data.sample_photographs import Photograph, load_lite0, preprocess
from ilmconvert.export.fold import fold

SETS = ("photographs", "photographs-haze", "digits", "digits-noise")


@torch.inference_mode()
def features(networks: dict[str, nn.Module], found: Sequence[Example], size: int) -> dict[str, Tensor]:
    """(N, 1280) for each network, pooled."""
    source = next(iter(networks.values()))
    images = preprocess(source, [Photograph(e.label, e.image, whole=True) for e in found])
    batches = nn.functional.interpolate(images, size, mode="bilinear", antialias=True).split(8)
    return {
        title: torch.cat([n.forward_head(n.forward_features(x), pre_logits=True) for x in batches])
        for title, n in networks.items()
    }


def accuracies(networks: dict[str, nn.Module], name: str, seeds: int, size: int, *, quick: bool) -> list[list[float]]:
    """Of a head on each network's features, on the validation images of one set: networks x seeds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # the validation images are the same for every seed
    val = [e for e in examples(name, 0, quick=quick) if e.split == "val"]
    val_features, val_labels = features(networks, val, size), [e.label for e in val]
    result: list[list[float]] = [[] for _ in networks]
    for seed in range(seeds):
        train = [e for e in examples(name, seed, quick=quick) if e.split == "train"]
        for scores, (title, given) in zip(result, features(networks, train, size).items(), strict=True):
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
            head.fit(given.numpy(), [e.label for e in train])
            scores.append(float(head.score(val_features[title].numpy(), val_labels)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robust_probe", description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS[:2]))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=96, help="of the images that the network sees")
    parser.add_argument("--quick", action="store_true", help="two images a class: to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for robust_probe.md and .json")
    arguments = parser.parse_args()
    source = load_lite0()
    bounded = convert(source, "ilm_ln")
    calibrate_bound(bounded)
    networks = {"source, frozen": source, "ILM-LN robust, frozen": fold(bounded)}
    table = Table(f"Accuracy of a head on frozen features, {arguments.seeds} seeds")
    for name in arguments.sets:
        row: dict[str, Cell] = {"set": name}
        found = accuracies(networks, name, arguments.seeds, arguments.size, quick=arguments.quick)
        differences = [after - before for before, after in zip(*found, strict=True)]
        for title, scores in zip([*networks, "difference"], [*found, differences], strict=True):
            error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None
            row[title] = f"{statistics.mean(scores):.3f}" + ("" if error is None else f" ± {error:.3f}")
        table.rows.append(row)
    publish("robust_probe", [table], environment("cpu"), arguments.out)


if __name__ == "__main__":
    main()
