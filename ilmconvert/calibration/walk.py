"""All batches side by side through a network, each waiting in front of every layer that is to be fitted.

A layer's input depends on the values of all layers before it. Running the network again for every layer would cost as
many passes as there are layers; here every batch waits in front of the layer while it is fitted, and then goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ilmconvert.errors import CalibrationError
from ilmconvert.surgery.paused_forward import Inputs, PausedForward, run_together


def walk(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Inputs],
    visit: Callable[[str, list[Tensor]], None],
) -> None:
    """Run ``model`` on all batches, and call ``visit(name, inputs)`` before each of ``layers`` runs.

    Args:
        model: in evaluation mode; runs without gradients.
        layers: parts of it by name; each takes one tensor.
        batches: positional arguments of ``model``.
        visit: gets the layer's input in every batch, and may change the layer's values before it runs.

    Raises:
        CalibrationError: the batches take different ways through the model.

    >>> import torch
    >>> layer = nn.BatchNorm1d(2).eval()
    >>> walk(nn.Sequential(layer), {"0": layer}, [(torch.ones(3, 2),)] * 2, lambda name, xs: print(name, len(xs)))
    0 2
    """
    run_together(
        [PausedForward(model, inputs, layers) for inputs in batches],
        lambda calls: visit(calls[0].name, [call.args[0] for call in calls]),
        before=True,
        disorder=lambda names: CalibrationError(
            "the batches take different ways through the model; use inputs of one kind"
        ),
    )
