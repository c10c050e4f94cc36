"""Whoever else looks at a norm: what a model does with it beside calling it, found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ilmconvert.surgery.fixed_references import OF_A_GLOBAL
from ilmconvert.surgery.read_search import CLASS
from ilmconvert.surgery.readers import Reader, readers
from ilmconvert.surgery.references import references
from ilmconvert.surgery.replacement import CURE
from ilmconvert.surgery.sources import NormDescription, find_source, reason_to_skip, recognition

# Where the classes are from that fuse a convolution with a BatchNorm, and read the latter's statistics.
_FUSING = ("torch.ao.nn.intrinsic", "torch.nn.intrinsic")
# Of a norm itself: it is its class's, or the conversion is refused.
_OWN_FORWARD = ".forward (a bound method)"
_COUNTERS = frozenset({"num_batches_tracked"})


class LooseNorm(NamedTuple):
    """A norm that no module registers, and where the model holds it."""

    path: str
    module: nn.Module


class Surroundings:
    """What stands around the norms of a model.

    Args:
        model: isn't changed.
        norms: those that modules of the model register, with all their names.

    Attributes:
        loose: norms that no module registers, which state dicts and ``.to()`` miss, too.

    >>> model = nn.Sequential(nn.BatchNorm2d(3))
    >>> model.others = [nn.BatchNorm2d(3)]
    >>> Surroundings(model, {model[0]: ["0"]}).loose[0].path
    'others[0]'
    """

    loose: tuple[LooseNorm, ...]

    def __init__(self, model: nn.Module, norms: Mapping[nn.Module, list[str]]) -> None:
        self._names = norms
        self._fixed: dict[int, str] = {}
        self.loose = tuple(self._look_for_holders(model, norms))
        self._parents = {
            id(child): parent
            for parent in model.modules()
            if type(parent).__module__.startswith(_FUSING)
            for child in parent.children()
        }
        self._owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._owners.setdefault(id(parameter), []).append(name)
        self._readers: dict[int, list[Reader]] = {}
        for reader in readers(model, norms):
            self._readers.setdefault(id(reader.norm), []).append(reader)

    def _look_for_holders(self, model: nn.Module, norms: Mapping[nn.Module, list[str]]) -> Iterator[LooseNorm]:
        registered = {id(module) for module in model.modules()}
        known = {id(norm) for norm in norms}
        seen = set[int]()
        inside = [
            f".{name}".rstrip(".") + "." for names in norms.values() for name in names
        ]  # what a norm holds is its own matter

        def wanted(module: nn.Module) -> bool:
            return id(module) in known or (id(module) not in registered and _is_norm(module))

        for found in references(model, wanted):
            if id(found.module) in known:
                if found.slot is None and not found.path.endswith(_OWN_FORWARD):
                    self._fixed.setdefault(id(found.module), found.path)
            elif OF_A_GLOBAL in found.path:
                continue  # another model, such as a teacher
            elif id(found.module) not in seen and not f".{found.path}".startswith(tuple(inside)):
                seen.add(id(found.module))
                inside.append(f".{found.path}.")
                yield LooseNorm(found.path, found.module)

    def reason(self, module: nn.Module, source: NormDescription, *, asked_for: bool) -> str | None:
        """Why ``module`` has to stay, or None; ``asked_for`` tells that the user included it by a pattern."""
        parent = self._parents.get(id(module))
        if parent is not None:
            name = f"{type(parent).__module__.partition('.modules')[0]}.{type(parent).__name__}"
            return f"a part of {name}, which reads its statistics: convert the model before it is fused"
        found = self._readers.get(id(module), [])
        if source.num_groups is not None:  # gamma and beta are what they were
            found = [reader for reader in found if reader.attribute == CLASS]
        if not found or asked_for:
            return None
        cure = "include=[..., its name] converts it all the same"
        return f"{found[0]}, which its new layer lacks or means otherwise ({cure})"

    def error(self, module: nn.Module, source: NormDescription) -> str | None:
        """Why ``module`` can't be replaced, or None."""
        if _has_forward(module):
            cure = "delete that attribute, or exclude the norm"
            if "_hf_hook" in vars(module):
                cure = "call accelerate.hooks.remove_hook_from_module(model, recurse=True) first"
            return f"its forward was set on the instance, and would be lost: {cure}"
        if id(module) in self._fixed:
            return f"{self._fixed[id(module)]} holds it {CURE}"
        return self._tied(module) if source.num_groups is None else None

    def _tied(self, module: nn.Module) -> str | None:
        """Parameters of a batch-level norm take new values, which differ from norm to norm."""
        for own, parameter in module._parameters.items():
            owners = [] if parameter is None else self._owners.get(id(parameter), [])
            others = [name for name in owners if name not in {f"{n}.{own}".lstrip(".") for n in self._names[module]}]
            if others:
                return (
                    f"its {own} is also {others[0]}, and the two would come apart: give each its own "
                    f"({own} = nn.Parameter({own}.detach().clone())), or exclude the norm"
                )
        return None

    def note(self, module: nn.Module, source: NormDescription) -> str | None:
        """What of ``module`` its new layer won't have as it was, or None."""
        notes = []
        lost = [name for name in vars(module) if name != "forward" and hasattr(nn.Module, name)]
        if recognition(module) is None:
            used = {id(t) for t in (source.weight, source.bias, source.running_mean, source.running_var)}
            own = (*module._parameters.items(), *module._buffers.items())
            lost += [name for name, t in own if t is not None and id(t) not in used and name not in _COUNTERS]
        if lost:
            notes.append(f"not carried over: {', '.join(lost)}")
        for name, tensor in (("weight", source.weight), ("bias", source.bias)):
            if tensor is not None and source.num_groups is None and _has_hooks(tensor):
                notes.append(f"the gradient hooks of its {name} go on with the new {name}, of another meaning")
        return "; ".join(notes) or None


def _has_forward(module: nn.Module) -> bool:
    """Whether a ``forward`` other than that of its class was set on a module."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks) or bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


def _is_norm(module: nn.Module) -> bool:
    return find_source(module) is not None or reason_to_skip(module) is not None
