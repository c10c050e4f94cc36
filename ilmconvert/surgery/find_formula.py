"""Which formula of a norm a module of unknown class computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ilmconvert.surgery.formula_search import Formula, Other, Search
from ilmconvert.surgery.probe import CannotProbe, other_inputs
from ilmconvert.surgery.probe_layout import vectors_of


def find_formula(module: nn.Module, acts: Sequence[str] = ()) -> Formula | Other:
    """The formula of ``module`` in evaluation mode, for every input and any values, or what it does instead.

    In float64 if the module computes in it, else in float32.

    Args:
        module: isn't changed.
        acts: direct children that may be an activation behind the norm.

    Raises:
        CannotProbe: it can't be run on its own; the message says why.

    >>> find_formula(nn.BatchNorm2d(6, eps=1e-3)).eps
    0.001
    >>> find_formula(nn.LayerNorm(6)).name
    'CHANNELS_LAST'
    """
    vectors_of(module, acts)
    if others := other_inputs(module):
        raise CannotProbe(f"its forward takes more than one input ({', '.join(others)})", norm_like=True)
    found = Search(module, acts, torch.float64).run()
    if not isinstance(found, Formula) and not _computes_in_float64(module, acts):
        found = Search(module, acts, torch.float32).run()
    return found


def works_with_calls_alone(module: nn.Module, inner: Sequence[str]) -> bool:
    """Whether ``module`` computes the same if the modules ``inner`` in it can be called and nothing else."""
    plain, bare = Search(module, (), torch.float32), Search(module, (), torch.float32)
    for name in inner:
        parent, _, child = name.rpartition(".")
        holder = bare.probe.module.get_submodule(parent)
        holder._modules[child] = _CallOnly(bare.probe.module.get_submodule(name))
    for shape in plain.shapes:
        for x in (plain.normal(shape), plain.normal((1, *shape[1:]))):
            wanted, found = plain.probe.run(x), bare.probe.run(x)
            if wanted is not None and (found is None or not torch.equal(wanted, found)):
                return False
    return True


class _CallOnly(nn.Module):
    """A module without attributes: what is asked of a norm that becomes another layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._call = (module,)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._call[0](x)
        return result


def _computes_in_float64(module: nn.Module, acts: Sequence[str]) -> bool:
    """Whether more digits of the input than float32 has change the output."""
    search = Search(module, acts, torch.float64)
    if not search.shapes:
        return False
    search.fill_all()
    x = search.normal(search.shapes[0])
    fine, coarse = search.probe.run(x), search.probe.run(x.float().double())
    return fine is not None and coarse is not None and not torch.equal(fine, coarse)
