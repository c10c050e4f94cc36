"""Where images come from: folders, and datasets that timm knows by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ilmconvert.data.dataset import ImageDataset, labels_of
from ilmconvert.errors import DataError, one_line

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation", "test")
_MAP_STYLE, _STREAMS = ("torch", "hfds"), ("hfids", "tfds", "wds")
_HUB_VAL_NAMES = ("validation", "test", "val", "valid")

Opened = tuple[ImageDataset, ImageDataset | None, tuple[str, ...] | None]


def open_folder(path: Path, train_split: str, val_name: str | None, unlabelled: bool) -> Opened:
    """A folder with train/ and perhaps val/, or one split; labels from the class folders, where there are any.

    Raises:
        DataError: see :func:`ilmconvert.data.open_data.open_data`.
    """
    train_folder = _subfolder(path, TRAIN_NAMES if train_split == "train" else (train_split,))
    if train_folder is None and train_split != "train":
        raise DataError(f"{path} has no folder {train_split}; it holds {some(p.name for p in subfolders(path))}")
    val_folder = _subfolder(path, VAL_NAMES if val_name is None else (val_name,)) if train_folder else None
    if val_name is not None and val_folder is None:
        raise DataError(f"{path} has no folder {val_name}; --val-split is that or a fraction such as 0.2")
    train, names = _read_folder(train_folder or path, unlabelled)
    if val_folder is None:
        return train, None, names
    val, val_names = _read_folder(val_folder, unlabelled, names)
    if names and not val_names:
        raise DataError(f"{val_folder} has no class folders, and {train_folder} has; sort it, or use --unlabelled")
    return train, val, names or val_names


def _subfolder(path: Path, names: tuple[str, ...]) -> Path | None:
    folders = {folder.name.lower(): folder for folder in reversed(subfolders(path))}
    return next((folders[name.lower()] for name in names if name.lower() in folders), None)


def _read_folder(
    folder: Path, unlabelled: bool, classes: tuple[str, ...] | None = None
) -> tuple[ImageDataset, tuple[str, ...] | None]:
    """The images of one split, labelled as ``classes`` are where they are given, and the classes."""
    from timm.data import ImageDataset as TimmDataset

    from ilmconvert.data.class_folders import ClassFolders, folder_of, images_of, natural_key

    labelled = not unlabelled and bool(subfolders(folder))
    if labelled:
        check_class_folders(folder)
    files = images_of(folder, EXTENSIONS)
    names = tuple(sorted({folder_of(file, folder) for file in files}, key=natural_key))
    if not files:
        raise DataError(f"no images in {folder}; their names end in {', '.join(EXTENSIONS)}")
    if labelled and classes is not None:
        check_same_classes(classes, names, folder)
        missing = [name for name in classes if name not in names]
        if missing:
            warnings.warn(f"{folder} has no images of {some(missing)}", stacklevel=5)
        names = classes
    elif labelled:
        check_classes(names, folder)
    class_map = {name: index for index, name in enumerate(names)}
    reader = ClassFolders(folder, [(file, class_map[folder_of(file, folder)]) for file in files])
    dataset = TimmDataset(str(folder), reader=reader)
    return ImageDataset(dataset, labelled=labelled), names if labelled else None


def open_named(
    name: str, train_split: str, val_name: str | None, find_val: bool, unlabelled: bool, kwargs: dict[str, Any]
) -> Opened:
    """A dataset by timm's name, ``torch/NAME`` or ``hfds/NAME``, with ``:ROOT`` at its end or not.

    Raises:
        DataError: see :func:`ilmconvert.data.open_data.open_data`.
    """
    prefix, slash, _ = name.partition("/")
    if not slash or prefix not in (*_MAP_STYLE, *_STREAMS):
        what = "is a file; unpack it into a folder" if Path(name).is_file() else "isn't a folder"
        raise DataError(f"{name} {what}; give a folder of images, or a dataset such as torch/cifar10")
    if prefix in _STREAMS:
        raise DataError(f"{name} is a stream, which can't be resumed exactly; use hfds/ or a folder of images")
    name, colon, root = name.partition(":")
    if colon:
        kwargs = {**kwargs, "root": root}
    train = ImageDataset(_create(name, train_split, kwargs), labelled=not unlabelled)
    names = _class_names(train)
    if names is not None:
        check_classes(names, name)
    val = None
    if val_name is not None:
        val = _create(name, val_name, kwargs)
    elif find_val:
        val = _find_val(name, kwargs)
    return train, None if val is None else ImageDataset(val, labelled=not unlabelled), names


def _find_val(name: str, kwargs: dict[str, Any]) -> Any | None:
    """The split of a named dataset that is there for validation, if one has a usual name."""
    if name.startswith("torch/"):  # torchvision has no other than training and the rest
        return _create(name, "validation", kwargs)
    for split_name in _HUB_VAL_NAMES:
        try:
            return _create(name, split_name, kwargs)
        except DataError:
            continue
    return None


def _create(name: str, split: str, kwargs: dict[str, Any]) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset(name, split=split, **kwargs)
    except ImportError as error:
        raise DataError(f"{name} needs a package: pip install {error.name or 'datasets'}") from error
    except Exception as error:  # every library has its own
        reason = one_line(error) or type(error).__name__
        reason = reason[:300].replace("download=True", "--dataset-download (download=True)")
        raise DataError(
            f"can't open {name}, split {split}: {reason} (--data-dir says where it lies, data_dir in Python)"
        ) from error


def _class_names(images: ImageDataset) -> tuple[str, ...] | None:
    """The classes of a named dataset in the order of its labels; numbers where they have no names."""
    if not images.labelled:
        return None
    known = getattr(getattr(images.source, "reader", images.source), "class_to_idx", None)
    if known:
        return tuple(str(name) for name in sorted(known, key=known.__getitem__))
    return tuple(str(i) for i in range(int(labels_of(images).max()) + 1))


def split(
    images: ImageDataset, fraction: float, seed: int, names: tuple[str, ...] | None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and validation images: the same fraction of every class, at least one image in each.

    Raises:
        DataError: a class of one image.
    """
    labels = labels_of(images)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        if len(members) < 2:
            what = f"the class {names[label]}" if names else "the folder"
            raise DataError(f"{what} has one image, which can't be split into training and validation; add some")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        chosen[members[torch.randperm(len(members), generator=generator, device="cpu")[:count]]] = True
    train, val = (torch.nonzero(mask).flatten().tolist() for mask in (~chosen, chosen))
    return images.subset(train), images.subset(val)


#: Endings of files that count as images.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_SHOWN = 3


def some(names: Iterable[str], shown: int = _SHOWN) -> str:
    """The first few of some names.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    names = list(names)
    rest = len(names) - shown
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:shown])} and {rest} more"


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that aren't hidden, sorted."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_class_folders(folder: Path) -> None:
    """Refuse images beside class folders, and empty class folders.

    Raises:
        DataError: names the first ones.
    """
    loose = [p.name for p in folder.iterdir() if is_image(p)]
    if loose:
        raise DataError(f"{folder} holds images ({some(loose)}) beside class folders; move them into their classes")
    empty = [p.name for p in subfolders(folder) if not _any_image(p)]
    if empty:
        raise DataError(f"no image in the class folder {some(empty)} of {folder}; fill or remove it")


def _any_image(folder: Path) -> bool:
    return any(is_image(p) for p in folder.iterdir()) or any(_any_image(p) for p in subfolders(folder))


def check_classes(names: Sequence[str], where: object) -> None:
    """Refuse a data set of one class.

    Raises:
        DataError: there is only one.
    """
    if len(names) < 2:
        raise DataError(f"{where} holds one class, {names[0]}; labels tell two or more apart (--unlabelled needs none)")


def check_same_classes(train: Sequence[str], val: Sequence[str], where: object) -> None:
    """Refuse validation images of classes that are never trained.

    Raises:
        DataError: names the first ones.
    """
    extra = [name for name in val if name not in train]
    if extra:
        raise DataError(f"the class {some(extra)} of {where} isn't among the classes to train; name the folders alike")
