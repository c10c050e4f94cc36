"""ILM Norm as a target: its settings, and the values with which it starts in a norm's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ilmconvert.nn import ILMNorm, ILMNormAct
from ilmconvert.nn.group_sizes import best_key_group_size
from ilmconvert.surgery.initialization import encoder_rows, key_variances, moments_values, restoring_values
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.settings import Settings
from ilmconvert.surgery.sources import NormDescription

_EPS = 1e-5


@dataclass(frozen=True)
class ILMNormConfig(LayerConfig):
    """The settings of an :class:`ilmconvert.ILMNorm`, which describes them.

    >>> config = ILMNormConfig.of(ILMNorm(8, 2, key_group_size=4))
    >>> config.build().num_groups, ILMNormConfig.from_dict(config.to_dict()) == config
    (2, True)
    """

    kind: ClassVar[str] = "ilm_norm"
    title: ClassVar[str] = "ILM Norm"
    key_group_size: int
    reduction: int
    eps: float
    correction: int
    restore: bool
    restore_bound: float | None
    affine: bool
    restore_range: tuple[float, ...] | None = None
    input_dims: int | None = None

    @classmethod
    def for_source(cls, source: NormDescription, num_groups: int, settings: Settings) -> ILMNormConfig:
        batch_level = source.num_groups is None
        restore = batch_level and settings.init == "identity"
        return cls(
            num_channels=source.num_channels,
            num_groups=num_groups,
            key_group_size=best_key_group_size(source.num_channels, settings.key_group_size),
            reduction=settings.reduction,
            # A batch-level layer's eps may be 0 (torchvision's detection backbones): there it never meets a constant.
            eps=source.eps if source.eps > 0 or not batch_level else _EPS,
            correction=0,
            restore=restore,
            restore_bound=settings.restore_bound if restore else None,
            affine=True,
            input_dims=source.input_dims,
        )

    @classmethod
    def of(cls, layer: nn.Module) -> ILMNormConfig | None:
        if not isinstance(layer, ILMNorm):
            return None
        limits = layer.restore_range
        return cls(**{**layer.config(), "restore_range": None if limits is None else tuple(limits)})

    def build(
        self,
        *,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        settings = self.to_dict()
        if drop is None and act is None:
            return ILMNorm(**settings, device=device, dtype=dtype)
        return ILMNormAct(**settings, drop=drop, act=act, device=device, dtype=dtype)

    def initial_values(
        self, source: NormDescription, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        if self.restore:
            values = restoring_values(source, self.num_groups, self.eps, bounded=self.bounded, dtype=dtype)
        else:
            values = moments_values(source, self.num_groups, self.eps)
        key_groups = self.num_channels // self.key_group_size
        width = max(2, key_groups // self.reduction)
        values["encoder"] = encoder_rows(width, key_variances(source, key_groups), seed, self.eps)
        like = values["weight"]
        for name in ("weight_decoder", "bias_decoder"):
            values[name] = torch.zeros(key_groups, width, dtype=torch.float64, device=like.device)
        return values

    def is_exact(self, source: NormDescription) -> bool:
        return not self.bounded and (self.restore or self.num_groups == source.num_groups)

    @property
    def takes_single_instances(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return self.restore_bound is not None or self.restore_range is not None

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        del data["kind"]  # files held no other layers when their format was made
        return data

    def __str__(self) -> str:
        restoring = ", restoring" if self.restore else ""
        return f"ILMNorm({self.num_groups} groups, key groups of {self.key_group_size}{restoring})"
