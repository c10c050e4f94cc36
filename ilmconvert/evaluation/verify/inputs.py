"""The images that a checkpoint is verified on: a folder's, or random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Subset

from ilmconvert.data.dataset import ImageDataset
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.data.open_data import Data
from ilmconvert.data.readable import below, unreadable_text
from ilmconvert.data.trained_images import trained_classes, trained_transform
from ilmconvert.data.transforms import evaluation_images, transform_config, transform_text
from ilmconvert.models.head import number_of_classes

RANDOM_CAVEAT = (
    "Random numbers instead of images. They show whether the arithmetic is right; they can't show how often the "
    "classes of your images agree (a network gives noise the same few classes), nor how a bound, or layers initialised "
    "from running statistics, do in use. Give images with --data DIR."
)


@dataclass(frozen=True)
class Sample:
    """Batches for :func:`ilmconvert.evaluation.fidelity`, and what is known about them.

    Attributes:
        batches: the batches.
        description: what they are, for people.
        random: whether they are random numbers.
        names: of the images, in order; empty where they have none.
        class_names: of the logits; empty where unknown.
        caveats: what these images can't show.
        unreadable: names of images that were left out since they can't be read.
    """

    batches: Iterable[Any] = field(repr=False)
    description: str
    random: bool = False
    names: Sequence[str] = ()
    class_names: Sequence[str] = ()
    caveats: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def random_sample(
    model: nn.Module, *, batches: int = 4, batch_size: int = 2, size: int | None = None, seed: int = 0
) -> Sample:
    """Random inputs of the kind that the model takes, see :func:`ilmconvert.data.example_inputs.example_inputs`.

    >>> sample = random_sample(nn.Sequential(nn.Flatten()).requires_grad_(False), batches=0)
    >>> sample.random, len(sample.caveats)
    (True, 1)
    """
    made = (example_inputs(model, batch_size=batch_size, size=size, seed=seed + i) for i in range(batches))
    trained = trained_transform(model).get("input_size")
    sides = (size, size) if size else trained[1:] if trained else None
    text = f"{batches * batch_size} random inputs{f' of {sides[0]} x {sides[1]}' if sides else ''}, seed {seed}"
    return Sample(made, text, random=True, class_names=class_names(model), caveats=(RANDOM_CAVEAT,))


def folder_sample(
    model: nn.Module,
    source: str | Path | Data,
    *,
    at_most: int | None = None,
    batch_size: int = 8,
    input_size: int | None = None,
    workers: int = 0,
) -> Sample:
    """The validation images of a folder or named dataset, or all where none are set apart, as the model wants them.

    Labels are used where there are as many classes as logits.

    Args:
        model: whose transform and logits they are for.
        source: what :func:`ilmconvert.data.open_data.open_data` takes or gives.
        at_most: so many images, spread evenly over all of them.
        batch_size, workers: of the loader.
        input_size: height and width; None: the model's.

    Raises:
        DataError: no images, or one that can't be read.
    """
    data, ready = evaluation_images(model, source, input_size=input_size)
    place = str(data.description.get("source", ""))
    items, count = ready.items, len(ready)
    assert isinstance(items, ImageDataset)
    wanted = min(count, at_most or count)
    chosen = [i * count // wanted for i in range(wanted)]
    fits = data.num_classes is not None and data.num_classes == number_of_classes(model)
    caveats = [] if fits or data.num_classes is None else [_no_labels(data.num_classes, number_of_classes(model))]
    items.labelled = items.labelled and fits
    which = "images" if wanted == count else f"of {count} images, evenly spread,"
    part = "" if data.val is None else " (validation part)"
    left_out = f", without {unreadable_text(data.unreadable)}" if data.unreadable else ""
    return Sample(
        DataLoader(Subset(ready, chosen), batch_size, num_workers=workers),
        f"{wanted} {which} of {place}{part}, {transform_text(transform_config(model, input_size))}{left_out}",
        names=[below(items.name(i), place) for i in chosen],
        class_names=(data.class_names or ()) if fits else class_names(model),
        caveats=tuple(caveats),
        unreadable=tuple(data.unreadable),
    )


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the logits of a fine-tuned model, or of one with the classes of ImageNet; empty for others."""
    if names := trained_classes(model):
        return names
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model) if hasattr(model, "pretrained_cfg") else None
    if subset is None and number_of_classes(model) == 1000:
        subset = "imagenet-1k"
    if not subset:
        return ()
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i).split(",")[0] for i in range(info.num_classes()))


def _no_labels(classes: int, logits: int | None) -> str:
    return (
        f"The folder has {classes} classes and the model {logits} logits, so that no accuracy can be told: only "
        "whether both models give the same answers."
    )
