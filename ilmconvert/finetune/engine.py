"""Fine-tuning, from the first argument to the last file."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.calibration.references import update_references
from ilmconvert.data.open_data import Data, check_head, open_data
from ilmconvert.errors import FineTuneError, RecipeError
from ilmconvert.finetune.devices import on_device, process
from ilmconvert.finetune.loaders import with_transforms
from ilmconvert.finetune.networks import Start, open_teacher, start
from ilmconvert.finetune.progress_bar import run_bar
from ilmconvert.finetune.recipe import Recipe, get_recipe
from ilmconvert.finetune.result import Progress, Result
from ilmconvert.finetune.run_file import run_file_of
from ilmconvert.finetune.run_log import warn_of_flat_images
from ilmconvert.finetune.runs import Run, describe
from ilmconvert.finetune.seeding import keep_random_state, seed_all
from ilmconvert.models.head import number_of_classes
from ilmconvert.surgery.group_norm_baseline import BASELINES
from ilmconvert.surgery.input_standardization import input_standardization
from ilmconvert.surgery.standardize_input import standardize_input


def finetune(
    model: nn.Module | str | Path,
    data: str | Path | Data,
    recipe: str | Path | Recipe = "full",
    *,
    output: str | Path,
    num_classes: int | None = None,
    val_split: float | str | None = None,
    skip_corrupt: bool = False,
    teacher: nn.Module | str | Path | None = None,
    weights: str | Path = "default",
    model_args: Mapping[str, Any] | None = None,
    resume: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | bool | None = None,
    log_with: Sequence[str] | None = None,
    baselines: Sequence[str] = (),
    run_file: str | None = None,
    **overrides: Any,
) -> Result:
    """Fine-tune a converted network, or convert one first; on whatever devices and processes accelerate finds.

    Distillation without a ``teacher`` takes a frozen copy of the network as it starts, which computes what its source
    does, or the source itself after a start from moments. If the head is replaced the logits of that copy mean
    nothing, and the inputs of both classifiers are compared instead. The module that is passed stays as it is.

    Args:
        model: a checkpoint, a run folder, a model's name (:func:`ilmconvert.models.create.create_model`) or a module.
        data: what :func:`ilmconvert.data.open_data.open_data` takes or gives; items of tensors are taken as they are.
        recipe: a name in ``RECIPES``, a YAML file, or a recipe; ``overrides`` change its fields.
        output: the run folder.
        num_classes: replace the head by a new one of so many classes.
        val_split, skip_corrupt: see ``open_data``.
        teacher: as ``model``; its classes have to be the network's.
        weights, model_args: of a model by name: its weights, and arguments for its constructor.
        resume: go on with the run in ``output``, exactly; start it if there is none; give its result if it is over.
        dry_run: do everything up to the first step, and write nothing.
        progress: called on the main process after every batch; True shows a bar, and a line for every epoch.
        log_with: accelerate's trackers; None is TensorBoard where it is installed.
        baselines: names in ``ilmconvert.surgery.group_norm_baseline.BASELINES``: these run, too, in the same way, under
            OUTPUT/baselines.
        run_file: the text of OUTPUT/run.yaml, which ``ilmconvert finetune --config`` reads; None: these arguments.

    Raises:
        ILMConvertError: something in the arguments doesn't fit; one line says what, and what to do.
    """
    asked = get_recipe(recipe, **overrides)
    settings = on_device(asked, process().device.type)
    with keep_random_state():
        seed_all(settings.seed)
        first = start(model, settings, num_classes=num_classes, weights=weights, model_args=model_args)
        _check_baselines(baselines, first)
        opened = (
            data
            if isinstance(data, Data)
            else open_data(data, val_split=val_split, skip_corrupt=skip_corrupt, seed=settings.seed)
        )
        images = _prepared(opened, settings, first.network)
        if settings.standardize_input:
            standardize_images(first, images, settings)
        first = _with_teacher(first, teacher, settings, weights)
        config = describe(first, images, settings, own_teacher=teacher is not None)
        take_references(first.network, images, settings)
        if run_file is None:
            run_file = run_file_of(
                asked,
                model=model,
                data=data,
                teacher=teacher,
                output=output,
                num_classes=num_classes,
                weights=weights,
                model_arg=dict(model_args or {}),
                val_split=val_split,
                skip_corrupt=skip_corrupt,
                baseline=tuple(baselines),
                log_with=log_with if log_with is None else (*log_with,) or ("none",),
            )
        with run_bar(progress) as told:
            run = Run(first, images, settings, config, told, log_with, run_file)
            return run.dry(Path(output)) if dry_run else run.all(Path(output), baselines, resume)


def _check_baselines(names: Sequence[str], first: Start) -> None:
    for name in names:
        if name not in BASELINES:
            raise FineTuneError(f"unknown baseline {name!r}; there are {', '.join(BASELINES)}")
    if names and first.source is None:
        raise FineTuneError(
            f"baselines need the network with BatchNorm, and {first.name} came converted; give the model's name instead"
        )


def _prepared(data: Data, recipe: Recipe, network: nn.Module) -> Data:
    """The data behind the recipe's transforms, if they fit the network."""
    classes = number_of_classes(network)
    if classes is not None:
        check_head(data, classes)
    check_recipe(data, recipe)
    first = data.train[0][0]
    if isinstance(first, Tensor):
        return replace(data, description={**data.description, "input_size": list(first.shape)})
    return with_transforms(data, recipe, network)


def _with_teacher(first: Start, teacher: nn.Module | str | Path | None, recipe: Recipe, weights: str | Path) -> Start:
    """``first`` with the teacher for distillation, if there is any; of a new head its features are what is learnt."""
    if not recipe.distill:
        if teacher is not None:
            raise FineTuneError("a teacher has no use with distill: 0; give distill, or the recipe distill")
        return first
    features = teacher is None and first.head_replaced
    if features and recipe.distill == 1:
        raise FineTuneError("the new head learns from labels only; take distill < 1, or leave out num_classes")
    network = open_teacher(teacher, first, weights)
    ours, theirs = number_of_classes(first.network), number_of_classes(network)
    if not features and ours != theirs:
        raise FineTuneError(f"the teacher has {theirs} classes and the network {ours}; they have to be the same")
    return replace(first, teacher=network, compare_features=features)


_BATCH = 16
#: Images to take a standard deviation from.
_IMAGES = 256


def standardize_images(first: Start, data: Data, recipe: Recipe) -> None:
    """Let the network, and its source, standardise each image, in place, unless it came so.

    Each image gets the recipe's standard deviation, or the mean of the training images'.

    Raises:
        ConversionError: see :func:`ilmconvert.standardize_input`.
        FineTuneError: it came with another standard deviation than the recipe's.
    """
    had = input_standardization(first.network)
    if had is not None and recipe.input_std not in (None, had.std):
        raise FineTuneError(
            f"this network standardises each image to {had.std:.6g} already, as it has learned; leave input_std "
            "(--input-std) out"
        )
    if had is None:
        made = standardize_input(first.network, _training_images(data, recipe, _IMAGES), std=recipe.input_std)
        if recipe.input_std is None:
            warn_of_flat_images(made.std)
        if first.source is not None:
            made.put(first.source)


def take_references(network: nn.Module, data: Data, recipe: Recipe) -> None:
    """Apply :func:`ilmconvert.calibration.update_references` with as many training images as the recipe says."""
    if recipe.reference_images:
        update_references(network, _training_images(data, recipe, recipe.reference_images))


def _training_images(data: Data, recipe: Recipe, most: int) -> list[Tensor]:
    """Up to so many training images in batches (N, C, H, W).

    They depend on the recipe's seed only, so that every process, and a resumed run, takes the same.
    """
    count = len(data.train)  # type: ignore[arg-type]
    images = [data.train[index][0] for index in random.Random(recipe.seed).sample(range(count), min(most, count))]
    return [torch.stack(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]


def check_recipe(data: Data, recipe: Recipe) -> None:
    """Refuse a recipe that needs labels for data without.

    Raises:
        RecipeError: says which setting doesn't fit.
    """
    if data.labelled:
        return
    if recipe.distill < 1:
        raise RecipeError(
            f"distill is {recipe.distill:g} and the data have no labels; use --recipe distill (distill: 1)"
        )
