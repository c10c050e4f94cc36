"""Conversions with a bounded first norm against their source under corruption, on the real EfficientNet-Lite0.

``python -m benchmarks.photographs DIR`` makes the photographs, ``python -m benchmarks.robustness DIR --out OUT`` the
tables: how often each network gives an image of ``DIR/test`` the class that the source gives the clean image. The
bounds are those that ``DIR/calibration``, unlabelled, gives. The baseline is the source behind a standardisation of
every image. Nothing is trained. Where the images have ImageNet labels (the names of foolbox's hold them), there
is a table of accuracies, too. Takes about ten minutes of one core. ``OUT/robustness.jsonl`` gets a line a condition;
one that is there is not measured again, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.report import environment, publish
from benchmarks.robustness_tables import BASELINE, SOURCE, tables_of
from ilmconvert import calibrate_bound, convert
from ilmconvert.data.corruptions import SEVERITIES
from ilmconvert.data.sample_photographs import load_lite0
from ilmconvert.data.transforms import create_transform, transform_config
from ilmconvert.evaluation.robustness import AFFINE, CLEAN, Condition, StandardizedInput, predicted
from ilmconvert.evaluation.robustness_plot import plot_agreement
from ilmconvert.export.fold import fold

#: Of each family one or two; ``--corruptions`` takes others.
CORRUPTIONS = (
    "contrast",
    "high contrast",
    "brightness",
    "gamma",
    "color cast",
    "fog",
    "gaussian noise",
    "gaussian blur",
    "mixture",
)
LABEL = re.compile(r"imagenet_\d+_(\d+)$")


def load_images(
    source: nn.Module, folder: Path, count: int, size: int | None
) -> tuple[list[Tensor], list[int | None], Callable[[Tensor], Tensor]]:
    """Up to ``count`` images from 0 to 1, the labelled ones first, their labels, and the normalisation left to do."""
    config = transform_config(source, size)
    transform = create_transform(**config, is_training=False, normalize=False)
    paths = sorted(folder.glob("*.png"))
    random.Random(0).shuffle(paths)
    labels = {p: LABEL.search(p.stem) for p in paths}
    paths = sorted(paths, key=lambda p: labels[p] is None)[:count]
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    made = [transform(Image.open(p).convert("RGB")).float() / 255 for p in paths]
    return made, [int(m[1]) if (m := labels[p]) else None for p in paths], lambda x: (x - mean) / std


def contenders(source: nn.Module, batches: Sequence[Tensor], *, without_images: bool) -> dict[str, nn.Module]:
    """The networks by title, the source first. The conversions are folded: the same function, faster."""
    std = torch.cat([x.std((1, 2, 3), correction=0) for x in batches]).mean().item()
    found: dict[str, nn.Module] = {SOURCE: source, BASELINE: StandardizedInput(source, std)}
    wanted = [("ILM-LN robust", "ilm_ln", batches), ("ILM-GN robust", "ilm_gn", batches)]
    if without_images:
        wanted.append(("ILM-LN robust, no images", "ilm_ln", None))
    for title, to, given in wanted:
        network = convert(source, to)
        limits = network.get_submodule(calibrate_bound(network, given)).restore_range
        found[title] = fold(network)
        found[title].limits = ", ".join(f"{limit:.4f}" for limit in limits)
        print(f"{title}: limits {found[title].limits}", file=sys.stderr)
    return {title: network.eval().to(memory_format=torch.channels_last) for title, network in found.items()}


def measured(
    networks: dict[str, nn.Module],
    images: Sequence[Tensor],
    normalize: Callable[[Tensor], Tensor],
    conditions: Sequence[Condition],
    path: Path | None,
) -> Iterator[tuple[Condition, dict[str, Tensor]]]:
    """Classes by network, condition after condition; from the file at ``path`` where they are there."""
    settings = [
        len(images),
        images[0].shape[1],
        *(f"{title} {getattr(n, 'limits', '')}" for title, n in networks.items()),
    ]
    lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
    there = {tuple(r["condition"]): r["classes"] for r in map(json.loads, lines) if r["settings"] == settings}
    for condition in conditions:
        key = (condition.name, condition.severity)
        if key not in there:
            ((_, classes),) = predicted(networks, images, normalize, [condition])
            there[key] = {title: found.tolist() for title, found in classes.items()}
            if path:
                with path.open("a", encoding="utf-8") as stream:
                    record = {"settings": settings, "condition": key, "classes": there[key]}
                    stream.write(json.dumps(record) + "\n")
            print(condition.name, condition.severity or "", file=sys.stderr, flush=True)
        yield condition, {title: torch.tensor(found) for title, found in there[key].items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__)
    parser.add_argument("folder", type=Path, help="with calibration/ and test/")
    parser.add_argument("--images", type=int, default=100, help="to measure on, at most")
    parser.add_argument("--corruptions", nargs="*", default=list(CORRUPTIONS))
    parser.add_argument("--severities", nargs="+", type=int, choices=SEVERITIES, default=list(SEVERITIES))
    parser.add_argument("--without-images", action="store_true", help="a bound from no images, too")
    parser.add_argument("--size", type=int, help="of the images; the network's unless given")
    parser.add_argument("--out", type=Path, help="folder for robustness.md, .json and .svg")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    source = load_lite0()
    images, labels, normalize = load_images(source, arguments.folder / "test", arguments.images, arguments.size)
    calibration, _, _ = load_images(source, arguments.folder / "calibration", 200, arguments.size)
    batches = normalize(torch.stack(calibration)).split(8)
    networks = contenders(source, batches, without_images=arguments.without_images)
    plain = [Condition(name) for name in (CLEAN, *AFFINE)]
    levels = [[Condition(name, severity) for name in arguments.corruptions] for severity in arguments.severities]
    path = arguments.out / "robustness.jsonl" if arguments.out else None
    # Severity by severity, so that a measurement that is stopped early has something of everything.
    found = dict(measured(networks, images, normalize, sum(levels, plain), path))
    by_name = [Condition(n, s) for n in arguments.corruptions for s in sorted(arguments.severities)]
    tables, rows = tables_of({condition: found[condition] for condition in plain + by_name}, labels)
    where = {**environment("cpu"), "calibration images": len(calibration)}
    publish("robustness", tables, where, arguments.out)
    if arguments.out:
        plot_agreement(rows, arguments.out / "robustness.svg")


if __name__ == "__main__":
    main()
