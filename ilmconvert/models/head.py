"""The classifier of a network, and its number of classes."""

from __future__ import annotations

from torch import nn

from ilmconvert.errors import FineTuneError


def classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """The name and the module of the last linear layer, whose outputs are the logits.

    Raises:
        FineTuneError: the model ends in something else, such as two heads or none.

    >>> classifier(nn.Sequential(nn.Flatten(), nn.Linear(8, 4)))[0]
    '1'
    """
    if hasattr(model, "get_classifier"):
        head = model.get_classifier()  # type: ignore[operator]
        found = [(n, m) for n, m in model.named_modules() if m is head and isinstance(m, nn.Linear)]
    else:
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1:]
    if not found:
        raise FineTuneError(f"{type(model).__name__} has no single linear head; build it with the head that you need")
    return found[0]


def number_of_classes(model: nn.Module) -> int | None:
    """The number of classes of the model; None if it can't be told."""
    known = getattr(model, "num_classes", None)
    if isinstance(known, int):
        return known
    try:
        return classifier(model)[1].out_features
    except FineTuneError:
        return None
