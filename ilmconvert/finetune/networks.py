"""From a name, a file or a module to the networks of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilmconvert.checkpoint.safetensors_io import checkpoint_file
from ilmconvert.checkpoint.save_load import load
from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.seeding import seed_all
from ilmconvert.models.create import create_model, infer_spec
from ilmconvert.models.head import classifier
from ilmconvert.models.spec import label
from ilmconvert.surgery import convert
from ilmconvert.surgery.conversion_info import noted
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.replacement import replace_modules
from ilmconvert.surgery.sources import find_source

#: Fields of a recipe that ``convert`` takes as they are, besides ``to``.
_CONVERSION = ("init", "restore_bound", "first_only")
_RESTORING = ("restore_weight", "restore_bias")


@dataclass(frozen=True)
class Start:
    """The networks that a run starts from, in evaluation mode.

    Attributes:
        name: what the model is called.
        network: the one that is trained; it holds what a conversion made, ILM Norms or plain layers.
        source: what it was converted from, with the same head; None for a network that came converted.
        exact: whether the conversion gave it its source's function; one from moments, plain ones too, only comes near.
        head_replaced: whether the head is new and knows nothing yet.
        teacher: for distillation.
        compare_features: distil what reaches the classifier instead of the logits.
    """

    name: str
    network: nn.Module
    source: nn.Module | None
    exact: bool
    head_replaced: bool
    teacher: nn.Module | None = None
    compare_features: bool = False


def open_model(
    model: nn.Module | str | Path, weights: str | Path = "default", model_args: Mapping[str, Any] | None = None
) -> tuple[str, nn.Module]:
    """A model and what it is called. A module is copied, so that the caller's stays as it is.

    A path of a checkpoint, of a run folder or of a folder of ``save_pretrained`` is loaded; other strings are names,
    see :func:`ilmconvert.models.create.create_model`, which ``weights`` and ``model_args`` are for.

    Raises:
        ILMConvertError: there is no such model or file.
    """
    if isinstance(model, nn.Module):
        spec = infer_spec(model)
        return spec.architecture if spec else type(model).__name__, copy.deepcopy(model).eval()
    path = checkpoint_file(model)
    if path.suffix == ".safetensors" or path.is_file():
        return str(model), load(path)
    return str(model), create_model(str(model), weights=weights, **model_args or {})


def start(
    model: nn.Module | str | Path,
    recipe: Recipe,
    *,
    num_classes: int | None = None,
    weights: str | Path = "default",
    model_args: Mapping[str, Any] | None = None,
) -> Start:
    """The network to train: converted if it isn't, and with a new head where ``num_classes`` is given.

    Raises:
        ILMConvertError: there is no such model, nothing to convert, a network that came converted in another way than
            the recipe's, or no head that can be replaced.
    """
    name, network = open_model(model, weights, model_args)
    if num_classes is not None:
        replace_head(network, num_classes, recipe.seed)
    source = None
    if not layers_of(network):
        source, network = network, convert(network, recipe.to, **{name: getattr(recipe, name) for name in _CONVERSION})
    else:
        _check_came_so(name, network, recipe)
    exact = noted(network).init != "moments"
    return Start(name, network, source, exact, num_classes is not None)


def _check_came_so(name: str, network: nn.Module, recipe: Recipe) -> None:
    """Refuse a network that came converted in another way, where the way is what the recipe is about."""
    layers, init = layers_of(network), noted(network).init
    came = None
    if recipe.first_only and len(layers) > 1:
        came = f"in {len(layers)} layers, and the recipe converts the first norm alone (first_only)"
    elif recipe.init == "moments" and init == "identity":
        came = "with init: identity, and the recipe starts from moments"
    if came is not None:
        raise FineTuneError(f"{name} came converted {came}; name its source instead, or take another recipe")


def replace_head(model: nn.Module, num_classes: int, seed: int) -> None:
    """Give ``model`` a new, random head, in place, the same for the same seed on every device.

    Raises:
        FineTuneError: ``num_classes`` isn't at least 2, or there is no head that can be replaced.
    """
    if num_classes < 2:
        raise FineTuneError(f"num_classes has to be at least 2, not {num_classes}")
    spec, like = infer_spec(model), next(model.parameters())
    device, dtype = like.device, like.dtype
    if not like.is_meta:
        model.cpu()  # each device has random numbers of its own
    try:
        with torch.random.fork_rng(devices=[]):
            seed_all(seed)
            if hasattr(model, "reset_classifier"):
                model.reset_classifier(num_classes)  # type: ignore[operator]
            else:
                old = classifier(model)[1]
                new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
                replace_modules(model, {old: new})
    finally:
        model.to(device)
    model.to(dtype)
    if spec is not None:
        label(model, replace(spec, model_args={**spec.model_args, "num_classes": num_classes}))


def norm_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a conversion made, ILM Norms or plain; of a baseline the norms that could be converted."""
    found = [model.get_submodule(made.name) for made in layers_of(model)]
    return found or [m for m in model.modules() if find_source(m) is not None]


def norm_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The norms' own parameters that can train, with their last names."""
    for layer in norm_layers(model):
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                yield name, parameter


def set_trainable(model: nn.Module, recipe: Recipe, *, with_head: bool) -> None:
    """Freeze what the recipe doesn't train. What is frozen already stays so.

    Raises:
        FineTuneError: nothing would train.
    """
    norm = {id(p) for name, p in norm_parameters(model)}
    head = {id(p) for p in classifier(model)[1].parameters()} if with_head else set()
    for name, parameter in model.named_parameters():
        if recipe.train == "norm" and id(parameter) not in norm | head:
            parameter.requires_grad_(False)
        if recipe.anneal != "none" and name.rpartition(".")[2] in _RESTORING:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise FineTuneError(f"no parameter of the model trains with train: {recipe.train}; unfreeze some")


def training_mode(model: nn.Module, *, freeze_batch_norm: bool) -> None:
    """Training mode, in which BatchNorm modules, where any are left, may keep their statistics."""
    model.train()
    if freeze_batch_norm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def open_teacher(teacher: nn.Module | str | Path | None, first: Start, weights: str | Path = "default") -> nn.Module:
    """A frozen teacher: the one given, or a copy of the network as it starts, or of its source where they differ.

    Raises:
        ILMConvertError: there is no such model, or none was given and the source isn't there.
    """
    if teacher is not None:
        found = open_model(teacher, weights)[1]
    elif first.exact or (first.head_replaced and first.source is None):
        found = copy.deepcopy(first.network)
    elif first.source is not None:
        found = copy.deepcopy(first.source)
    else:
        raise FineTuneError(
            f"{first.name} started from moments and can't teach itself; name its source with --teacher (teacher=), "
            "or take --distill 0 (distill=0)"
        )
    return found.eval().requires_grad_(False)
