"""Weights from a file into a model, strictly, and in words what was read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ilmconvert._constants import shown_by
from ilmconvert.errors import MisfitError, ModelError
from ilmconvert.models.match_names import Match, match, some, strip_wrappers
from ilmconvert.models.misfit import differences
from ilmconvert.models.state_dict_search import AVERAGED
from ilmconvert.models.weight_files import WeightFile, read_weight_file
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.module_state import state_of

logger = logging.getLogger("ilmconvert")


@dataclass(frozen=True)
class LoadedWeights:
    """Which weights a model was given; ``str`` says it in a sentence.

    Attributes:
        file: path of the file.
        entry: the entry of the file that they stood under; "" for the file itself.
        progress: how far the training had come, as in ``{"epoch": 12}``; empty where the file doesn't say.
        prefix: what was taken off their names.
        left_out: names of tensors that belong to no part of the model.
        unread: classes whose objects were left unread.
        other_entries: which hold weights, too.
    """

    file: Path
    entry: str
    progress: Mapping[str, int]
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    other_entries: tuple[str, ...] = ()

    _repr_html_ = shown_by("ilmconvert.report.notebook:weights")

    def __str__(self) -> str:
        averaged = " (averaged weights)" if self.is_averaged else ""
        how_far = "".join(f", {name} {value}" for name, value in self.progress.items())
        parts = [f"read {self.entry or 'the weights'}{averaged} of {self.file}{how_far}"]
        if self.other_entries:
            parts.append(f"it also holds {some(self.other_entries)} ({self.file}::{self.other_entries[0]})")
        if self.prefix:
            parts.append(f"without the prefix {self.prefix!r} of its names")
        if self.left_out:
            parts.append(f"left out: {len(self.left_out)} tensors of other parts ({some(self.left_out)})")
        if self.unread:
            parts.append(f"left unread: objects of {some(self.unread)}")
        return "; ".join(parts)

    @property
    def is_averaged(self) -> bool:
        """Whether the entry's name says that the weights are averages over the training."""
        return self.entry.partition(".")[0] in AVERAGED

    @property
    def was_chosen(self) -> bool:
        """Whether something else could have been meant."""
        return (self.is_averaged and bool(self.other_entries)) or bool(self.left_out)

    def announce(self, stacklevel: int = 2) -> None:
        """Warn of a choice, and log what else there is to say; of a file that is a state dict there is nothing."""
        if self.was_chosen:
            warnings.warn(str(self), stacklevel=stacklevel + 1)
        elif self.entry or self.progress or self.prefix or self.unread:
            logger.info("%s", self)

    def provenance(self) -> dict[str, Any]:
        """JSON values that say the same."""
        found = {"entry": self.entry, **self.progress, "prefix": self.prefix}
        return {"weights": self.file.name, **{key: value for key, value in found.items() if value != ""}}


def load_weights(model: nn.Module, weights: str | Path) -> LoadedWeights:
    """Give ``model`` the weights of a file, in place; every tensor of the model has to be there.

    Reads what training scripts write, without running code (:func:`~ilmconvert.models.weight_files.read_state_dict`).
    A prefix that the file's names have and the model's don't, or the other way round, is found by names and shapes. A
    converted model also takes the weights of its source: its ILM Norms then get what converting these would give.

    Args:
        model: in which nothing changes if anything fails.
        weights: the file, or ``FILE::ENTRY`` for a certain entry of it.

    Warns:
        UserWarning: says which weights were read, where others could have been meant.

    Raises:
        ModelError: the file can't be read or doesn't fit, or fits in more than one way.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"state_dict": {"module.weight": torch.ones(1, 2)}, "epoch": 3}, f"{folder}/last.pth")
    ...     found = load_weights(nn.Linear(2, 1, bias=False), f"{folder}/last.pth")
    >>> found.entry, found.progress, found.prefix
    ('state_dict', {'epoch': 3}, 'module.')
    """
    before = {key: t.clone() for key, t in state_of(model).items() if isinstance(t, Tensor)}
    try:
        found = load_into(model, read_weight_file(weights))
    except BaseException:
        nn.Module.load_state_dict(model, before, strict=False)
        raise
    found.announce(stacklevel=2)
    return found


def load_into(
    model: nn.Module, file: WeightFile, translate: Callable[[dict[str, Tensor]], bool] = lambda state: False
) -> LoadedWeights:
    """:func:`load_weights` of a file that was read; where it fails the model holds anything.

    Args:
        model: the model.
        file: what :func:`~ilmconvert.models.weight_files.read_weight_file` gave.
        translate: takes a state dict that doesn't fit, and says whether the model came to it in another way.
    """
    converted = tuple(f"{name}." if name else "" for name in _converted(model))
    tensors = {key: t for key, t in state_of(model).items() if isinstance(t, Tensor)}
    own = {key: t for key, t in tensors.items() if not (converted and key.startswith(converted))}
    found = {entry: match(own, state, converted) for entry, state in file.candidates.items()}
    fitting = [entry for entry in found if found[entry].fits]
    if len(fitting) > 1:
        raise ModelError(f"{file.path} fits the model in more than one way; name one: {file.choices(fitting)}")
    entry = fitting[0] if fitting else next(iter(found))
    best = found[entry]
    if best.fits and best.rivals:
        places = [".".join(filter(None, (entry, p.rstrip(".")))) for p in (best.prefix, *best.rivals)]
        raise ModelError(f"{file.path} fits the model in more than one way; name one: {file.choices(places)}")
    others = tuple(other for other in file.entries if other != entry)
    if best.fits:
        _load(model, best.tensors, file)
        return LoadedWeights(
            file.path, entry, file.progress, best.prefix, best.outside, file.unread, other_entries=others
        )
    state = strip_wrappers(file.candidates[entry])
    if not (_fits_by_its_own_rules(model, state) or translate(state)):
        raise _misfit(model, file, best, own, others)
    return LoadedWeights(file.path, entry, file.progress, unread=file.unread, other_entries=others)


def _converted(model: nn.Module) -> list[str]:
    return [name for layer in layers_of(model) for name in layer.names]


def _load(model: nn.Module, tensors: Mapping[str, Tensor], file: WeightFile) -> None:
    try:
        # A plain dict, without version marks: then a missing num_batches_tracked is forgiven, as in files of old.
        model.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise ModelError(f"{file.path} doesn't fit the model: {' '.join(str(error).split())}") from error


def _fits_by_its_own_rules(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the model takes names that aren't its own: some modules translate those of their earlier versions."""
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError:
        return False
    return True


def _misfit(
    model: nn.Module, file: WeightFile, best: Match, own: Mapping[str, Tensor], others: tuple[str, ...]
) -> MisfitError:
    what, arguments = differences(best, model, own)
    more = f"; other weights in it: {file.choices(list(others[:2]))}" if others else ""
    if not own.keys() & best.tensors.keys():
        more += "; they are another model's, or have other names: name that model, or rename them"
    return MisfitError(f"{file.path} doesn't fit the model: {what}{more}", arguments)
