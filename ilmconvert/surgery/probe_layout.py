"""What of a module can be told before it is run: its channels, its vectors and what each may be, shapes to try."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import permutations

from torch import nn

from ilmconvert.surgery.probe import CannotProbe, tensors_of

_MAX_CHANNELS = 1 << 14
_MAX_VECTORS = 6
# From here on inputs are kept small.
_MANY = 128
_TOO_MANY = 1024
# Names only decide what is tried first.
_USUAL = {
    "running_mean": re.compile(r"mean|mu$", re.IGNORECASE),
    "running_var": re.compile(r"var|sigma|std", re.IGNORECASE),
    "weight": re.compile(r"weight|gamma|scale|gain", re.IGNORECASE),
    "bias": re.compile(r"bias|beta|shift|offset", re.IGNORECASE),
}


def assignments(names: Sequence[str], roles: Sequence[str], required: int) -> list[dict[str, str]]:
    """Every way to give as many vectors as can be a role, of which the first ``required`` are needed; likeliest first.

    >>> assignments(["beta", "gamma"], ["weight", "bias"], required=0)[0]
    {'weight': 'gamma', 'bias': 'beta'}
    """
    optional: list[str | None] = [None] * (len(roles) - required)
    ways = {way for way in permutations([*names, *optional], len(roles)) if None not in way[:required]}
    fewest = min((way.count(None) for way in ways), default=0)

    def unlikely(way: tuple[str | None, ...]) -> tuple[int, tuple[str, ...]]:
        usual = sum(
            bool(name and _USUAL[role].search(name.rsplit(".", 1)[-1])) for role, name in zip(roles, way, strict=True)
        )
        return -usual, tuple(map(str, way))

    likely = sorted((way for way in ways if way.count(None) == fewest), key=unlikely)
    return [{role: name for role, name in zip(roles, way, strict=True) if name} for way in likely]


def vectors_of(module: nn.Module, skip: Iterable[str] = ()) -> tuple[int, list[str]]:
    """C, and the names of the tensors that have one element a channel; without those of the direct children ``skip``.

    Raises:
        CannotProbe: there are tensors of other sizes, or none that tells C.

    >>> vectors_of(nn.BatchNorm2d(8))
    (8, ['weight', 'bias', 'running_mean', 'running_var'])
    """
    found = list(tensors_of(module, skip=frozenset(skip)))
    unique = {id(t): (name, t) for name, t in reversed(found) if t.is_floating_point() and t.dim()}
    tensors = list(unique.values())
    sizes = {t.numel() for _, t in tensors if t.numel() != 1} or ({1} if tensors else _declared_channels(module))
    if len(sizes) != 1:
        raise CannotProbe("its tensors aren't one vector a channel" if sizes else "nothing in it tells its channels")
    channels = sizes.pop()
    vectors = [name for name, t in tensors if t.numel() == channels == max(t.shape)]
    if not 0 < channels <= _MAX_CHANNELS or len(vectors) > _MAX_VECTORS:
        raise CannotProbe("its tensors aren't those of a norm")
    return channels, vectors[::-1]


def _declared_channels(module: nn.Module) -> set[int]:
    """C of a norm of torch in ``module``, or that it derives from, which has no tensors."""
    found = set()
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase):
            found.add(m.num_features)
        elif isinstance(m, nn.GroupNorm):
            found.add(m.num_channels)
    return found


def input_shapes(channels: int) -> list[tuple[int, ...]]:
    """Of two to five dimensions, the likeliest first; no other length is C.

    >>> input_shapes(8)
    [(3, 8, 5, 6), (3, 8, 5), (3, 8, 4, 6, 5), (3, 8)]
    """
    small = (2, 3, 2, 2) if channels > _MANY else (3, 5, 6, 4, 2, 7)
    n, a, b, c = [length for length in small if length != channels][:4]
    deep = [(n, channels, a, b), (n, channels, a), (n, channels, c, b, a)]
    # Vectors of shape (C, 1, 1) make (C, N, C) of an input (N, C).
    return deep if channels > _TOO_MANY else [*deep, (n, channels)]
