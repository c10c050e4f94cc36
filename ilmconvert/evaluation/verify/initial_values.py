"""Whether layers that were initialised from running statistics hold what the conversion of a source gives them."""

from __future__ import annotations

from torch import Tensor, nn

from ilmconvert.evaluation.tolerances import INITIAL_VALUES
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.sources import NormDescription, find_source


def differing_initial_values(source: nn.Module, converted: nn.Module) -> list[str] | None:
    """Names of the converted layers whose values aren't those that the running statistics of ``source`` give them.

    All that can be asked of such norms: what the network computes is near the source's, no more. None
    where the source doesn't tell, since it holds no norm that can be converted in the place of one of the layers.

    >>> from ilmconvert import convert
    >>> from ilmconvert.testing import randomize_norms
    >>> source = randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)))
    >>> plain = convert(source, "gn")
    >>> differing_initial_values(source, plain)
    []
    >>> plain[1].weight.data *= 2
    >>> differing_initial_values(source, plain)
    ['1']
    """
    modules = dict(source.named_modules(remove_duplicate=False))
    found = []
    for made in layers_of(converted):
        module = modules.get(made.name)
        describe = None if module is None else find_source(module)
        if module is None or describe is None:
            return None
        if not _is_start(converted.get_submodule(made.name), describe(module), made.config):
            found.append(made.name)
    return found


def _is_start(layer: nn.Module, source: NormDescription, config: LayerConfig) -> bool:
    if source.num_channels != config.num_channels:
        return False
    values = config.initial_values(source, dtype=next(layer.parameters()).dtype)
    # its rows are random, and without the decoders they do nothing
    values.pop("encoder", None)
    return all(_same(getattr(layer, name), value) for name, value in values.items())


def _same(own: Tensor | None, expected: Tensor) -> bool:
    if own is None or own.shape != expected.shape:
        return False
    largest = expected.abs().max().item() if expected.numel() else 0.0
    error = (own.detach().cpu().double() - expected).abs()
    return bool((error <= INITIAL_VALUES[own.dtype] * largest).all())
