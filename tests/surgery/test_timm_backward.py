"""What timm asks of each of its models: every parameter has a gradient after one step, traced or not."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ilmconvert import convert
from tests.helpers import randomize_norms

pytestmark = pytest.mark.slow
ARCHITECTURES = (
    *("densenet121", "efficientnet_lite0", "efficientvit_b0", "fastvit_t8", "ghostnet_100", "inception_v3"),
    *("levit_128s", "mixnet_s", "mobilenetv3_small_050", "regnety_002", "res2net50_14w_8s", "resnest14d", "resnet18"),
    *("resnetv2_50", "rexnet_100", "seresnet18", "test_byobnet", "tf_efficientnetv2_b0", "xcit_nano_12_p16_224"),
)
TWO_OUTPUTS = ("inception_v3", "levit_128s")  # in training: the traced model would have but one of them
CASES = [(name, fx) for name in ARCHITECTURES for fx in (False, True) if not (fx and name in TWO_OUTPUTS)]


def traced(model: nn.Module) -> nn.Module:
    """As torchvision's feature extraction sees it."""
    settings = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train, evaluation = (nodes[-1] for nodes in get_graph_node_names(model, tracer_kwargs=settings))
    return create_feature_extractor(model, None, [train], [evaluation], tracer_kwargs=settings)


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("architecture", "fx"), CASES)
def test_every_parameter_gets_a_gradient(architecture: str, fx: bool) -> None:
    torch.manual_seed(0)
    source = timm.create_model(architecture, num_classes=7)
    model = convert(randomize_norms(source)).train()
    size = source.default_cfg["input_size"]
    side = size[1] if source.default_cfg.get("fixed_input_size") or architecture == "inception_v3" else 128
    x = torch.randn(2, 3, side, side)
    if not fx:
        found = model(x)
    else:
        model = traced(model)
        found = next(iter(model(x).values()))
    (torch.cat(found) if isinstance(found, tuple) else found).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
