"""GroupNorm networks in stock timm: the arguments with which ``timm.create_model`` builds them itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from ilmconvert.errors import ModelError
from ilmconvert.models.create import infer_spec
from ilmconvert.models.norm_counts import skeleton
from ilmconvert.models.spec import ModelSpec
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.group_norm_target import GroupNormConfig
from ilmconvert.surgery.input_standardization import input_standardization

#: timm's names of GroupNorm, by the number of groups that every layer then has.
TIMM_NORM_LAYERS = {1: "groupnorm1", 32: "groupnorm"}


def timm_arguments(model: nn.Module) -> dict[str, Any] | None:
    """Arguments with which ``timm.create_model`` builds this plain network itself, so that the file loads there.

    timm's ``norm_layer`` names fix the number of groups: 1 (``to="ln"``) or 32 (``to="gn"`` where 32 divides the
    channels of every layer). None where no such name builds the same layers in the same places, for networks that
    standardise each image, and for models that aren't timm's.

    >>> import timm
    >>> from ilmconvert import convert
    >>> from ilmconvert.testing import randomize_norms
    >>> timm_arguments(convert(randomize_norms(timm.create_model("test_resnet")), "ln"))
    {'model_name': 'test_resnet.r160_in1k', 'norm_layer': 'groupnorm1'}
    """
    layers, spec = layers_of(model), infer_spec(model)
    configs = [layer.config for layer in layers]
    plain = all(isinstance(config, GroupNormConfig) for config in configs)
    if not layers or spec is None or spec.library != "timm" or not plain or input_standardization(model) is not None:
        return None
    groups = {config.num_groups for config in configs}
    name = TIMM_NORM_LAYERS.get(groups.pop()) if len(groups) == 1 else None
    if name is None:
        return None
    arguments = {**spec.model_args, "norm_layer": name}
    try:
        stock = skeleton(ModelSpec("timm", spec.architecture, arguments))
    except ModelError:
        return None
    if not _same(model, stock):
        return None
    shown = {key: value for key, value in arguments.items() if key != "pretrained_cfg"}
    return {"model_name": spec.architecture, **shown}


def _same(model: nn.Module, stock: nn.Module) -> bool:
    """Whether both hold the same tensors, and norms of the same groups in the same places."""
    ours, theirs = ({key: t.shape for key, t in m.state_dict().items()} for m in (model, stock))
    return ours == theirs and _norms(model) == _norms(stock)


def _norms(model: nn.Module) -> dict[str, tuple[int, float]]:
    return {name: (m.num_groups, m.eps) for name, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
