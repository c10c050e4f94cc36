"""How far the parts of a converted network moved in a run."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.evidence.images import Images
from benchmarks.evidence.train import Trained, predictions
from ilmconvert.nn import ILMNorm
from ilmconvert.nn.kernels import dispatch

_IMAGES = 64
_AFFINE, _RESTORING, _DECODERS = (
    ("weight", "bias"),
    ("restore_weight", "restore_bias"),
    ("weight_decoder", "bias_decoder"),
)


def movement(trained: Trained, images: Images) -> dict[str, float]:
    """Relative changes of parameters, and what the meta-network does for these images.

    Returns:
        ``affine`` and ``restore``: the norm of the change over the norm at the start, of all layers together.
        ``gate`` and ``offset``: root mean square of the meta-network's part of scale and shift, over that of weight
        and bias. ``meta``: share of the images whose class is another one without the meta-network. A network
        without ILM Norms has ``affine`` alone.
    """
    pairs = list(zip(_norms(trained.start), _norms(trained.network), strict=True))
    found = {"affine": _moved(pairs, _AFFINE)}
    if not all(isinstance(m, ILMNorm) for _, m in pairs):
        return found
    if any(m.restore for _, m in pairs):
        found["restore"] = _moved(pairs, _RESTORING)
    gate, offset = _meta_parts(trained, images.subset(list(range(min(_IMAGES, len(images))))))
    return {**found, "gate": gate, "offset": offset, "meta": _changed_without_meta(trained, images)}


def _norms(network: nn.Module) -> list[nn.Module]:
    kinds = (ILMNorm, nn.BatchNorm2d, nn.GroupNorm)
    return [m for m in network.modules() if isinstance(m, kinds)]


def _moved(pairs: Iterable[tuple[nn.Module, nn.Module]], names: Iterable[str]) -> float:
    before, change = 0.0, 0.0
    for start, end in pairs:
        for name in names:
            a, b = getattr(start, name).detach().double(), getattr(end, name).detach().double()
            before += a.square().sum().item()
            change += (b - a).square().sum().item()
    return (change / before) ** 0.5 if before else float("inf")


@torch.inference_mode()
def _meta_parts(trained: Trained, images: Images) -> tuple[float, float]:
    """What sigmoid and tanh of the meta-networks come to, relative to weight and bias."""
    sums = torch.zeros(4, dtype=torch.float64)

    def look(layer: ILMNorm, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        means, variances = dispatch.moments(inputs[0], layer.num_channels // layer.key_group_size)
        gate = torch.sigmoid(torch.relu(variances @ layer.encoder.T) @ layer.weight_decoder.T) - 0.5
        offset = torch.tanh(torch.relu(means @ layer.encoder.T) @ layer.bias_decoder.T)
        parts = (gate, layer.weight, offset, layer.bias)
        sums.add_(torch.tensor([p.double().square().mean().item() for p in parts if p is not None]))

    layers = [m for m in trained.network.modules() if isinstance(m, ILMNorm)]
    handles = [layer.register_forward_pre_hook(partial(look, layer)) for layer in layers]
    try:
        trained.network(trained.prepare(images.pixels))
    finally:
        for handle in handles:
            handle.remove()
    return (sums[0] / sums[1]).sqrt().item(), (sums[2] / sums[3]).sqrt().item()


def _changed_without_meta(trained: Trained, images: Images) -> float:
    without = copy.deepcopy(trained.network)
    for layer in without.modules():
        if isinstance(layer, ILMNorm):
            for name in _DECODERS:
                nn.init.zeros_(getattr(layer, name))
    classes = (predictions(network, trained.prepare, images) for network in (trained.network, without))
    return (next(classes) != next(classes)).double().mean().item()
