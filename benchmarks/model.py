"""Whole networks converted, against the same networks with GroupNorm and with BatchNorm.

``python -m benchmarks.model`` prints Markdown tables of inference (no_grad, eval), of a training step (forward,
backward, SGD), of conversion and loading, and of what importing the package adds to importing torch.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ilmconvert
from benchmarks.report import Table, bounded, environment, publish
from benchmarks.timing import Timing, captured, interleaved
from ilmconvert.models.create import create_model
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline

MODELS = ("resnet50", "efficientnet_b0", "mobilenetv3_large_100", "densenet121")
ILM, GROUP, BATCH = "converted", "GroupNorm", "BatchNorm"
PARTS = ("networks", "surgery", "import")
MODES = ("eager", "compiled", "graphs", "compiled-graphs")
NETWORK_BOUND, CONVERT_BOUND, IMPORT_BOUND = 1.20, 1.5, 0.05
#: What the README imports.
README_NAMES = "convert, load, plan, save"


@dataclass(frozen=True)
class Way:
    """How the networks run: on which device, in which type and layout, eager, compiled or as CUDA graphs."""

    device: str = "cpu"
    bf16: bool = False
    channels_last: bool = False
    mode: str = "eager"

    def networks(self, name: str) -> dict[str, nn.Module]:
        source = create_model(name, weights="none")
        found = {ILM: ilmconvert.convert(source), GROUP: group_norm_baseline(source, copy_affine=True), BATCH: source}
        return {key: self._ready(model) for key, model in found.items()}

    def images(self, batch: int, size: int) -> Tensor:
        x = torch.randn(batch, 3, size, size, device=self.device)
        return x.to(memory_format=torch.channels_last) if self.channels_last else x

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16)

    def _ready(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.mode.startswith("compiled"):
            model.compile(dynamic=False)  # each batch size is one that a user would compile for
        return model

    def turn(self, step: Callable[[], object]) -> Callable[[], object]:
        return captured(step) if self.mode.endswith("graphs") else step


def inference(model: nn.Module, x: Tensor, way: Way) -> Callable[[], object]:
    def turn() -> None:
        with torch.no_grad(), way.autocast():
            model(x)

    return way.turn(turn)


def training(model: nn.Module, x: Tensor, way: Way) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def turn() -> None:
        optimizer.zero_grad(set_to_none=True)
        with way.autocast():
            loss = model(x).float().logsumexp(1).mean()
        loss.backward()
        optimizer.step()

    return way.turn(turn)


def row_of(name: str, batch: int, way: Way, times: dict[str, Timing]) -> dict[str, object]:
    to_group = times[ILM].median / times[GROUP].median
    # The bound is on one network on a CPU; the others are there to compare.
    bound = NETWORK_BOUND if (name, batch, way.device) == ("resnet50", 8, "cpu") else None
    return {
        "model": name,
        "batch": batch,
        "ms": times[ILM].median * 1e3,
        "GroupNorm, ms": times[GROUP].median * 1e3,
        "BatchNorm, ms": times[BATCH].median * 1e3,
        "to GroupNorm": to_group,
        "to BatchNorm": times[ILM].median / times[BATCH].median,
        "fastest to fastest": times[ILM].fastest / times[GROUP].fastest,
        **bounded(to_group, bound),
    }


def time_networks(names: list[str], batches: Sequence[int], size: int, way: Way, repeats: int) -> list[Table]:
    how = ", ".join([way.mode, "bf16" if way.bf16 else "float32", *(["channels_last"] if way.channels_last else [])])
    inferring, stepping = Table(f"Inference, {how}"), Table(f"Training step, {how}")
    for name in names:
        models = way.networks(name)
        for batch in batches:
            x = way.images(batch, size)
            turns = {k: inference(m.eval(), x, way) for k, m in models.items()}
            inferring.rows.append(row_of(name, batch, way, interleaved(turns, repeats, way.device)))
            turns = {k: training(m.train(), x, way) for k, m in models.items()}
            stepping.rows.append(row_of(name, batch, way, interleaved(turns, repeats, way.device)))
    return [inferring, stepping]


def time_surgery(name: str, repeats: int) -> Table:
    """Conversion against copying and Opacus's replacement, loading against building and reading by hand."""
    source = create_model(name, weights="none")
    converted = ilmconvert.convert(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        ilmconvert.save(converted, path)
        candidates: dict[str, Callable[[], object]] = {
            "copy.deepcopy": lambda: copy.deepcopy(source),
            "convert": lambda: ilmconvert.convert(source),
            "load": lambda: ilmconvert.load(path),
            "build + load_file": lambda: (create_model(name, weights="none"), load_file(path)),
        }
        fix = opacus_fix()
        if fix is not None:
            candidates["Opacus ModuleValidator.fix"] = lambda: fix(source)
        times = interleaved(candidates, repeats)
    table = Table(f"Conversion and loading, {name}")
    against = {"convert": "copy.deepcopy", "Opacus ModuleValidator.fix": "copy.deepcopy", "load": "build + load_file"}
    for step, timing in times.items():
        other = against.get(step)
        ratio = timing.median / times[other].median if other else None
        bound = CONVERT_BOUND if step == "convert" else None
        table.rows.append(
            {"step": step, "ms": timing.median * 1e3, "against": other, "ratio": ratio, **bounded(ratio, bound)}
        )
    return table


def opacus_fix() -> Callable[[nn.Module], nn.Module] | None:
    try:
        from opacus.validators import ModuleValidator
    except ImportError:
        return None
    fix: Callable[[nn.Module], nn.Module] = ModuleValidator.fix
    return fix


def time_import(repeats: int) -> Table:
    """Seconds that imports of the package add in a new process that has imported torch."""
    table = Table("Import")
    torch_alone = _seconds("", "import torch", repeats)
    for step, bound in (("import ilmconvert", IMPORT_BOUND), (f"from ilmconvert import {README_NAMES}", None)):
        added = _seconds("import torch", step, repeats)
        table.rows.append({"step": step, "seconds": added, "import torch": torch_alone, **bounded(added, bound)})
    return table


def _seconds(before: str, program: str, repeats: int) -> float:
    """The median time of a program in a new process, after another one."""
    code = f"import time; {before}\nstart = time.perf_counter(); {program}; print(time.perf_counter() - start)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    ]
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--models", nargs="+", help="timm or torchvision names instead of the standard four")
    parser.add_argument("--repeats", type=int, help="counted turns of each candidate")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes instead of 1 and 8")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--channels-last", action="store_true", help="images and weights with their channels last")
    parser.add_argument(
        "--mode", choices=MODES, default="eager", help="eager (default), compiled, as CUDA graphs, or both"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; all unless given")
    parser.add_argument("--quick", action="store_true", help="one small network, few turns, to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for model.md and model.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    started = time.perf_counter()
    quick, device = arguments.quick, arguments.device
    names = arguments.models or (["test_resnet"] if quick else list(MODELS))
    repeats = arguments.repeats or (1 if quick else 9)
    where = environment(device)
    way = Way(device, arguments.bf16, arguments.channels_last, arguments.mode)
    batches = arguments.batches or ([2] if quick else [1, 8])
    parts = arguments.only or PARTS
    tables = time_networks(names, batches, 64 if quick else 224, way, repeats) if "networks" in parts else []
    if "surgery" in parts:
        tables.append(time_surgery(names[0], repeats))
    if "import" in parts:
        tables.append(time_import(repeats))
    publish("model", tables, {**where, "seconds taken": round(time.perf_counter() - started)}, arguments.out)


if __name__ == "__main__":
    main()
