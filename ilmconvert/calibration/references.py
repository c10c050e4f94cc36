"""New reference values of the restoring path, from images, without any change of what the network computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.calibration.batches import prepared
from ilmconvert.errors import CalibrationError
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.float64 import float64
from ilmconvert.nn.kernels import dispatch
from ilmconvert.surgery.module_state import evaluating
from ilmconvert.surgery.record_calls import Call, on_calls


def update_references(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    """Set ``ref_mean`` and ``ref_std`` to the averages over the instances of ``batches``, in place.

    The restoring path then says how far an instance lies from those images instead of from what the source was
    trained on; weight, bias and both gains change with the references so that every output stays the same:

        weight += restore_weight (s' - s) / s,   bias += restore_bias (m' - m) / s,   both gains times s' / s

    for references m, s and new ones m', s'. A restoring path that is annealed to zero afterwards takes less with it:
    what is left is the layer of an average instance. Layers with a bound or a range stay as they are, since those
    limits are relative to the references; so do layers without weight and bias, and those that don't run.

    Args:
        model: in any mode; runs in evaluation mode, without gradients.
        batches: tensors, or tuples and lists whose first item is what the model takes; some tens of images.

    Returns:
        the names of the layers that have new references.

    Raises:
        CalibrationError: there are no batches.

    >>> layer = ILMNorm(4, 2, key_group_size=2, restore=True)
    >>> _ = torch.nn.init.normal_(layer.restore_weight)
    >>> x = torch.randn(8, 4, 5, 5) * 3 + 1
    >>> before = layer(x)
    >>> update_references(nn.Sequential(layer), [x])
    ['0']
    >>> torch.allclose(layer(x), before, atol=1e-5)
    True
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ILMNorm) and _movable(m)}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def keep(call: Call) -> None:
        seen[call.name].append(_group_statistics(layers[call.name], call.args[0]))

    with evaluating(model), torch.no_grad(), on_calls(layers, keep, before=True):
        for inputs in prepared(batches, device):
            model(*inputs)
        found = {name: torch.cat(parts, 1) for name, parts in seen.items()}
        if any(not t.isfinite().all() for t in found.values()):
            raise CalibrationError("the images give statistics that aren't finite; look for damaged ones")
        for name, each in found.items():
            _move(layers[name], *each.mean(1))
    return list(found)


def _movable(layer: ILMNorm) -> bool:
    return layer.restore and layer.affine and layer.restore_bound is None and layer.restore_range is None


def _group_statistics(layer: ILMNorm, x: Tensor) -> Tensor:
    """mu and sigma of every instance: (2, N, G), float64."""
    mu, var = dispatch.moments(x, layer.num_groups)
    count = x[0].numel() // layer.num_groups
    if layer.correction and count > 1:
        var = var * (count / (count - 1))
    return float64(torch.stack((mu, (var + layer.eps).sqrt())))


def _move(layer: ILMNorm, mean: Tensor, std: Tensor) -> None:
    """References (G,) to new ones."""
    assert layer.ref_mean is not None
    assert layer.ref_std is not None
    old_mean, old_std = float64(layer.ref_mean), float64(layer.ref_std)
    shifts = {"weight": (std - old_std) / old_std, "bias": (mean - old_mean) / old_std}
    for name, shift in shifts.items():
        base, gain = layer._parameters[name], layer._parameters[f"restore_{name}"]
        assert base is not None
        assert gain is not None
        by_channel = float64(gain).view(layer.num_groups, -1)
        base.copy_(float64(base) + (by_channel * shift.unsqueeze(1)).flatten())
        gain.copy_((by_channel * (std / old_std).unsqueeze(1)).flatten())
    layer.ref_mean.copy_(mean)
    layer.ref_std.copy_(std)
