"""One network of another library: converted, compared, saved, loaded, trained a step, saved in its own way."""

from __future__ import annotations

import copy
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ilmconvert
from benchmarks.other_libraries.networks import NETWORKS, Network
from ilmconvert import ILMNorm, surgery
from ilmconvert.evaluation.difference import relative_difference
from ilmconvert.evaluation.tolerances import ROUNDING
from ilmconvert.surgery.left_behind import left_behind
from ilmconvert.surgery.outputs import outputs
from ilmconvert.testing.randomize import randomize_norms, wake_parameters

CHECKS = ("exact", "saved and loaded", "trained", "own save and load")


def check(name: str) -> dict[str, Any]:
    """The line of the network ``name``: every check is True, False with what went wrong, or None if it wasn't reached.

    Returns:
        JSON values: network, library, version; norms (layers that convert can take, by the plan), converted, left
        (why layers with running statistics or an unknown formula stayed, by name); error (largest error over largest
        output), dtype in which it was taken; one entry for each of :data:`CHECKS`; problem (None, or the first thing
        that went wrong); seconds.
    """
    network = NETWORKS[name]
    started = time.perf_counter()
    line: dict[str, Any] = {"network": name, "library": network.library, "version": None, "norms": 0, "converted": 0}
    line |= {"left": {}, "error": None, "dtype": None, **dict.fromkeys(CHECKS), "problem": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            line["version"] = version(network.library)
            _check(network, line)
        except Exception as error:  # one network's failure is its line
            line["problem"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    line["seconds"] = round(time.perf_counter() - started, 1)
    return line


def _check(network: Network, line: dict[str, Any]) -> None:
    torch.manual_seed(0)
    source = network.build().eval()
    randomize_norms(wake_parameters(source))
    run = network.run
    the_plan = surgery.plan(source, "ilm_gn")
    line["norms"] = len(the_plan.converted) + len(the_plan.errors)
    converted = _compare(source, run, line)
    state = {key: value.clone() for key, value in converted.state_dict().items() if isinstance(value, Tensor)}
    expected = _run(run, converted)
    _saved(network, converted, line, expected)
    _own(network, converted, line, expected)
    converted.load_state_dict(state, strict=False)
    _trained(run, converted, line)


def _compare(source: nn.Module, run: Callable[[nn.Module, torch.dtype], Any], line: dict[str, Any]) -> nn.Module:
    """The converted network; in float64 where float32 isn't enough for the depth."""
    converted = ilmconvert.convert(source)
    line["converted"], line["left"] = sum(isinstance(m, ILMNorm) for m in converted.modules()), left_behind(converted)
    for dtype in (torch.float32, torch.float64):
        pair = (source, converted)
        if dtype == torch.float64:
            wide = copy.deepcopy(source).double()
            pair = (wide, ilmconvert.convert(wide))
        error = relative_difference(*(_run(run, model, dtype) for model in pair))
        line |= {"error": error if error < float("inf") else None, "dtype": str(dtype).removeprefix("torch.")}
        if error <= ROUNDING[dtype]:
            line["exact"] = True
            return converted
    line["exact"] = False
    raise ValueError(f"relative error {error:.1e} in float64")


def _run(run: Callable[[nn.Module, torch.dtype], Any], model: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        # Complex numbers, as the real ones that they hold; whole numbers have nothing to round.
        found = [torch.view_as_real(t) if t.is_complex() else t for t in outputs(run(model, dtype))]
    found = [t for t in found if t.is_floating_point()]
    if not found or not all(t.isfinite().all() for t in found):
        raise ValueError("the outputs of the network itself aren't finite")
    if all(t.std() == 0 for t in found if t.numel() > 1):
        raise ValueError("the outputs of the network itself are constant")
    return found


def _saved(network: Network, converted: nn.Module, line: dict[str, Any], expected: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = ilmconvert.save(converted, Path(folder) / "model.safetensors")
        torch.manual_seed(2)
        loaded = ilmconvert.load(path, into=network.build()).eval()
    _assert_same(expected, _run(network.run, loaded), "the loaded network computes something else")
    line["saved and loaded"] = True


def _own(network: Network, converted: nn.Module, line: dict[str, Any], expected: Any) -> None:
    """``torch.save`` of the state dict, and ``load_state_dict`` into another conversion of the same network."""
    buffer = io.BytesIO()
    torch.save(converted.state_dict(), buffer)
    buffer.seek(0)
    again = ilmconvert.convert(randomize_norms(network.build(), seed=3)).eval()
    again.load_state_dict(torch.load(buffer, weights_only=True))
    _assert_same(expected, _run(network.run, again), "its state dict brings another network")
    line["own save and load"] = True


def _trained(run: Callable[[nn.Module, torch.dtype], Any], model: nn.Module, line: dict[str, Any]) -> None:
    """A step of SGD: every new layer that ran gets a finite gradient, and the outputs change."""
    before = _run(run, model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    torch.manual_seed(1)
    found = [t for t in outputs(run(model.train(), torch.float32)) if t.requires_grad]
    # Towards random targets: the squares of a normalised output, say, would be constant.
    real = [torch.view_as_real(t) if t.is_complex() else t for t in found]
    sum((t * torch.randn_like(t)).mean() for t in real).backward()
    grads = [
        p.grad
        for layer in model.modules()
        if isinstance(layer, ILMNorm)
        for p in layer.parameters()
        if p.grad is not None
    ]
    if not grads or not all(g.isfinite().all() for g in grads):
        raise ValueError("the new layers get no gradient, or none that is finite")
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if all(torch.equal(a, b) for a, b in zip(before, _run(run, model.eval()), strict=True)):
        raise ValueError("a step changes nothing")
    line["trained"] = True


def _assert_same(expected: Any, found: Any, message: str) -> None:
    if len(expected) != len(found) or not all(map(torch.equal, expected, found)):
        error = relative_difference(expected, found)
        raise ValueError(f"{message}: relative error {error:.1e}")
