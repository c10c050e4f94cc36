"""A file's names against a model's: the prefix that both differ by, and what is left different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

_COUNTER = "num_batches_tracked"
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 3


@dataclass(frozen=True)
class Match:
    """How a state dict fits a model.

    Attributes:
        prefix: what the file's names begin with and the model's don't.
        added: what the model's names begin with and the file's don't.
        tensors: by the model's names.
        outside: names in the file that don't begin with ``prefix``, or belong to parts that the model doesn't have.
        missing, unexpected: names that only the model or only the file has.
        wrong: names of tensors whose shapes differ.
        rivals: other prefixes under which the file fits as well.
    """

    prefix: str
    added: str
    tensors: dict[str, Tensor]
    outside: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]
    rivals: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every tensor of the model is there, and nothing is left over."""
        return not (self.missing or self.unexpected or self.wrong)


def match(own: Mapping[str, Tensor], state: Mapping[str, Tensor], converted: tuple[str, ...] = ()) -> Match:
    """The prefix under which most of the model's names and shapes are in the file, and how the two differ then.

    Args:
        own: the model's tensors; of a converted one those outside of its converted layers.
        state: the file's.
        converted: what the names of the tensors in converted layers begin with; the layers judge these themselves.

    >>> import torch
    >>> found = match({"fc.weight": torch.ones(2)}, {"model.fc.weight": torch.zeros(2), "queue": torch.ones(1)})
    >>> found.prefix, found.tensors, found.outside
    ('model.', {'fc.weight': tensor([0., 0.])}, ('queue',))
    """
    state = {key: t for key, t in state.items() if key != "n_averaged"}  # of torch's AveragedModel
    counts = _prefixes(own, state)
    added = _common(own)
    bare = _prefixes({key.removeprefix(added): t for key, t in own.items()}, state) if added else Counter[str]()
    if added and max(bare.values(), default=0) > max(counts.values(), default=0):
        counts = bare
    else:
        added = ""
    most = max(counts.values(), default=0)
    best = sorted((prefix for prefix in counts if counts[prefix] == most), key=lambda p: (p != "", len(p)))
    rivals = best[1:] if best and best[0] else []
    return _under(best[0] if best else "", added, own, state, tuple(rivals), converted)


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.`` and ``_orig_mod.`` off where every key has it (wrapped, averaged or compiled models).

    >>> import torch
    >>> list(strip_wrappers({"module._orig_mod.weight": torch.ones(2)}))
    ['weight']
    """
    result = {key: value for key, value in state.items() if key != "n_averaged"}
    while prefix := next((p for p in _WRAPPERS if result and all(k.startswith(p) for k in result)), None):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def _prefixes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Counter[str]:
    """For every prefix how many of the model's tensors the file holds under it, with the same shape."""
    counts = Counter[str]()
    for key, t in state.items():
        start = 0
        while True:
            mine = own.get(key[start:])
            if mine is not None and mine.shape == t.shape and not key.endswith(_COUNTER):
                counts[key[:start]] += 1
            start = key.find(".", start) + 1
            if not start:
                break
    return counts


def _common(own: Mapping[str, Tensor]) -> str:
    """What all of the model's names begin with, up to a dot."""
    first = next(iter(own), "").rpartition(".")[0]
    while first and not all(key.startswith(f"{first}.") for key in own):
        first = first.rpartition(".")[0]
    return f"{first}." if first else ""


def _under(
    prefix: str,
    added: str,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rivals: tuple[str, ...],
    converted: tuple[str, ...],
) -> Match:
    tensors = {added + key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    outside = [key for key in state if not key.startswith(prefix)]
    parts = {key.partition(".")[0] for key in own}
    unexpected = [key for key in tensors if key not in own and not key.startswith(converted)]
    if prefix:  # an encoder's own head, or a projector: the model has no part of that name
        foreign = [key for key in unexpected if "." in key and key.partition(".")[0] not in parts]
        outside += [prefix + key.removeprefix(added) for key in foreign]
        unexpected = [key for key in unexpected if key not in foreign]
        tensors = {key: t for key, t in tensors.items() if key not in foreign}
    return Match(
        prefix,
        added,
        tensors,
        tuple(outside),
        missing=tuple(key for key in own if key not in tensors and not key.endswith(_COUNTER)),
        unexpected=tuple(unexpected),
        wrong=tuple(key for key, t in tensors.items() if key in own and own[key].shape != t.shape),
        rivals=rivals,
    )


def some(names: Iterable[str]) -> str:
    """The first few."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
