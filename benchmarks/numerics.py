"""How far a converted BatchNorm is from its source's exact result, where numbers are extreme.

``python -m benchmarks.numerics`` prints, for each kind of running statistics and type, the error as a multiple of the
bound in docs/numerics.md, beside the error relative to the largest output and that of the source itself.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.report import Cell, Table, environment, publish
from ilmconvert import ILMNorm, convert
from ilmconvert.errors import PrecisionLost

CHANNELS, SAMPLES, SIZE = 64, 4, 9
TARGETS = ("ilm_gn", "ilm_ln", "ilm_in")
Statistics = tuple[float | Tensor, float | Tensor]


def every(step: int, special: float, usual: float) -> Tensor:
    """``special`` in every ``step``-th channel."""
    values = torch.full((CHANNELS,), usual)
    values[::step] = special
    return values


def columns(means: Sequence[float], deviations: Sequence[float]) -> Statistics:
    """Those of a table's columns, one channel each, again and again."""
    mean, std = (torch.tensor(values).repeat(CHANNELS // len(values)) for values in (means, deviations))
    return mean, std.square()


#: Running mean and variance. Of one group all channels are alike, or they are not: the second is harder.
CASES: dict[str, Statistics] = {
    "as usual": (torch.linspace(-2, 2, CHANNELS), torch.linspace(0.5, 2, CHANNELS)),
    "variance 0": (torch.linspace(-2, 2, CHANNELS), 0.0),
    "variance 0 in some channels": (torch.linspace(-2, 2, CHANNELS), every(4, 0.0, 1.0)),
    "variance 1e-12": (0.0, 1e-12),
    "variance 1e-12 in some channels": (0.0, every(2, 1e-12, 1.0)),
    "variance 1e12": (0.0, 1e12),
    "variance 1e12 in some channels": (0.0, every(2, 1e12, 1.0)),
    "mean 1e6": (1e6, 1.0),
    "mean 1e6 in some channels": (every(2, 1e6, 0.0), 1.0),
    "mean 1e6, variance 1e12": (1e6, 1e12),
    "mean 1e15": (1e15, 1e30),
    "a unix time beside a rate": (every(2, 1.6e9, 0.02), every(2, 1e14, 1e-4)),
    "raw columns of a census": columns((39, 2e5, 10, 1e3, 87, 40, 1e-3, 5e4), (14, 1e5, 3, 7e3, 403, 12, 1e-3, 2e4)),
    "raw columns of weather": columns((1013, 280, 5e-3, 5, 180, 1e5, 0.5, 3e-6), (8, 10, 3e-3, 3, 100, 800, 0.2, 1e-6)),
    "denormal variance": (0.0, 1e-40),
    "denormal mean and variance": (1e-40, 1e-40),
}
#: Of which groups are followed into training.
TRAINED = ("as usual", "mean 1e6 in some channels", "a unix time beside a rate")
#: The same where float16 ends.
HALF_CASES: dict[str, Statistics] = {
    **{name: CASES[name] for name in ("as usual", "variance 0", "variance 0 in some channels")},
    "denormal variance": (0.0, 1e-7),
    "variance 6e4 in some channels": (0.0, every(2, 6e4, 1.0)),
    "mean 300": (300.0, 1.0),
    "mean 300 in some channels": (every(2, 300.0, 0.0), 1.0),
}


class Types(NamedTuple):
    """Of the source's parameters, and of the input."""

    parameters: torch.dtype
    input: torch.dtype

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in self]
        return names[0] if names[0] == names[1] else f"{names[1]}, norms in {names[0]}"


TYPES = (
    *(Types(dtype, dtype) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)),
    *(Types(torch.float32, dtype) for dtype in (torch.float16, torch.bfloat16)),
)


class Errors(NamedTuple):
    """Of one conversion.

    Attributes:
        of_bound: the largest error over the bound's value there for one unit of rounding.
        of_output: the largest error over the largest output.
        source: the same of the source in its own type.
    """

    of_bound: float
    of_output: float
    source: float


def cases(types: Types) -> dict[str, Statistics]:
    return HALF_CASES if torch.float16 in types or torch.bfloat16 in types else CASES


def batch_norm(statistics: Statistics, dtype: torch.dtype) -> nn.BatchNorm2d:
    """With these running statistics, and random gamma and beta."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.BatchNorm2d(CHANNELS).eval().requires_grad_(False)
    layer.weight.uniform_(0.5, 2, generator=generator)
    layer.bias.normal_(generator=generator)
    for buffer, value in zip((layer.running_mean, layer.running_var), statistics, strict=True):
        buffer.copy_(torch.as_tensor(value).expand(CHANNELS))
    return layer.to(dtype)


def sample(layer: nn.BatchNorm2d, dtype: torch.dtype) -> Tensor:
    """Inputs whose statistics are the running ones; the second instance has a tenth of the contrast, the third none."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(SAMPLES, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)
    z *= torch.tensor([1.0, 0.1, 0.0, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    mean, std = layer.running_mean.double(), layer.running_var.double().sqrt()
    return (z * std.view(-1, 1, 1) + mean.view(-1, 1, 1)).to(dtype)


@torch.no_grad()
def errors(statistics: Statistics, types: Types, to: str, memory_format: torch.memory_format) -> Errors:
    """Against the source in float64."""
    source = batch_norm(statistics, types.parameters)
    exact = batch_norm(statistics, torch.float32)
    exact.load_state_dict({name: t.to(torch.float32) for name, t in source.state_dict().items()})
    if types.parameters == torch.float64:
        exact = source
    converted = convert(source, to)
    assert isinstance(converted, ILMNorm)
    x = sample(source, types.input).contiguous(memory_format=memory_format)
    wanted = exact.double()(x.double())
    error = (converted(x).double() - wanted).abs()
    unit = max(torch.finfo(dtype).eps for dtype in types) / 2
    largest = wanted.abs().max().item()
    worst = (error / (unit * bound(source, converted, x))).max().item()
    return Errors(worst, error.max().item() / largest, (source(x).double() - wanted).abs().max().item() / largest)


def bound(source: nn.BatchNorm2d, converted: ILMNorm, x: Tensor) -> Tensor:
    """The bound of docs/numerics.md for one unit: (N, C, 1, 1)."""
    assert converted.ref_mean is not None
    assert converted.ref_std is not None
    in_group = CHANNELS // converted.num_groups
    seen = x.double().reshape(len(x), converted.num_groups, -1).abs().amax(2)
    expected = converted.ref_mean.double().abs() + converted.ref_std.double()
    largest = torch.maximum(seen, expected).repeat_interleave(in_group, 1)
    gain = (source.weight.double() / (source.running_var.double() + source.eps).sqrt()).abs()
    return (gain * largest + source.bias.double().abs())[..., None, None]


@torch.no_grad()
def worst_channels(statistics: Statistics) -> dict[str, float]:
    """The largest error of a channel over its own largest output in float32: of each target, and of the source."""
    source = batch_norm(statistics, torch.float32)
    models = {to: convert(source, to) for to in TARGETS} | {"source itself": source}
    x = sample(source, torch.float32)
    wanted = copy.deepcopy(source).double()(x.double())
    return {name: _of_channels(model(x).double(), wanted) for name, model in models.items()}


class Trained(NamedTuple):
    """A layer in float32 after steps of training.

    Attributes:
        moved: the part of the channels whose ``weight`` a step changes.
        error: the largest error of a channel over its largest output, against the same layer in float64.
        plain: the same of a GroupNorm of as many groups on the same input.
    """

    moved: float
    error: float
    plain: float


def trained(statistics: Statistics, to: str, steps: int = 3) -> Trained:
    """After ``steps`` of SGD at a rate of 0.01 towards random targets, from decoders that aren't zero."""
    layer = convert(batch_norm(statistics, torch.float32), to).requires_grad_(True)
    assert isinstance(layer, ILMNorm)
    generator = torch.Generator().manual_seed(2)
    for decoder in (layer.weight_decoder, layer.bias_decoder):
        nn.init.normal_(decoder, std=0.1, generator=generator)
    # Without contrast a group of one channel is a division by sqrt(eps), here as in InstanceNorm.
    x = sample(batch_norm(statistics, torch.float32), torch.float32)[[0, 1, 3]]
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) * torch.randn(x.shape, generator=generator)).mean(0).sum().backward()
        optimizer.step()
    group_norm = nn.GroupNorm(layer.num_groups, CHANNELS, eps=layer.eps)
    with torch.no_grad():
        found = [_of_channels(one(x).double(), copy.deepcopy(one).double()(x.double())) for one in (layer, group_norm)]
    return Trained((layer.weight != before).float().mean().item(), *found)


def _of_channels(ours: Tensor, wanted: Tensor) -> float:
    return ((ours - wanted).abs().amax((0, 2, 3)) / wanted.abs().amax((0, 2, 3))).max().item()


def worst(measure: Callable[[torch.memory_format], Errors]) -> Errors:
    """Over both memory formats."""
    found = [measure(memory_format) for memory_format in (torch.contiguous_format, torch.channels_last)]
    return Errors(*(max(values) for values in zip(*found, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for the same as files")
    # What the tables show.
    warnings.simplefilter("ignore", PrecisionLost)
    tables = []
    for types in TYPES:
        rows: list[dict[str, Cell]] = []
        for name, statistics in cases(types).items():
            found = {to: worst(lambda f, to=to, s=statistics, t=types: errors(s, t, to, f)) for to in TARGETS}
            row: dict[str, Cell] = {"running statistics": name}
            row |= {f"{to}, of the bound's unit": found[to].of_bound for to in TARGETS}
            row |= {f"{to}, of the largest output": found[to].of_output for to in TARGETS}
            rows.append({**row, "source itself": found[TARGETS[0]].source})
        tables.append(Table(str(types), rows))
    channels = [{"running statistics": name, **worst_channels(statistics)} for name, statistics in CASES.items()]
    tables.append(Table("float32, the worst channel of each", channels))
    rows = []
    for name in TRAINED:
        for to in TARGETS:
            rows.append({"running statistics": name, "target": to, **trained(CASES[name], to)._asdict()})
    tables.append(Table("float32, after three steps of training", rows))
    publish("numerics", tables, environment("cpu"), parser.parse_args().out)


if __name__ == "__main__":
    main()
