"""What is wrong with a data set, or with a data set for a recipe, said in one line before any training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune.fields import RecipeError

if TYPE_CHECKING:
    from ilmconvert.finetune.data import Data
    from ilmconvert.finetune.pictures import Pictures
    from ilmconvert.finetune.recipe import Recipe

#: Endings of files that count as pictures.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_VERIFIED = 32
_SHOWN = 3


class DataError(ILMConvertError):
    """Pictures that can't be trained on as asked."""

    def __init__(self, message: object = "") -> None:
        # torch re-raises what a worker raised with the worker's whole traceback as the message.
        marker = f"{type(self).__name__}: "
        text = str(message)
        if text.startswith("Caught ") and marker in text:
            text = text.rpartition(marker)[2].splitlines()[0]
        super().__init__(text)


def some(names: Iterable[str]) -> str:
    """The first few of some names.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    names = list(names)
    rest = len(names) - _SHOWN
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:_SHOWN])} and {rest} more"


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that aren't hidden, sorted."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def check_class_folders(folder: Path) -> None:
    """Refuse pictures beside class folders, and empty class folders.

    Raises:
        DataError: names the first ones.
    """
    loose = [p.name for p in folder.iterdir() if is_picture(p)]
    if loose:
        raise DataError(f"{folder} holds pictures ({some(loose)}) beside class folders; move them into their classes")
    empty = [p.name for p in subfolders(folder) if not _any_picture(p)]
    if empty:
        raise DataError(f"no picture in the class folder {some(empty)} of {folder}; fill or remove it")


def _any_picture(folder: Path) -> bool:
    return any(is_picture(p) for p in folder.iterdir()) or any(_any_picture(p) for p in subfolders(folder))


def check_classes(names: Sequence[str], where: object) -> None:
    """Refuse a data set of one class.

    Raises:
        DataError: there is only one.
    """
    if len(names) < 2:
        raise DataError(f"{where} holds one class, {names[0]}; training needs two or more (--unlabelled needs none)")


def check_same_classes(train: Sequence[str], val: Sequence[str], where: object) -> None:
    """Refuse validation pictures of classes that are never trained.

    Raises:
        DataError: names the first ones.
    """
    extra = [name for name in val if name not in train]
    if extra:
        raise DataError(f"the class {some(extra)} of {where} isn't among the classes to train; name the folders alike")


def check_readable(pictures: Pictures) -> None:
    """Read a few pictures, evenly spread, to find damage early; each is checked again when it is used.

    Raises:
        DataError: names the file.
    """
    count = min(len(pictures), _VERIFIED)
    for i in range(count):
        pictures[i * len(pictures) // count]


def check_head(data: Data, num_classes: int) -> None:
    """Refuse labelled data that don't have a class for every output of the head.

    Raises:
        DataError: fewer or more classes than outputs.
    """
    if data.num_classes is not None and data.num_classes != num_classes:
        fewer = "fewer" if data.num_classes < num_classes else "more"
        counts = f"the data have {data.num_classes} classes, {fewer} than the {num_classes} outputs of the model's head"
        raise DataError(f"{counts}; replace it with --num-classes {data.num_classes} (num_classes={data.num_classes})")


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
