"""Give a network a standardisation of each image; see ``input_standardization.py`` for what that is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.surgery.example import Differs, Example
from ilmconvert.surgery.input_standardization import InputStandardization, input_standardization, remove, standardize
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.record_calls import Call, on_calls
from ilmconvert.surgery.refuse_wrapped import refuse_wrapped

_CURE = "standardise the images in your data instead"


def standardize_input(model: nn.Module, batches: Iterable[Tensor], *, std: float | None = None) -> InputStandardization:
    """Let a network standardise each image before its first layer, in place.

    A change of an image's light or contrast as a whole, ``a * x + b``, then makes no difference. The network computes
    something else than before, and has to be trained so. It stays with the model through copies, ``save`` and
    ``load``, and exports to ONNX and pt2; a ``state_dict`` doesn't hold it.

    Args:
        model: a network, converted or not.
        batches: (N, C, ...) each, prepared as for the network. The network is tried on the first one.
        std: the standard deviation that each image gets. None: the mean of those that the images have.

    Raises:
        ConversionError: no images, or the network doesn't read them by one layer alone. It is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> x = torch.randn(4, 3, 16, 16)
    >>> standardize_input(model, [x], std=0.5)
    InputStandardization(layer='0', std=0.5)
    >>> torch.allclose(model(0.1 * x + 3), model(x), atol=1e-5)
    True
    """
    refuse_wrapped(model)
    found = [batch for batch in batches if len(batch)]
    if not found:
        raise ConversionError("there are no images to take a standard deviation from; give at least one batch")
    had = input_standardization(model)
    remove(model)
    try:
        made = InputStandardization(_reader(model, found[0]), _mean_deviation(found) if std is None else std)
        made = InputStandardization.from_dict(made.to_dict())
        _try(model, made, found[0])
    except ValueError as error:
        raise ConversionError(f"each image would get a standard deviation of {std}; give a number above 0") from error
    finally:
        remove(model)
        if had is not None:
            had.put(model)
    made.put(model)
    return made


def _mean_deviation(batches: Iterable[Tensor]) -> float:
    each = torch.cat([batch.flatten(1).double().std(1, correction=0).cpu() for batch in batches])
    return float(each.mean())


def _reader(model: nn.Module, x: Tensor) -> str:
    """The name of the one layer that gets the images as the network gets them."""
    names: list[str] = []

    def look(call: Call) -> None:
        if call.args and call.args[0] is x and call.name not in names:
            names.append(call.name)

    with on_calls(dict(model.named_modules()), look, before=True), evaluating(model), torch.no_grad():
        model(x)
    # A block hands them on to its first layer.
    readers = [name for name in names if not any(other != name and _holds(name, other) for other in names)]
    if len(readers) != 1:
        raise ConversionError(f"{len(readers)} layers read the images, {', '.join(readers)}; {_CURE}")
    return readers[0]


def _holds(block: str, layer: str) -> bool:
    return not block or layer.startswith(f"{block}.")


def _try(model: nn.Module, made: InputStandardization, x: Tensor) -> None:
    """Whether the network does behind the hook what it does with standardised images: others may read them, too."""
    other = 2 * x + 1
    example = Example.of(model, standardize(other, made.std))
    made.put(model)
    try:
        Example((other,), {}, example.expected).check(model, exact=True)
    except Differs as error:
        raise ConversionError(f"{made.layer} isn't all that looks at the images; {_CURE}") from error
