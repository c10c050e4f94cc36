"""State dicts in what a training script wrote: which entries are some, and which of them is meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ilmconvert.models.pickle_stand_ins import NumpyArray

#: Entries of averaged weights, which timm's loaders and others prefer.
AVERAGED = ("state_dict_ema", "model_ema", "ema")
#: Where training scripts keep the weights, in the order in which they are looked for; then any other entry.
KNOWN = (*AVERAGED, "state_dict", "model")
#: Entries that hold tensors and no weights: these and what begins with these.
_NO_WEIGHTS = ("optim", "lr_sched", "scheduler", "scaler", "amp", "callbacks", "loops", "rng", "random")
_DEEPEST = 5
_PROGRESS = (("epoch", "epoch"), ("iteration", "iteration"), ("iter", "iteration"), ("global_step", "step"))


def state_dicts(content: Any) -> dict[str, dict[str, Tensor]]:
    """Every state dict in ``content`` by its dotted place, the likely ones first; "" is the content itself.

    What is no tensor is left out of them, be it None.

    >>> import torch
    >>> list(state_dicts({"epoch": 3, "model": {"weight": torch.ones(2)}, "ema": {"weight": torch.ones(2)}}))
    ['ema', 'model']
    """
    return dict(_found(content, "", _DEEPEST))


def _found(content: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return
    inside = False
    names = [key for key in content if key not in KNOWN and not key.lower().startswith(_NO_WEIGHTS)]
    for key in (*KNOWN, *names):
        if depth and isinstance(content.get(key), Mapping):
            for found in _found(content[key], f"{place}.{key}" if place else key, depth - 1):
                inside = True
                yield found
    tensors = {key: t for key, value in content.items() if (t := _tensor(value)) is not None}
    if tensors and not inside:
        yield place, tensors


def _tensor(value: Any) -> Tensor | None:
    return value.tensor if isinstance(value, NumpyArray) else value if isinstance(value, Tensor) else None


def likely(places: list[str]) -> list[str]:
    """Those of the places that may be meant where nobody has said: the first that is known, or all.

    >>> likely(["state_dict_ema", "state_dict"]), likely(["student", "teacher"])
    (['state_dict_ema'], ['student', 'teacher'])
    """
    first = [place for place in places[:1] if place.partition(".")[0] in ("", *KNOWN)]
    return first or places


def named(found: Mapping[str, dict[str, Tensor]], entry: str) -> tuple[str, dict[str, Tensor]] | None:
    """The state dict that ``entry`` names, or the part of one whose tensors begin so; None where there is no such one.

    >>> import torch
    >>> named({"state_dict": {"q.w": torch.ones(1), "k.w": torch.zeros(1)}}, "state_dict.q")
    ('state_dict', {'q.w': tensor([1.])})
    """
    if entry in found:
        return entry, found[entry]
    below = [place for place in found if place.startswith(f"{entry}.")]
    if len(below) == 1:
        return below[0], found[below[0]]
    for place, tensors in found.items():
        start = entry.removeprefix(f"{place}.") if place else entry
        part = {key: t for key, t in tensors.items() if key.startswith(f"{start}.")}
        if part and (not place or start != entry):
            return place, part
    return None


def progress(content: Any) -> dict[str, int]:
    """How far the training had come, as the file says: ``{"epoch": 12}``; empty where it doesn't.

    >>> import torch
    >>> progress({"model": {}, "epoch": torch.tensor(12)}), progress({"meta": {"iter": 300}})
    ({'epoch': 12}, {'iteration': 300})
    """
    places = [content, content.get("meta")] if isinstance(content, Mapping) else []
    for key, name in _PROGRESS:
        for place in places:
            value = place.get(key) if isinstance(place, Mapping) else None
            number = _tensor(value)
            if number is not None and number.numel() == 1:
                value = number.item()
            if isinstance(value, int | float) and float(value).is_integer():
                return {name: int(value)}
    return {}
