"""Give a network a standardisation of each image; see ``input_standardization.py`` for what that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ilmconvert.errors import ConversionError
from ilmconvert.surgery.example import Differs, Example
from ilmconvert.surgery.input_standardization import InputStandardization, input_standardization, remove, standardize
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.record_calls import Call, on_calls
from ilmconvert.surgery.refuse_wrapped import refuse_wrapped


def standardize_input(model: nn.Module, batches: Iterable[Tensor], *, std: float | None = None) -> InputStandardization:
    """Let a network standardise each image before its first layer, or block, in place.

    A change of an image's light or contrast as a whole, ``a * x + b``, then makes no difference. The network computes
    something else than before, and has to be trained so. It stays with the model through copies, ``save`` and
    ``load``, and exports to ONNX and pt2; a ``state_dict`` doesn't hold it.

    Args:
        model: a network, converted or not.
        batches: (N, C, ...) each, prepared as for the network. The network is tried on the first one.
        std: the standard deviation that each image gets. None: the mean of those that the images have.

    Raises:
        ConversionError: no images, ones that are all of one value or that the network can't take, or a network that
            gives other outputs for the same images each time. The network is as it was.

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
        made = _made(model, found, std)
    except BaseException:
        if had is not None:
            had.put(model)
        raise
    made.put(model)
    return made


def _made(model: nn.Module, batches: Sequence[Tensor], std: float | None) -> InputStandardization:
    deviation = _mean_deviation(batches) if std is None else std
    Example.of(model, batches[0])  # raises where the network can't run on them
    for name in _places(model, batches[0]):
        try:
            made = InputStandardization.from_dict({"layer": name, "std": deviation})
        except ValueError as error:
            raise ConversionError(f"each image would get a deviation of {deviation}; give a std above 0") from error
        if _is_all(model, made, batches[0]):
            return made
    raise ConversionError("the network gives other outputs for the same images each time; switch off what is random")


def _mean_deviation(batches: Iterable[Tensor]) -> float:
    each = torch.cat([batch.flatten(1).cpu().double().std(1, correction=0) for batch in batches])
    return float(each.mean())


def _places(model: nn.Module, x: Tensor) -> list[str]:
    """The modules that get the images as the network gets them, and hold all that do; the innermost first."""
    names: list[str] = []

    def look(call: Call) -> None:
        if call.args and call.args[0] is x and call.name not in names:
            names.append(call.name)

    with on_calls(dict(model.named_modules()), look, before=True), evaluating(model), torch.no_grad():
        model(x)
    readers = [name for name in names if not any(other != name and _holds(name, other) for other in names)]
    return [name for name in reversed(names) if all(_holds(name, reader) for reader in readers)]


def _holds(block: str, layer: str) -> bool:
    return not block or layer == block or layer.startswith(f"{block}.")


def _is_all(model: nn.Module, made: InputStandardization, x: Tensor) -> bool:
    """Whether the network does behind the hook what it does with standardised images: others may read them, too."""
    other = 2 * x + 1
    example = Example.of(model, standardize(other, made.std))
    made.put(model)
    try:
        Example((other,), {}, example.expected).check(model, exact=True)
    except Differs:
        return False
    finally:
        remove(model)
    return True
