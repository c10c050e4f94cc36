"""What trains under differential privacy, in each arm of ``benchmarks.evidence.private``."""

from __future__ import annotations

from collections.abc import Callable

from opacus.grad_sample import register_grad_sampler
from opacus.validators import ModuleValidator
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.evidence.cut import cut, out_of_place
from ilmconvert import ILMNorm, convert
from ilmconvert.finetune.networks import replace_head

HEAD = "head"
#: In the order of the runs, with their titles in the tables.
ARMS = {
    HEAD: "head alone (frozen BN, or converted: the same)",
    "frozen-bn-conv": "frozen BN: last convolution, head",
    "frozen-bn-affine": "frozen BN: gamma and beta as an affine layer, head",
    "ilm-norms": "converted: weight and bias of ILM-GN, head",
    "fix": "ModuleValidator.fix: GroupNorm's gamma and beta, head",
}


class ChannelAffine(nn.Module):
    """A factor and a shift for each channel of (N, C, H, W): BatchNorm's gamma and beta, as a layer without buffers."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


@register_grad_sampler(ChannelAffine)  # type: ignore[untyped-decorator]
def affine_gradients(layer: ChannelAffine, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """The gradients by example, (N, C) each."""
    return {layer.weight: (backprops * activations[0]).sum((2, 3)), layer.bias: backprops.sum((2, 3))}


def build(arm: str, source: nn.Module, stage: int, num_classes: int, seed: int) -> nn.Sequential:
    """The stages that train, with a new head; of the rest only the parameters of the arm require gradients.

    Args:
        source: pretrained, with BatchNorm; is consumed.
    """
    replace_head(source, num_classes, seed)
    behind: nn.Module = cut(convert(source.eval()) if arm == "ilm-norms" else source.eval(), stage)[1]
    if arm == "frozen-bn-affine":
        _replace_batch_norms(behind, _frozen_before_affine)
    elif arm == "fix":
        _replace_batch_norms(behind, _plain)
        behind = ModuleValidator.fix(behind)
    behind = freeze_batch_norm_2d(behind)
    assert isinstance(behind, nn.Sequential)
    behind.requires_grad_(False)
    for parameter in [*head_of(behind).parameters(), *_trained(arm, behind)]:
        parameter.requires_grad_(True)
    assert not ModuleValidator.validate(out_of_place(behind).train(), strict=False)
    return behind


def head_of(behind: nn.Module) -> nn.Linear:
    """The classifier."""
    *_, head = behind.children()
    assert isinstance(head, nn.Linear)
    return head


def _trained(arm: str, behind: nn.Module) -> list[nn.Parameter]:
    modules = list(behind.modules())
    if arm == "frozen-bn-conv":
        return list([m for m in modules if isinstance(m, nn.Conv2d)][-1].parameters())
    norms = [m for m in modules if isinstance(m, (ChannelAffine, ILMNorm, nn.GroupNorm))]
    return [parameter for m in norms for parameter in (m.weight, m.bias) if parameter is not None]


def _replace_batch_norms(network: nn.Module, layers: Callable[[nn.BatchNorm2d], list[nn.Module]]) -> None:
    """Other layers in the place of each, in place; the activations that timm's class holds stay behind them."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                fused = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
                setattr(parent, name, nn.Sequential(*layers(child), *fused))


def _plain(norm: nn.BatchNorm2d) -> list[nn.Module]:
    """torch's own class, since the validator looks past timm's."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps)
    plain.load_state_dict(norm.state_dict())
    return [plain]


def _frozen_before_affine(norm: nn.BatchNorm2d) -> list[nn.Module]:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    frozen.running_mean.copy_(norm.running_mean)
    frozen.running_var.copy_(norm.running_var)
    return [frozen, ChannelAffine(norm.weight, norm.bias)]
