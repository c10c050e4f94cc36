"""One model, one target: every check that the library's promise consists of."""

from __future__ import annotations

import math
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ilmconvert
from ilmconvert.errors import ConversionError
from ilmconvert.fidelity import output_error
from ilmconvert.nn import ILMNorm
from ilmconvert.probe import outputs, probe_batch
from ilmconvert.surgery import Plan
from ilmconvert.sweep import build
from ilmconvert.sweep.randomize import randomize_norms, wake_parameters

#: Largest error over largest output that counts as exact.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
#: Types and scales of gammas and betas, until one is exact. Deep networks with random statistics amplify rounding, a
#: few so much (attention that saturates) that even float64 isn't enough for gammas up to 2.
ATTEMPTS = ((torch.float32, 1.0), (torch.float64, 1.0), (torch.float64, 0.5))
MAX_PARAMETERS = 400_000_000
_BATCH = 2


class CheckFailed(Exception):
    """A model broke the promise; the message says which part of it."""


def run_model(
    name: str,
    to: str,
    *,
    seed: int = 0,
    max_parameters: int = MAX_PARAMETERS,
    parameters: int | None = None,
) -> dict[str, Any]:
    """Convert a model with random statistics, compare it with its source, save, load and train it.

    Args:
        name: see :func:`ilmconvert.models.parse_name`; built without pretrained weights.
        to: the target of :func:`ilmconvert.convert`.
        seed: of weights, statistics and inputs.
        max_parameters: larger models are converted without values, on the meta device, and not run.
        parameters: their number, if known; saves a build of the model.

    Returns:
        JSON values: model, library, family, to, model_args; converted, skipped (reason to count), refused (layers
        whose groups the target can't keep, which are then excluded); relative_error (largest error over largest
        output), the dtype in which it was taken, norm_scale (of gammas and betas), float32_error and, where that is
        too large, source_rounding (of the source in float32 against itself in float64); input (shape), parameters,
        parameters_added; executed, exact, roundtrip, backward; seconds; error (None, or what went wrong).
    """
    started = time.perf_counter()
    line: dict[str, Any] = {
        "model": name,
        "library": None,
        "family": None,
        "to": to,
        "model_args": {},
        "converted": 0,
        "skipped": {},
        "refused": 0,
        "relative_error": None,
        "dtype": None,
        "norm_scale": 1.0,
        "input": None,
        "parameters": parameters,
        "parameters_added": None,
        "executed": False,
        "exact": False,
        "roundtrip": False,
        "backward": False,
        "error": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check(line, seed, max_parameters)
        except CheckFailed as error:
            line["error"] = str(error)
        except Exception as error:  # one model's failure must not end the sweep
            line["error"] = _one_line(error)
    line["seconds"] = round(time.perf_counter() - started, 2)
    return line


def _check(line: dict[str, Any], seed: int, max_parameters: int) -> None:
    spec = build.for_sweep(line["model"])
    line |= {"library": spec.library, "family": build.family(spec), "model_args": dict(spec.model_args)}
    if line["parameters"] is None or line["parameters"] > max_parameters:
        shadow = build.build_on_meta(spec)
        line["parameters"] = _count(shadow)
        if line["parameters"] > max_parameters:
            _convert(shadow, line)
            return
        del shadow
    torch.manual_seed(seed)
    source = build.keep_boxes(wake_parameters(randomize_norms(spec.build().eval(), seed), seed))
    the_plan = ilmconvert.plan(source, line["to"])
    if not the_plan.converted and not the_plan.errors:
        line["skipped"] = _skipped(the_plan)
        return
    size = build.find_size(source, _BATCH)
    converted = _compare(source, line, size, seed)
    if converted is None:
        return
    line["executed"] = True
    del source
    inputs = probe_batch(converted, batch_size=_BATCH, size=size, seed=seed)
    _check_roundtrip(converted, inputs)
    line["roundtrip"] = True
    _check_backward(converted, probe_batch(converted, batch_size=1, size=size, seed=seed), seed)
    line["backward"] = True


def _convert(source: nn.Module, line: dict[str, Any]) -> nn.Module | None:
    """The conversion, checked against its plan; None if every layer is refused, as it then has to be."""
    to = line["to"]
    the_plan = ilmconvert.plan(source, to)
    refused = [entry.name for entry in the_plan.errors]
    line |= {"refused": len(refused), "converted": len(the_plan.converted), "skipped": _skipped(the_plan)}
    if refused:
        try:
            ilmconvert.convert(source, to)
        except ConversionError:
            the_plan = ilmconvert.plan(source, to, exclude=refused)
        else:
            raise CheckFailed(f"plan refuses {len(refused)} layers, convert doesn't")
    if not the_plan.converted:
        return None
    converted = ilmconvert.convert(source, to, exclude=refused or None)
    _check_replaced(source, converted, the_plan)
    line["parameters_added"] = _count(converted) - _count(source)
    return converted


def _check_replaced(source: nn.Module, converted: nn.Module, the_plan: Plan) -> None:
    """Everything planned was replaced as planned, under every name, and nothing else changed its type."""
    before = dict(source.named_modules(remove_duplicate=False))
    after = dict(converted.named_modules(remove_duplicate=False))
    planned = {name: e for e in the_plan.converted for name in (e.name, *e.aliases)}
    if before.keys() != after.keys():
        # What stands inside a norm belongs to it; only its fused activations are kept.
        odd = [n for n in before.keys() ^ after.keys() if not any(n.startswith(f"{p}.") for p in planned)]
        if odd:
            raise CheckFailed(f"the conversion changed the modules {odd[:3]}")
    for name, module in after.items():
        entry = planned.get(name)
        if entry is None and name in before and type(module) is not type(before[name]):
            raise CheckFailed(f"{name} was not planned but became a {type(module).__name__}")
        if entry is not None and not (isinstance(module, ILMNorm) and module.config() == entry.target):
            raise CheckFailed(f"{name} was planned as {entry.target} but is {module}")


def _compare(source: nn.Module, line: dict[str, Any], size: int | None, seed: int) -> nn.Module | None:
    """The converted model, in the first attempt in which it computes what the source does; None if all is refused."""
    rough: list[Tensor] | None = None
    errors = []
    for dtype, scale in ATTEMPTS:
        source = source.to(dtype)
        if scale != 1:
            randomize_norms(source, seed, scale=scale)
        converted = _convert(source, line)
        if converted is None:
            return None
        inputs = probe_batch(source, batch_size=_BATCH, size=size, seed=seed)
        error = _largest_error(source, converted, inputs)
        line |= {"input": _shape(inputs), "dtype": str(dtype).rpartition(".")[2], "norm_scale": scale}
        line["relative_error"] = error if math.isfinite(error) else None
        errors.append(f"{error:.1e} in {line['dtype']}")
        if rough is None:
            rough = _outputs(source, inputs)
            line["float32_error"] = line["relative_error"]
        elif "source_rounding" not in line:
            rounding = _relative(_outputs(source, inputs), rough)
            line["source_rounding"] = rounding if math.isfinite(rounding) else None
        if error <= TOLERANCE[dtype]:
            line["exact"] = True
            return converted
    raise CheckFailed(f"relative error {', '.join(errors)}")


def _largest_error(source: nn.Module, converted: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The relative error of the outputs; of those of auxiliary heads, too, which only run in training mode."""
    layers = {m for m in converted.modules() if isinstance(m, ILMNorm)}
    with _calls(layers) as called:
        error = output_error(source, converted, inputs).relative_error
        if layers - called:
            # Only the root is told that it trains: everything in it still evaluates.
            source.training = converted.training = True
            found = [_outputs(model, inputs, evaluate=False) for model in (source, converted)]
            source.eval(), converted.eval()
            error = max(error, _relative(*found), key=lambda e: math.inf if math.isnan(e) else e)
    if layers - called:
        names = [name for name, m in converted.named_modules() if m in layers - called]
        raise CheckFailed(f"{len(names)} converted layers never ran, first {names[0]}")
    return error


@contextmanager
def _calls(modules: set[ILMNorm]) -> Iterator[set[nn.Module]]:
    called: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, args, result: called.add(module)) for m in modules]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: nn.Module, inputs: tuple[Any, ...], *, evaluate: bool = True) -> list[Tensor]:
    with torch.no_grad():
        return outputs((model.eval() if evaluate else model)(*inputs))


def _relative(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over largest value, of the worst pair; inf for other shapes."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return math.inf
    errors = [0.0]
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            scale = a.double().abs().max().item()
            errors.append((b.double() - a.double()).abs().max().item() / (scale or 1.0))
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _check_roundtrip(converted: nn.Module, inputs: tuple[Any, ...]) -> None:
    dtype = next(p.dtype for p in converted.parameters() if p.is_floating_point())
    expected = _outputs(converted, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        ilmconvert.save(converted, path)
        if ilmconvert.checkpoint.read_header(path)["spec"] is None:
            raise CheckFailed("its checkpoint doesn't know how to build it")
        # Buffers that aren't in the file are built anew, in float32.
        loaded = ilmconvert.load(path).to(dtype)
        ours, theirs = converted.state_dict(), loaded.state_dict()
        if ours.keys() != theirs.keys() or not all(_same(t, theirs[name]) for name, t in ours.items()):
            raise CheckFailed("the loaded model has other tensors")
        found = _outputs(loaded, inputs)
    if len(found) != len(expected) or not all(map(_same, expected, found)):
        raise CheckFailed(f"the loaded model computes something else: relative error {_relative(expected, found)}")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _check_backward(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> None:
    """One step in training mode: every gradient of an ILM Norm has to be finite, and there has to be one."""
    torch.manual_seed(seed)
    model.train()
    extra = (build.targets(inputs[0], model),) if build.takes_targets(model) else ()
    # The scale keeps the loss of networks with huge outputs finite; it changes no gradient's direction.
    found = [t for t in outputs(model(*inputs, *extra)) if t.requires_grad and t.numel()]
    loss = sum((t / t.detach().abs().max().clamp(min=1e-6)).square().mean() for t in found)
    assert isinstance(loss, Tensor)
    loss.backward()
    grads = {
        f"{name}.{key}": p.grad
        for name, m in model.named_modules()
        if isinstance(m, ILMNorm)
        for key, p in m.named_parameters(recurse=False)
        if p.grad is not None
    }
    bad = [name for name, grad in grads.items() if not grad.isfinite().all()]
    if bad:
        raise CheckFailed(f"{len(bad)} of {len(grads)} gradients aren't finite, first {bad[0]}")
    if not any(grad.any() for grad in grads.values()):
        raise CheckFailed("no ILM Norm got a gradient")


def _shape(inputs: tuple[Any, ...]) -> list[int]:
    first = inputs[0]
    return [len(first), *first[0].shape] if isinstance(first, list) else list(first.shape)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _skipped(the_plan: Plan) -> dict[str, int]:
    return dict(Counter(entry.reason for entry in the_plan.skipped if entry.reason))


def _one_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
