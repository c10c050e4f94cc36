"""State dicts of a source, loaded into its conversion: the values are converted on the way in.

``weight`` and ``bias`` of an ILM Norm mean other things than those of a BatchNorm. Loaded as they are, they would
scramble the network, without a word where ``strict=False``. Running statistics tell such a state dict from the layer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.initialization import beyond
from ilmconvert.surgery.norm_description import NormDescription, qualified_name
from ilmconvert.surgery.targets import config_of

_STATISTICS = ("running_mean", "running_var")
_NAMES = ("weight", "bias", *_STATISTICS)


@dataclass(frozen=True)
class SourceState:
    """A hook before ``load_state_dict`` of a layer that a conversion made.

    Attributes:
        eps: of the layer that was converted.
        has_statistics: whether that layer computed from running statistics.
        affine: whether it had gamma and beta.
        seed: of the encoder's random signs.
        norm: its class, as ``module.Class``.
    """

    eps: float
    has_statistics: bool
    affine: bool
    seed: int
    norm: str = ""

    @classmethod
    def of(cls, source: NormDescription, seed: int, module: nn.Module) -> SourceState:
        """The hook for a layer in the place of ``module``, which computes ``source``."""
        affine = source.weight is not None
        return cls(source.eps, source.num_groups is None, affine, seed, qualified_name(type(module)))

    def __call__(
        self,
        layer: nn.Module,
        state: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Put the layer's own values in the place of a source's, or say why that can't be, strict or not."""
        found = {name: state[prefix + name] for name in _NAMES if isinstance(state.get(prefix + name), Tensor)}
        if not found.keys() & set(_STATISTICS):
            if not self.has_statistics and "weight" in found:
                _keep_the_rest(layer, state, prefix)
            return
        for name in (*_NAMES, "num_batches_tracked"):
            state.pop(prefix + name, None)
        problem = self._problem(layer, found)
        if problem is None:
            values, problem = self._values(layer, found, assign=metadata.get("assign_to_params_buffers", False))
            state.update({prefix + name: value for name, value in values.items()})
        if problem is not None:
            errors.append(f"{prefix.rstrip('.') or 'the state dict'} holds the values of a BatchNorm, but {problem}.")

    def _problem(self, layer: nn.Module, found: Mapping[str, Tensor]) -> str | None:
        if not self.has_statistics:
            return "the layer replaced one without running statistics: load them into the source and convert that"
        lacking = [name for name in (_NAMES if self.affine else _STATISTICS) if name not in found]
        if lacking:
            return f"lacks {' and '.join(lacking)}: load a whole state dict"
        channels = int(layer.num_channels)  # type: ignore[arg-type]
        if any(tuple(t.shape) != (channels,) for t in found.values()):
            return f"of other than {channels} channels: load that of the source"
        if getattr(layer, "restore_range", None) is not None:
            return "the layer's range was made for other values: load them into the source, convert it and bound it"
        return None

    def _values(
        self, layer: nn.Module, found: Mapping[str, Tensor], *, assign: bool
    ) -> tuple[dict[str, Tensor], str | None]:
        """What a conversion of a BatchNorm with these values gives, or why it gives nothing."""
        source = NormDescription(
            num_channels=int(layer.num_channels),  # type: ignore[arg-type]
            eps=self.eps,
            weight=found.get("weight"),
            bias=found.get("bias"),
            running_mean=found["running_mean"],
            running_var=found["running_var"],
        )
        own = layer.weight
        assert isinstance(own, Tensor)
        dtype = found["running_mean"].dtype if assign else own.dtype
        config = config_of(layer)
        assert config is not None
        values = config.initial_values(source, seed=self.seed, dtype=dtype)
        if not all(t.is_meta or t.isfinite().all() for t in values.values()):
            return {}, "gives NaN or infinity: re-estimate its running statistics"
        problem = beyond(values, dtype)
        if problem:
            return {}, problem
        # Assigned as they are, they are the layer's own: where the rest of the state is.
        device = found["running_mean"].device
        return {name: value.to(device, dtype) for name, value in values.items()}, None


def accept_source_state(layer: nn.Module, hook: SourceState) -> None:
    """Let ``layer`` take the state dict of what it replaced, too.

    >>> layer = ILMNorm(8, 2, key_group_size=4, restore=True)
    >>> accept_source_state(layer, SourceState(eps=1e-5, has_statistics=True, affine=True, seed=0))
    >>> source = nn.BatchNorm2d(8).eval()
    >>> _ = source.running_mean.normal_()
    >>> _ = layer.load_state_dict(source.state_dict())
    >>> x = torch.randn(2, 8, 4, 4)
    >>> torch.allclose(layer(x), source(x), atol=1e-5)
    True
    """
    layer.register_load_state_dict_pre_hook(hook)


def source_state_of(layer: nn.Module) -> SourceState | None:
    """The hook of a layer that has one."""
    hooks = (getattr(wrapped, "hook", None) for wrapped in layer._load_state_dict_pre_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, SourceState)), None)


def _keep_the_rest(layer: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """A GroupNorm's gamma and beta are those of a layer whose meta-network adds nothing; the rest stays as it is."""
    if not isinstance(layer, ILMNorm):
        return
    with torch.no_grad():
        decoders = (layer.weight_decoder, layer.bias_decoder)
        if any(t.is_meta or bool(t.any()) for t in decoders):
            return
    rest = {"encoder": layer.encoder, "weight_decoder": decoders[0], "bias_decoder": decoders[1]}
    if not any(prefix + name in state for name in rest):
        state.update({prefix + name: t.detach() for name, t in rest.items()})
