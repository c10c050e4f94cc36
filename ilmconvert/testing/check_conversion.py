"""A conversion with random statistics, checked against its plan, and its outputs against its source's."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert import surgery
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.errors import ConversionError
from ilmconvert.evaluation.outputs import output_error
from ilmconvert.evaluation.tolerances import ROUNDING
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery import Plan
from ilmconvert.surgery.difference import relative_difference
from ilmconvert.surgery.outputs import outputs
from ilmconvert.surgery.record_calls import on_calls
from ilmconvert.surgery.targets import config_of
from ilmconvert.testing.randomize import randomize_norms

#: Types and scales of gammas and betas, until one is exact. Deep networks with random statistics amplify rounding, a
#: few so much (attention that saturates) that even float64 isn't enough for gammas up to 2.
ATTEMPTS = ((torch.float32, 1.0), (torch.float64, 1.0), (torch.float64, 0.5))
#: Of the inputs.
BATCH = 2
#: Inputs whose last digits differ at random, on which a source shows how much it amplifies rounding.
NUDGED = 4


class CheckFailed(Exception):
    """A model failed a check; the message says which."""


def convert(source: nn.Module, line: dict[str, Any]) -> nn.Module | None:
    """The conversion, checked against its plan; None if every layer is refused, as it then has to be."""
    to = line["to"]
    the_plan = surgery.plan(source, to)
    refused = [entry.name for entry in the_plan.errors]
    line |= {"refused": len(refused), "converted": len(the_plan.converted), "skipped": skipped(the_plan)}
    if refused:
        try:
            surgery.convert(source, to)
        except ConversionError:
            the_plan = surgery.plan(source, to, exclude=refused)
        else:
            raise CheckFailed(f"plan refuses {len(refused)} layers, convert doesn't")
    if not the_plan.converted:
        return None
    converted = surgery.convert(source, to, exclude=refused or None)
    _check_replaced(source, converted, the_plan)
    line["parameters_added"] = count_parameters(converted) - count_parameters(source)
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
        if entry is not None and config_of(module) != entry.target:
            raise CheckFailed(f"{name} was planned as {entry.target} but is {module}")


def compare(source: nn.Module, line: dict[str, Any], size: int | None, seed: int) -> nn.Module | None:
    """The converted model, in the first attempt in which it computes what the source does; None if all is refused."""
    rough: list[Tensor] | None = None
    errors = []
    for dtype, scale in ATTEMPTS:
        source = source.to(dtype)
        if scale != 1:
            randomize_norms(source, seed, scale=scale)
        converted = convert(source, line)
        if converted is None:
            return None
        inputs = example_inputs(source, batch_size=BATCH, size=size, seed=seed)
        error = _largest_error(source, converted, inputs)
        line |= {"input": _shape(inputs), "dtype": str(dtype).rpartition(".")[2], "norm_scale": scale}
        line["relative_error"] = error if math.isfinite(error) else None
        errors.append(f"{error:.1e} in {line['dtype']}")
        if rough is None:
            rough = outputs_of(source, inputs)
            line["float32_error"] = line["relative_error"]
            if error > ROUNDING[dtype]:
                line["amplified_rounding"] = _amplified_rounding(source, inputs, rough, seed)
        elif "source_rounding" not in line:
            rounding = relative_difference(outputs_of(source, inputs), rough)
            line["source_rounding"] = rounding if math.isfinite(rounding) else None
        if error <= ROUNDING[dtype]:
            line["exact"] = True
            return converted
    raise CheckFailed(f"relative error {', '.join(errors)}")


def _amplified_rounding(source: nn.Module, inputs: tuple[Any, ...], expected: list[Tensor], seed: int) -> float | None:
    """How far the source's own outputs move if the last digit of its input does, as a part of the largest output."""
    generator = torch.Generator().manual_seed(seed)
    found = [relative_difference(expected, outputs_of(source, _nudged(inputs, generator))) for _ in range(NUDGED)]
    return max(found) if all(map(math.isfinite, found)) else None


def _nudged(value: Any, generator: torch.Generator) -> Any:
    """Every number of the tensors moved by a unit in its last place or left, at random."""
    if isinstance(value, (list, tuple)):
        return type(value)(_nudged(v, generator) for v in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    units = torch.randint(-1, 2, value.shape, generator=generator, device="cpu").to(value)
    return value * (1 + torch.finfo(value.dtype).eps * units)


def _largest_error(source: nn.Module, converted: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The relative error of the outputs; of those of auxiliary heads, too, which only run in training mode."""
    layers = {name: m for name, m in converted.named_modules() if isinstance(m, ILMNorm)}
    called = set[str]()
    with on_calls(layers, lambda call: called.add(call.name)):
        error = output_error(source, converted, inputs).relative_error
        if layers.keys() - called:
            # Only the root is told that it trains: everything in it still evaluates.
            source.training = converted.training = True
            found = [outputs_of(model, inputs, evaluate=False) for model in (source, converted)]
            source.eval(), converted.eval()
            error = max(error, relative_difference(*found), key=lambda e: math.inf if math.isnan(e) else e)
    idle = [name for name in layers if name not in called]
    if idle:
        raise CheckFailed(f"{len(idle)} converted layers never ran, first {idle[0]}")
    return error


def outputs_of(model: nn.Module, inputs: tuple[Any, ...], *, evaluate: bool = True) -> list[Tensor]:
    with torch.no_grad():
        return outputs((model.eval() if evaluate else model)(*inputs))


def _shape(inputs: tuple[Any, ...]) -> list[int]:
    first = inputs[0]
    return [len(first), *first[0].shape] if isinstance(first, list) else list(first.shape)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def skipped(the_plan: Plan) -> dict[str, int]:
    return dict(Counter(entry.reason for entry in the_plan.skipped if entry.reason))
