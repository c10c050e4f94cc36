"""What calibration does for the starts that aren't exact, on the real EfficientNet-Lite0 and real photographs.

``python -m benchmarks.photographs DIR`` makes the photographs, ``python -m benchmarks.calibration DIR --out OUT`` the
tables: agreement with the source on ``DIR/test`` before and after a calibration on ``DIR/calibration``, for the
paper's layers and for plain ones; what the calibration tried, on the part of its images that it holds out; and the
plain networks distilled from the source on the same unlabelled photographs of ``DIR/calibration``, their norms only and
everything. ``DIR/test`` chooses nothing. Without DIR the sample photographs and their crops take their place: one half
of the photographs to calibrate, the other half to measure.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.report import Cell, Table, environment, publish
from ilmconvert import convert
from ilmconvert.calibration import Calibration, calibrate
from ilmconvert.calibration.score import run, score
from ilmconvert.data.sample_photographs import Photograph, load_lite0, preprocess, sample_photographs
from ilmconvert.evaluation.metrics import paired_difference, wilson
from ilmconvert.finetune.networks import norm_parameters

TARGETS = ("ilm_ln", "ilm_gn", "ilm_in", "ln", "gn", "in")
BATCH = 16
# Of AdamW, with one cycle. All weights at a tenth of the norms' rate: few images are soon learnt by heart.
NORM_RATE, RATE = 3e-3, 1e-4
Row = dict[str, Cell]


class Test:
    """Images that nothing is fitted to or chosen by, and what the source says of them."""

    def __init__(self, source: nn.Module, images: Tensor) -> None:
        self._batches = [(x,) for x in images.split(BATCH)]
        self._expected, self._count = run(source, self._batches), len(images)
        self._start: Tensor | None = None

    def row(self, layer: str, values: str, model: nn.Module, seconds: float | None = None) -> Row:
        """Agreement with the source and its interval, its change since the last row of a start, and the divergence."""
        found = run(model.eval(), self._batches)
        measured = score(found, self._expected)
        same = torch.cat([a[0].argmax(1) == b[0].argmax(1) for a, b in zip(found, self._expected, strict=True)])
        if values == "start":
            self._start = same
        assert self._start is not None
        gained, lost = int((same & ~self._start).sum()), int((self._start & ~same).sum())
        row: Row = {
            "layer": layer,
            "values": values,
            "agreement": measured.agreement,
            "95 %": _span(wilson(int(same.sum()), self._count)),
            "change, 95 %": None if values == "start" else _span(paired_difference(gained, lost, self._count)),
            "KL": measured.kl,
            "error": measured.error,
            "seconds": seconds,
        }
        print(*row.values(), file=sys.stderr, flush=True)
        return row


def _span(interval: tuple[float, float]) -> str:
    return "{:.2f} to {:.2f}".format(*interval)


def load_images(source: nn.Module, folder: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """Calibration and test images, (N, 3, H, W)."""
    if folder is None:
        found = sample_photographs()
        # a photograph and its two crops stay together
        halves = [[p for i, p in enumerate(found) if i // 3 % 2 == half] for half in (0, 1)]
    else:
        halves = [[_image(p) for p in sorted((folder / part).glob("*.png"))] for part in ("calibration", "test")]
    random.Random(0).shuffle(halves[0])
    return preprocess(source, halves[0][:count]), preprocess(source, halves[1])


def _image(path: Path) -> Photograph:
    return Photograph(path.stem, Image.open(path).convert("RGB"), whole=True)


def calibrated(source: nn.Module, to: str, images: Tensor, test: Test) -> tuple[nn.Module, list[Row], Calibration]:
    """The calibrated network, its rows before and after, and what was tried."""
    model = convert(source, to, init="moments")
    rows = [test.row(to, "start", model)]
    began = time.perf_counter()
    found = calibrate(model, images.split(BATCH), source=source)
    seconds = time.perf_counter() - began
    return model, [*rows, test.row(to, f"calibrated: {found.kept}", model, seconds)], found


def distilled(
    model: nn.Module, to: str, source: nn.Module, images: Tensor, test: Test, epochs: int, rate: float
) -> list[Row]:
    """Rows of a calibrated network whose norms are distilled, and of another one that is distilled as a whole."""
    rows = []
    ways = (("norms", _norms, NORM_RATE), ("all", lambda student: list(student.parameters()), rate))
    for what, chosen, highest in ways:
        student, began = copy.deepcopy(model), time.perf_counter()
        distil(student, source, images, epochs, chosen, highest)
        seconds = time.perf_counter() - began
        rows.append(test.row(to, f"then distilled: {what}", student, seconds))
    return rows


def _norms(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for _, parameter in norm_parameters(model)]


def distil(
    model: nn.Module,
    source: nn.Module,
    images: Tensor,
    epochs: int,
    chosen: Callable[[nn.Module], list[nn.Parameter]],
    rate: float,
) -> None:
    """Trains some parameters on the source's class probabilities for the images and their mirror images, in place."""
    both = torch.cat([images, images.flip(3)])
    with torch.no_grad():
        targets = torch.cat([source(x).log_softmax(1) for x in both.split(BATCH)])
    parameters = chosen(model.eval().requires_grad_(False))
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * -(-len(both) // BATCH))
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
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["ilm_ln", "ilm_gn", "ln", "gn"])
    parser.add_argument("--images", type=int, default=128, help="for the calibration")
    parser.add_argument("--epochs", type=int, default=6, help="of the distillation; 0: none")
    parser.add_argument("--rate", type=float, default=RATE, help="of the distillation of all weights")
    parser.add_argument("--quick", action="store_true", help="few images at 64 pixels: to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for calibration.md and .json")
    arguments = parser.parse_args()
    source = load_lite0()
    images, others = load_images(source, arguments.folder, 8 if arguments.quick else arguments.images)
    if arguments.quick:
        images, others = (F.interpolate(x[:8], 64) for x in (images, others))
    test = Test(source, others)
    tables = [
        Table(f"Agreement with the source on {len(others)} other images, {len(images)} to calibrate"),
        Table("What the calibration tried, on the images that it held out"),
        Table(f"Plain networks distilled on the {len(images)} images, unlabelled, {arguments.epochs} epochs"),
    ]
    for to in arguments.targets:
        model, rows, found = calibrated(source, to, images, test)
        tables[0].rows += rows
        held_out = [{"layer": to, "values": name, **tried._asdict()} for name, tried in found.scores.items()]
        tables[1].rows += [{**row, "": "kept" if row["values"] == found.kept else ""} for row in held_out]
        if arguments.epochs and not to.startswith("ilm"):
            tables[2].rows += distilled(model, to, source, images, test, arguments.epochs, arguments.rate)
    publish("calibration", [table for table in tables if table.rows], environment("cpu"), arguments.out)


if __name__ == "__main__":
    main()
