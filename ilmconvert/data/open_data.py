"""Images from a folder, or from a dataset that timm knows by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ilmconvert.data.dataset import ImageDataset, labels_of
from ilmconvert.data.folders import open_folder, open_named, some, split
from ilmconvert.data.readable import below, check_readable, split_readable, unreadable_text
from ilmconvert.errors import DataError

__all__ = ["Data", "DataError", "open_data"]


@dataclass(frozen=True)
class Data:
    """Training and validation images.

    Attributes:
        train: map-style dataset of (image, label); label -1: unlabelled.
        val: the same for validation, or None.
        class_names: in the order of the labels, where they are known.
        num_classes: None: no labels.
        description: where the images come from and how many there are, as JSON values.
        labelled: whether the training images have labels.
    """

    train: Dataset[Any]
    val: Dataset[Any] | None = None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    labelled: bool = True

    @property
    def unreadable(self) -> list[str]:
        """Names of images that were left out since they can't be read."""
        return list(self.description.get("unreadable", ()))


def open_data(
    source: str | Path,
    *,
    val_split: float | str | None = None,
    unlabelled: bool = False,
    num_classes: int | None = None,
    seed: int = 0,
    train_split: str = "train",
    data_dir: str | Path | None = None,
    download: bool = False,
    skip_corrupt: bool = False,
    **dataset_args: Any,
) -> Data:
    """Images from a folder or a dataset that timm knows by name.

    Args:
        source: a folder with train/ and val/ (or validation/, test/), each of class folders; one folder of class
            folders; a folder of images (unlabelled); or ``torch/NAME`` or ``hfds/NAME``, also ``NAME:ROOT``.
        val_split: the fraction of the training images that becomes the validation set, of every class alike; or
            the name of the split or folder that is the validation set.
        unlabelled: ignore all labels. A flat train/ beside a val/ of class folders needs no such word.
        num_classes: outputs of the head that the labels have to match.
        seed: of the choice of validation images.
        train_split: name of the split to train on.
        data_dir: where a named dataset lies (timm's ``root``).
        download: let torchvision fetch a missing ``torch/`` dataset.
        skip_corrupt: leave out images that can't be read, for which each is read once; a warning counts them and
            ``description["unreadable"]`` names them.
        **dataset_args: for ``timm.data.create_dataset``, such as ``input_key`` and ``target_key``.

    Raises:
        DataError: no images, an empty class folder, an unreadable image, one class only, classes that differ
            between training and validation or from the head.
    """
    fraction = None if val_split is None or isinstance(val_split, str) else float(val_split)
    if fraction is not None and not 0 < fraction < 1:
        raise DataError(f"val_split is a fraction between 0 and 1 or the name of a split, not {fraction:g}")
    val_name = val_split if isinstance(val_split, str) else None
    path = Path(source)
    if path.is_dir():
        train, val, names = open_folder(path, train_split, val_name, unlabelled)
    else:
        kwargs = {"root": data_dir, "download": download, **dataset_args}
        train, val, names = open_named(str(source), train_split, val_name, fraction is None, unlabelled, kwargs)
    if fraction is not None and val is not None:
        raise DataError(f"{source} has its own validation images; leave out the fraction {fraction:g}")
    unreadable: dict[str, Any] = {}
    if skip_corrupt:
        train, val, unreadable = _without_corrupt(train, val, names, source)
    if fraction is not None:
        train, val = split(train, fraction, seed, names)
    if not skip_corrupt:
        check_readable(train)
        if val is not None:
            check_readable(val)
    description: dict[str, Any] = {"source": str(source), "train": len(train), "val": None if val is None else len(val)}
    description |= {"labelled": train.labelled, "classes": None if names is None else list(names)}
    description |= unreadable
    if fraction is not None:
        description |= {"val_split": fraction, "seed": seed}
    data = Data(train, val, names, None if names is None else len(names), description, train.labelled)
    if num_classes is not None:
        check_head(data, num_classes)
    return data


def _without_corrupt(
    train: ImageDataset, val: ImageDataset | None, names: tuple[str, ...] | None, source: str | Path
) -> tuple[ImageDataset, ImageDataset | None, dict[str, Any]]:
    """Both without images that can't be read, and what to note of these."""
    total = len(train) + (0 if val is None else len(val))
    train, others = split_readable(train)
    if val is not None:
        val, more = split_readable(val)
        others += more
    if others and names and train.labelled:
        left = set(labels_of(train).tolist())
        empty = [name for label, name in enumerate(names) if label not in left]
        if empty:
            raise DataError(f"no image of the class {some(empty)} can be read; replace some, or remove the class")
    found = [below(name, source) for name in others]
    if found:
        warnings.warn(f"leaving out, of {total}, {unreadable_text(found)}", stacklevel=3)
    return train, val, {"unreadable": found} if found else {}


def check_head(data: Data, num_classes: int, cure: str | None = None) -> None:
    """Refuse labelled data that don't have a class for every output of the head.

    Args:
        data: what was opened.
        num_classes: outputs of the head.
        cure: what to do; by default what there is to do before a training.

    Raises:
        DataError: fewer or more classes than outputs.
    """
    if data.num_classes is not None and data.num_classes != num_classes:
        fewer = "fewer" if data.num_classes < num_classes else "more"
        counts = f"the data have {data.num_classes} classes, {fewer} than the {num_classes} outputs of the model's head"
        own = f"replace it with --num-classes {data.num_classes} (num_classes={data.num_classes})"
        raise DataError(f"{counts}; {cure or own}")
