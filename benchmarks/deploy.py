"""Exported networks: seconds, nodes, and onnxruntime's time, against the same networks with GroupNorm and BatchNorm.

``python -m benchmarks.deploy`` prints Markdown tables. The converted network's meta-network and rescaling are moved
away from their starts, as training does, so that nothing folds; *the model itself* is what ``torch.onnx.export`` makes
of it. A last table times the layer against GroupNorm while another process is busy. ``--aoti`` adds the networks as
AOTInductor compiles them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ilmconvert
from benchmarks.layer_cases import GROUP, ILM, inference, layers
from benchmarks.report import Table, environment, publish
from benchmarks.timing import interleaved
from ilmconvert.export.formats import export
from ilmconvert.models.create import create_model
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.difference import relative_difference
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline
from ilmconvert.testing import randomize_norms

MODELS = ("tf_efficientnet_lite0", "resnet50")
CONVERTED, ITSELF, GROUPED, SOURCE = "converted", "the model itself", "GroupNorm", "BatchNorm"
SMALL_MAPS = ((8, 2048, 7, 7), (1, 512, 14, 14))


class Count(TorchDispatchMode):
    """Counts the operations of torch that are called; a kernel launch each, or a view."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def trained(source: nn.Module) -> nn.Module:
    model = ilmconvert.convert(source)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, ILMNorm)):
            for parameter in layer.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def networks(name: str) -> dict[str, nn.Module]:
    source = randomize_norms(create_model(name, weights="none")).eval()
    converted = trained(source)
    found = {CONVERTED: converted, ITSELF: converted, GROUPED: group_norm_baseline(source, copy_affine=True).eval()}
    return {**found, SOURCE: source}


def write(kind: str, model: nn.Module, path: Path, size: int) -> None:
    if kind != ITSELF:
        export(model, path, size=size)
        return
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        example = (torch.randn(2, 3, size, size),)
        torch.onnx.export(model, example, path, dynamic_shapes=shapes, dynamo=True, verbose=False)


def measure(name: str, size: int, batches: tuple[int, ...], repeats: int, threads: int) -> tuple[Table, Table]:
    written, timed = Table(f"Export, {name}"), Table(f"onnxruntime, {name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    x = torch.randn(max(batches), 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        for kind, model in networks(name).items():
            path = Path(folder) / f"{kind}.onnx"
            start = time.perf_counter()
            write(kind, model, path, size)
            seconds = time.perf_counter() - start
            sessions[kind] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            with torch.no_grad():
                expected = model(x[:1])
            found = torch.from_numpy(runner(sessions[kind], x[:1])()[0])
            error = relative_difference([expected], [found])
            nodes = len(onnx.load(path, load_external_data=False).graph.node)
            written.rows.append({"network": kind, "seconds": seconds, "nodes": nodes, "error": error})
    for batch in batches:
        timed.rows += turns(batch, {kind: runner(s, x[:batch]) for kind, s in sessions.items()}, repeats)
    return written, timed


def turns(batch: int, candidates: dict[str, Callable[[], Any]], repeats: int) -> list[dict[str, Any]]:
    """Rows of times and of ratios to the networks with GroupNorm and BatchNorm."""
    times = interleaved(candidates, repeats)
    rows = []
    for kind, timing in times.items():
        ratios = {f"to {other}": timing.median / times[other].median for other in (GROUPED, SOURCE)}
        rows.append({"network": kind, "batch": batch, "ms": timing.median * 1e3, **ratios})
    return rows


def compiled(name: str, size: int, batches: tuple[int, ...], repeats: int) -> tuple[Table, Table]:
    """The same of AOTInductor's packages, on as many threads as torch has."""
    written, timed = Table(f"Compilation, {name}"), Table(f"AOTInductor, {name}")
    packages: dict[str, Any] = {}
    x = torch.randn(max(batches), 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        for kind, model in networks(name).items():
            if kind == ITSELF:
                continue
            start = time.perf_counter()
            path = export(model, Path(folder) / f"{kind}.pt2", format="aoti", size=size)
            seconds = time.perf_counter() - start
            packages[kind] = torch._inductor.aoti_load_package(str(path))
            with torch.no_grad():
                error = relative_difference([model(x[:1])], [packages[kind](x[:1])])
            written.rows.append({"network": kind, "seconds": seconds, "error": error})
        for batch in batches:
            timed.rows += turns(batch, {kind: partial(p, x[:batch]) for kind, p in packages.items()}, repeats)
    return written, timed


def runner(session: onnxruntime.InferenceSession, x: Tensor) -> Callable[[], Any]:
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, inputs)


def spin() -> None:
    """Keep as many threads busy as torch starts, until ended."""
    a = torch.randn(512, 512)
    while True:
        a = (a @ a).clamp_(-1, 1)


def small_maps(repeats: int) -> Table:
    """The layer alone and beside a busy process, and how many operations a call takes."""
    table = Table("The layer on small maps, forward")
    for beside in (False, True):
        other = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        if beside:
            other.start()
            time.sleep(5)
        for shape in SMALL_MAPS:
            x = torch.randn(shape)
            found = {k: m.eval() for k, m in layers(shape[1], "channels_last", False).items()}
            times = interleaved({k: inference(found[k], x) for k in (ILM, GROUP)}, repeats)
            own = times[ILM].median
            row = {"shape": str(shape), "another process": "busy" if beside else "none", "ms": own * 1e3}
            table.rows.append({**row, f"to {GROUP}": own / times[GROUP].median})
        if beside:
            other.terminate()
            other.join()
    return table


def operations() -> Table:
    """Operations of torch, views included, that a layer issues where it has no kernel of its own."""
    table = Table("Operations of a call")
    for shape in SMALL_MAPS:
        x = torch.randn(shape)
        counts = {}
        for name, layer in layers(shape[1], "channels_last", False).items():
            with torch.no_grad(), Count() as count:
                layer.eval()(x)
            counts[name] = count.calls
        table.rows.append({"shape": str(shape), **counts})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deploy", description=__doc__)
    parser.add_argument("--models", nargs="+", help="timm or torchvision names instead of the standard two")
    parser.add_argument("--repeats", type=int, help="counted turns of each candidate")
    parser.add_argument("--threads", type=int, default=2, help="of onnxruntime")
    parser.add_argument("--aoti", action="store_true", help="compile by AOTInductor, too; minutes a network")
    parser.add_argument("--quick", action="store_true", help="one small network, few turns, to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for deploy.md and deploy.json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    quick = arguments.quick
    repeats = arguments.repeats or (1 if quick else 15)
    tables = []
    size, batches = (32, (1,)) if quick else (224, (1, 8))
    for name in arguments.models or (["test_resnet"] if quick else MODELS):
        tables += measure(name, size, batches, repeats, arguments.threads)
        if arguments.aoti:
            tables += compiled(name, size, batches, repeats)
    tables += [operations(), small_maps(repeats)]
    publish("deploy", tables, environment("cpu"), arguments.out)


if __name__ == "__main__":
    main()
