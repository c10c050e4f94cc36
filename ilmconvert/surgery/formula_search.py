"""The search for the formula that a module computes, from its outputs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ilmconvert.nn.group_sizes import divisors
from ilmconvert.surgery import formulas
from ilmconvert.surgery.difference import relative_difference
from ilmconvert.surgery.probe import Probe
from ilmconvert.surgery.probe_layout import assignments, input_shapes, vectors_of

_BATCH_LEVEL = ("running_mean", "running_var", "weight", "bias")
_INSTANCE_LEVEL = ("weight", "bias")


@dataclass(frozen=True)
class Formula:
    """What a module was found to compute.

    Attributes:
        num_channels: C.
        eps: added to the variance.
        num_groups: groups of an instance-level formula; None for BatchNorm's.
        tensors: dotted names of ``running_mean``, ``running_var``, ``weight``, ``bias``, as far as there are such.
        act: the name of the child that is applied to the result.
        stock_act: or a new module of an activation that was found by its values.
    """

    num_channels: int
    eps: float
    num_groups: int | None
    tensors: dict[str, str] = field(default_factory=dict)
    act: str | None = None
    stock_act: nn.Module | None = None


@dataclass(frozen=True)
class Precision:
    """How far values may lie apart and still be the same.

    Attributes:
        output: of outputs, relative to the largest.
        eps: of solutions for eps, relative to the variance and eps.
        large: a bias behind which the usual activations are the identity to the last bit.
    """

    output: float
    eps: float
    large: float


PRECISION = {torch.float64: Precision(1e-9, 1e-9, 64.0), torch.float32: Precision(3e-6, 1e-4, 32.0)}


# Times the usual size: inputs that a bound would change.
_FAR = 1e3


class Other(Enum):
    """What a module does instead, as the reason why it stays."""

    UNKNOWN = "its outputs are those of no BatchNorm with running statistics, GroupNorm or InstanceNorm"
    LOCAL = "it computes every position by itself, and not as a BatchNorm does"
    CHANNELS_LAST = "it takes its channels last"
    REFUSES = "it doesn't run on random input of shape (N, C, *)"


class Search:
    """One search, on a copy of the module in one type."""

    def __init__(self, module: nn.Module, acts: Sequence[str], dtype: torch.dtype) -> None:
        self.num_channels, self.vectors = vectors_of(module, acts)
        self.probe, self.precision = Probe(module, dtype), PRECISION[dtype]
        self.acts = {name: self.probe.module._modules[name] for name in acts}
        self.generator = torch.Generator().manual_seed(0)
        self.declared = [v for m in module.modules() for v in vars(m).values() if type(v) is float]
        self.remove_acts()
        self.fill_all()
        # Of an InstanceNorm of torch an input of one dimension less is one instance.
        one = module._get_no_batch_dim() if isinstance(module, _InstanceNorm) else None
        shapes = [shape for shape in input_shapes(self.num_channels) if len(shape) != one]
        self.shapes = [shape for shape in shapes if self._accepts(shape)]

    def _accepts(self, shape: tuple[int, ...]) -> bool:
        return self.probe.run(self.normal(shape)) is not None

    def run(self) -> Formula | Other:
        """The formula, or what it is instead."""
        if not self.shapes:
            return Other.CHANNELS_LAST if self._takes_channels_last() else Other.REFUSES
        if self._takes_channels_last():
            return Other.CHANNELS_LAST
        local = self._is_local()
        find = self._instance_level if local is False else self._batch_level
        for behind in (False,) if self.acts else (False, True):
            verified = (self._verified(formula, behind) for formula in find(behind))
            if (found := next(filter(None, verified), None)) is not None:
                return found
        return Other.LOCAL if local else Other.UNKNOWN

    def remove_acts(self) -> None:
        """Let the module compute its norm alone."""
        self.probe.module._modules.update({name: nn.Identity() for name in self.acts})

    def fill_all(self, **roles: Tensor) -> None:
        """Random positive values for every vector, but those given by name."""
        self.probe.fill({name: roles.get(name, self._uniform(0.5, 2.0)) for name in self.vectors})

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        """Random input."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale

    def _uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.num_channels, generator=self.generator, dtype=torch.float64)

    def _takes_channels_last(self) -> bool:
        """Whether (N, *, C) is taken as well: then an axis of channels can't be told."""
        if not self.vectors or self.num_channels == 1:
            return False
        last = [(shape[0], *shape[2:], shape[1]) for shape in input_shapes(self.num_channels) if len(shape) > 2]
        return any(map(self._accepts, last))

    def _is_local(self) -> bool | None:
        """Whether one position of the input changes the output there alone; None where there is one position only."""
        shape = self.shapes[0]
        if len(shape) == 2:
            return None
        x = self.normal(shape)
        other = x.clone()
        other[..., 0] += 1
        before, after = self.probe.run(x), self.probe.run(other)
        return before is not None and after is not None and torch.equal(before[..., 1:], after[..., 1:])

    def _batch_level(self, behind: bool) -> Iterator[Formula]:
        """Solutions of BatchNorm's formula for eps, at means and variances of 0."""
        zero, large = (
            torch.zeros(self.num_channels).double(),
            torch.full((self.num_channels,), self.precision.large).double(),
        )
        for tensors in assignments(self.vectors, _BATCH_LEVEL, required=2):
            weight = self._uniform(0.5, 2.0)
            values = {"running_mean": zero, "running_var": zero, "weight": weight, "bias": large if behind else zero}
            self.fill_all(**{name: values[role] for role, name in tensors.items()})
            x = self.normal(self.shapes[0]).abs() + 0.5
            y = self.probe.run(x)
            if y is None:
                continue
            if "bias" in tensors:
                y = y - values["bias"][0]
            if not y.isfinite().any():
                yield Formula(self.num_channels, 0.0, None, tensors)
                continue
            gained = formulas.per_channel(weight, x) * x if "weight" in tensors else x
            total = (gained / y).square().flatten()
            eps = formulas.solve_eps(torch.zeros_like(total), total, self.precision.eps)
            if eps is not None:
                yield Formula(self.num_channels, self._snap(eps), None, tensors)

    def _instance_level(self, behind: bool) -> Iterator[Formula]:
        """Solutions of GroupNorm's formula for eps, for any number of groups."""
        shape = self.shapes[0]
        usual = dict.fromkeys((self.num_channels, 1, 32))
        groups = [g for g in {**usual, **dict.fromkeys(divisors(self.num_channels))} if self.num_channels % g == 0]
        for tensors in assignments(self.vectors, _INSTANCE_LEVEL, required=0):
            for num_groups in groups:
                eps = self._instance_eps(tensors, num_groups, shape, behind)
                if eps is not None:
                    yield Formula(self.num_channels, self._snap(eps), num_groups, tensors)

    def _instance_eps(
        self, tensors: dict[str, str], num_groups: int, shape: tuple[int, ...], behind: bool
    ) -> float | None:
        scale, eps = 1e-3, None
        for _ in range(3):
            eps = self._solve_instance(tensors, num_groups, shape, behind, scale)
            if eps is None:
                return None
            # Once more where eps is neither lost beside the variance nor hides it.
            scale = (eps / 10) ** 0.5 if eps > 1e-5 * scale**2 else scale * 1e-3
        return eps

    def _solve_instance(
        self, tensors: dict[str, str], num_groups: int, shape: tuple[int, ...], behind: bool, scale: float
    ) -> float | None:
        weight, base = self._uniform(1.0, 2.0), self.precision.large if behind and "bias" in tensors else 0.0
        values = {"weight": weight, "bias": torch.full_like(weight, base)}
        self.fill_all(**{name: values[role] for role, name in tensors.items()})
        x = self.normal(shape, scale)
        y = self.probe.run(x)
        mean, var = formulas.group_statistics(x, num_groups)
        deviation = x - mean
        clear = deviation.square() > 0.5 * var
        if y is None or not clear.any():
            return None
        gained = formulas.per_channel(weight, x) * deviation if "weight" in tensors else deviation
        total = (gained / (y - base)).square()
        eps = formulas.solve_eps(var[clear], total[clear], self.precision.eps)
        return 0.0 if eps is not None and eps < 1e-12 * scale**2 else eps

    def _snap(self, eps: float) -> float:
        return formulas.snap(eps, self.declared, 10 * self.precision.eps)

    def _verified(self, formula: Formula, behind: bool) -> Formula | None:
        """``formula``, with the activation behind it, where the module computes it for every input and any values."""
        pairs = list(self._pairs(formula))
        act: nn.Module | None = None
        if behind:
            act = formulas.find_activation(*pairs[0], self.precision.output)
            if act is None:
                return None
            pairs = [(act(z), y) for z, y in pairs]
        if not all(relative_difference([y], [z]) <= self.precision.output for z, y in pairs):
            return None
        if not self.acts:
            return Formula(**{**vars(formula), "stock_act": act})
        return self._with_child(formula)

    def _with_child(self, formula: Formula) -> Formula | None:
        """``formula`` with the one child, if any, that the module applies to the norm's result."""
        self.probe.module._modules.update(self.acts)
        pairs = list(self._pairs(formula))
        self.remove_acts()
        for name in (None, *self.acts):
            act = None if name is None else self.acts[name]
            with torch.no_grad():
                right = [(z if act is None else act(z.to(self.probe.dtype)).double(), y) for z, y in pairs]
            if all(relative_difference([y], [z]) <= self.precision.output for z, y in right):
                return Formula(**{**vars(formula), "act": name})
        return None

    def _pairs(self, formula: Formula) -> Iterator[tuple[Tensor, Tensor]]:
        """What the formula and the module make of random values and inputs, at variances of 1 and about eps."""
        small = max(formula.eps, 1e-12)
        for scale in (1.0, small**0.5):
            values = {
                "running_mean": scale * self.normal((self.num_channels,)),
                "running_var": scale**2 * self._uniform(0.3, 3.0),
                "weight": self.normal((self.num_channels,)).sign() * self._uniform(0.5, 2.0),
                "bias": self.normal((self.num_channels,)),
            }
            kept = {role: values[role].to(self.probe.dtype).double() for role in formula.tensors}
            self.fill_all(**{name: kept[role] for role, name in formula.tensors.items()})
            for shape in self.shapes:
                one = (1, *shape[1:])
                for x in (
                    self.normal(shape, scale),
                    self.normal(one, 2 * scale) + scale,
                    self.normal(one, _FAR * scale),
                ):
                    x = x.to(self.probe.dtype).double()
                    y = self.probe.run(x)
                    if y is not None:  # a single element a group is refused by some
                        yield _compute(formula, x, kept), y


def _compute(formula: Formula, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    if formula.num_groups is None:
        return formulas.batch_norm(x, values, formula.eps)
    return formulas.group_norm(x, values, formula.eps, formula.num_groups)
