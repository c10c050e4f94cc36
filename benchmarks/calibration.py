"""What calibration does for the starts that aren't exact, on the real EfficientNet-Lite0 and real photographs.

``python -m benchmarks.photographs DIR`` makes the photographs, ``python -m benchmarks.calibration DIR --out OUT`` the
tables: agreement with the source on ``DIR/test`` before and after a calibration on ``DIR/calibration``, for the
paper's layers and for plain ones; and the same for a plain GroupNorm network that is then distilled from the source
on those unlabelled photographs. Without DIR the sample photographs and their crops take their place: one half of the
photographs to calibrate, the other half to measure.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import Cell, Table, environment, publish
from ilmconvert import convert
from ilmconvert.calibration import calibrate
from ilmconvert.calibration.score import run, score
from ilmconvert.samples import Picture, load_lite0, preprocess, sample_pictures
from ilmconvert.tally import wilson

TARGETS = ("ilm_ln", "ilm_gn", "ilm_in", "ln", "gn", "in")
BATCH = 16
LEARNING_RATE = 1e-3


def pictures(source: nn.Module, folder: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """Calibration and test pictures, (N, 3, H, W)."""
    if folder is None:
        found = sample_pictures()
        # a photograph and its two crops stay together
        halves = [[p for i, p in enumerate(found) if i // 3 % 2 == half] for half in (0, 1)]
    else:
        halves = [[_picture(p) for p in sorted((folder / part).glob("*.png"))] for part in ("calibration", "test")]
    random.Random(0).shuffle(halves[0])
    return preprocess(source, halves[0][:count]), preprocess(source, halves[1])


def _picture(path: Path) -> Picture:
    return Picture(path.stem, Image.open(path).convert("RGB"), whole=True)


def measured(model: nn.Module, source_outputs: list[list[Tensor]], test: Tensor) -> dict[str, Cell]:
    """Agreement with the source on the test pictures, its interval, and the error of the logits."""
    found = score(run(model, [(x,) for x in test.split(BATCH)]), source_outputs)
    assert found.agreement is not None
    low, high = wilson(round(found.agreement * len(test)), len(test))
    return {"agreement": found.agreement, "95 %": f"{low:.2f} to {high:.2f}", "error": found.error}


def calibrated(
    source: nn.Module, to: str, images: Tensor, test: Tensor, expected: list[list[Tensor]]
) -> list[dict[str, Cell]]:
    """Rows of one target: the start, constants only, and all values."""
    rows: list[dict[str, Cell]] = []
    for step in ("start", "constants", "with meta-network")[: 3 if to.startswith("ilm") else 2]:
        model, began = convert(source, to, init="moments"), time.perf_counter()
        kept = seconds = None
        if step != "start":
            kept = calibrate(model, images.split(BATCH), source=source, meta=step != "constants").kept
            seconds = time.perf_counter() - began
        rows.append({"layer": to, "values": step, **measured(model, expected, test), "kept": kept, "seconds": seconds})
    return rows


def distilled(
    source: nn.Module, targets: Sequence[str], images: Tensor, test: Tensor, expected: list[list[Tensor]], epochs: int
) -> Table:
    """The plain targets: start, calibrated, then distilled."""
    table = Table("Plain networks, then distilled from the source on the calibration pictures, unlabelled")
    for to in (to for to in targets if not to.startswith("ilm")):
        model = convert(source, to)
        table.rows.append({"layer": to, "values": "start", **measured(model, expected, test)})
        calibrate(model, images.split(BATCH), source=source)
        table.rows.append({"layer": to, "values": "calibrated", **measured(model, expected, test)})
        distil(model, source, images, epochs)
        table.rows.append({"layer": to, "values": f"distilled, {epochs} epochs", **measured(model, expected, test)})
    return table


def distil(model: nn.Module, source: nn.Module, images: Tensor, epochs: int) -> None:
    """Trains all weights on the source's class probabilities for the pictures and their mirror images, in place."""
    both = torch.cat([images, images.flip(3)])
    with torch.no_grad():
        targets = torch.cat([source(x).log_softmax(1) for x in both.split(BATCH)])
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    steps = epochs * -(-len(both) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(both), generator=generator).split(BATCH):
            loss = F.kl_div(model(both[index]).log_softmax(1), targets[index], reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="with calibration/ and test/")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--pictures", type=int, default=128, help="for the calibration")
    parser.add_argument("--epochs", type=int, default=10, help="of the distillation; 0: none")
    parser.add_argument("--quick", action="store_true", help="few pictures at 64 pixels: to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for calibration.md and .json")
    arguments = parser.parse_args()
    source = load_lite0()
    images, test = pictures(source, arguments.folder, 8 if arguments.quick else arguments.pictures)
    if arguments.quick:
        images, test = (F.interpolate(x[:8], 64) for x in (images, test))
    expected = run(source, [(x,) for x in test.split(BATCH)])
    table = Table(f"Agreement with the source on {len(test)} other pictures, {len(images)} to calibrate")
    for to in arguments.targets:
        table.rows += calibrated(source, to, images, test, expected)
    tables = [table]
    if arguments.epochs:
        tables.append(distilled(source, arguments.targets, images, test, expected, arguments.epochs))
    publish("calibration", tables, environment("cpu"), arguments.out)


if __name__ == "__main__":
    main()
