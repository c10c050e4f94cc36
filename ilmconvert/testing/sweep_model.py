"""One model, one target: every check of a conversion."""

from __future__ import annotations

import tempfile
import time
import traceback
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert import checkpoint, surgery
from ilmconvert.checkpoint.save_load import read_header
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.errors import one_line
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.difference import relative_difference
from ilmconvert.surgery.outputs import outputs
from ilmconvert.testing import build_models
from ilmconvert.testing.check_conversion import (
    BATCH,
    CheckFailed,
    compare,
    convert,
    count_parameters,
    outputs_of,
    skipped,
)
from ilmconvert.testing.randomize import randomize_norms, wake_parameters

#: Larger models are converted without values and not run.
MAX_PARAMETERS = 400_000_000


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
        name: see :func:`ilmconvert.models.create.parse_name`; built without pretrained weights.
        to: the target of :func:`ilmconvert.convert`.
        seed: of weights, statistics and inputs.
        max_parameters: larger models are converted without values, on the meta device, and not run.
        parameters: their number, if known; saves a build of the model.

    Returns:
        JSON values: model, library, family, to, model_args; converted, skipped (reason to count), refused (layers
        whose groups the target can't keep, which are then excluded); relative_error (largest error over largest
        output), the dtype in which it was taken, norm_scale (of gammas and betas), float32_error and, where that is
        too large, amplified_rounding (of the source in float32 against itself with other last digits of the input)
        and source_rounding (of the source in float32 against itself in float64); input (shape), parameters,
        parameters_added; executed, exact, roundtrip, backward; measured (the date), seconds; error (None, or what went
        wrong).
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
            line["error"] = _described(error)
    line["measured"] = datetime.now(timezone.utc).date().isoformat()
    line["seconds"] = round(time.perf_counter() - started, 2)
    return line


def _check(line: dict[str, Any], seed: int, max_parameters: int) -> None:
    spec = build_models.for_sweep(line["model"])
    line |= {"library": spec.library, "family": build_models.family(spec), "model_args": dict(spec.model_args)}
    if line["parameters"] is None or line["parameters"] > max_parameters:
        shadow = build_models.build_on_meta(spec)
        line["parameters"] = count_parameters(shadow)
        if line["parameters"] > max_parameters:
            convert(shadow, line)
            return
        del shadow
    torch.manual_seed(seed)
    source = build_models.keep_boxes(wake_parameters(randomize_norms(spec.build().eval(), seed), seed))
    the_plan = surgery.plan(source, line["to"])
    if not the_plan.converted and not the_plan.errors:
        line["skipped"] = skipped(the_plan)
        return
    size = build_models.find_size(source, BATCH)
    converted = compare(source, line, size, seed)
    if converted is None:
        return
    line["executed"] = True
    del source
    inputs = example_inputs(converted, batch_size=BATCH, size=size, seed=seed)
    _check_roundtrip(converted, inputs)
    line["roundtrip"] = True
    _check_backward(converted, example_inputs(converted, batch_size=1, size=size, seed=seed), seed)
    line["backward"] = True


def _check_roundtrip(converted: nn.Module, inputs: tuple[Any, ...]) -> None:
    dtype = next(p.dtype for p in converted.parameters() if p.is_floating_point())
    expected = outputs_of(converted, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        checkpoint.save(converted, path)
        if read_header(path)["spec"] is None:
            raise CheckFailed("its checkpoint doesn't know how to build it")
        # Buffers that aren't in the file are built anew, in float32.
        loaded = checkpoint.load(path).to(dtype)
        ours, theirs = converted.state_dict(), loaded.state_dict()
        if ours.keys() != theirs.keys() or not all(_same(t, theirs[name]) for name, t in ours.items()):
            raise CheckFailed("the loaded model has other tensors")
        found = outputs_of(loaded, inputs)
    if len(found) != len(expected) or not all(map(_same, expected, found)):
        raise CheckFailed(
            f"the loaded model computes something else: relative error {relative_difference(expected, found)}"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _check_backward(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> None:
    """One step in training mode: every gradient of an ILM Norm has to be finite, and there has to be one."""
    torch.manual_seed(seed)
    model.train()
    extra = (build_models.targets(inputs[0], model),) if build_models.takes_targets(model) else ()
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


def _described(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = one_line(error)[:300]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
