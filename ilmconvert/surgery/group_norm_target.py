"""Stock GroupNorm as a target, started from the moments of what it replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ilmconvert.surgery.initialization import moments_values
from ilmconvert.surgery.layer_config import LayerConfig
from ilmconvert.surgery.settings import Settings
from ilmconvert.surgery.sources import NormDescription

#: torch's and timm's own default: with it a file loads into what ``norm_layer="groupnorm"`` builds.
EPS = 1e-5

# On each layer that a conversion made, to tell it from the layers that the model had anyway.
_MARK = "ilmconvert_plain"


@dataclass(frozen=True)
class GroupNormConfig(LayerConfig):
    """The settings of a GroupNorm; of timm's, which takes a drop and an activation, where there is one.

    >>> config = GroupNormConfig(8, 2, 1e-5)
    >>> GroupNormConfig.of(config.build()) == config, GroupNormConfig.of(nn.GroupNorm(2, 8))
    (True, None)
    """

    kind: ClassVar[str] = "group_norm"
    title: ClassVar[str] = "GroupNorm"
    eps: float

    @classmethod
    def for_source(cls, source: NormDescription, num_groups: int, settings: Settings) -> GroupNormConfig:
        """A layer that normalises groups itself keeps its eps; of a BatchNorm, whose variances are others, it says
        nothing.
        """
        return cls(source.num_channels, num_groups, EPS if source.num_groups is None else source.eps)

    @classmethod
    def of(cls, layer: nn.Module) -> GroupNormConfig | None:
        if isinstance(layer, nn.GroupNorm) and getattr(layer, _MARK, False) is True:
            return cls(layer.num_channels, layer.num_groups, layer.eps)
        return None

    def build(
        self,
        *,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.GroupNorm:
        layer: nn.GroupNorm
        if drop is None and act is None:
            layer = nn.GroupNorm(self.num_groups, self.num_channels, eps=self.eps, device=device, dtype=dtype)
        else:
            from timm.layers import GroupNormAct

            kind = {"eps": self.eps, "apply_act": False, "device": device, "dtype": dtype}
            layer = GroupNormAct(self.num_channels, self.num_groups, **kind)
            for name, module in (("drop", drop), ("act", act)):
                if module is not None:
                    setattr(layer, name, module)
        setattr(layer, _MARK, True)
        return layer

    def initial_values(
        self, source: NormDescription, *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        """What makes the layer compute what ``source`` does for an instance with the statistics of the training set."""
        return moments_values(source, self.num_groups, self.eps)

    def is_exact(self, source: NormDescription) -> bool:
        return source.num_groups == self.num_groups

    def __str__(self) -> str:
        return f"GroupNorm({self.num_groups} groups)"
