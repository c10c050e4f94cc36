"""Accuracy on corrupted images of one's own: which network copes with other light, noise and blur."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from ilmconvert.data.corrupted_images import corrupted_images
from ilmconvert.data.corruptions import CORRUPTIONS
from ilmconvert.errors import EvaluationError
from ilmconvert.evaluation.accuracy import Evaluation, evaluate
from ilmconvert.evaluation.robustness import Condition

#: Every corruption.
ALL = "all"


def corruptions(names: Sequence[str], severities: Sequence[int]) -> list[Condition]:
    """Each of the corruptions at each of the severities.

    Args:
        names: keys of :data:`ilmconvert.data.corruptions.CORRUPTIONS`, also with hyphens for spaces; ``ALL`` for all.
        severities: 1 to 5.

    Raises:
        EvaluationError: an unknown name; the message holds one that is near.

    >>> corruptions(["fog", "gaussian-noise"], [3])
    [Condition(name='fog', severity=3), Condition(name='gaussian noise', severity=3)]
    """
    chosen = [known for name in names for known in (CORRUPTIONS if name == ALL else [_known(name)])]
    return [Condition(name, severity) for name in dict.fromkeys(chosen) for severity in severities]


def _known(name: str) -> str:
    plain = name.lower().replace("-", " ")
    if plain in CORRUPTIONS:
        return plain
    near = difflib.get_close_matches(plain, CORRUPTIONS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CORRUPTIONS)}, and {ALL}"
    raise EvaluationError(f"unknown corruption {name!r}; {hint}")


def evaluate_corrupted(
    model: nn.Module,
    items: Dataset[Any],
    config: dict[str, Any],
    conditions: Sequence[Condition],
    *,
    seed: int = 0,
    **settings: Any,
) -> Iterator[tuple[Condition, Evaluation]]:
    """:func:`ilmconvert.evaluation.accuracy.evaluate` under each condition, one after another.

    Args:
        model: maps (N, 3, H, W) to logits.
        items: of (PIL image, label).
        config: of the transform, see :func:`ilmconvert.data.transforms.transform_config`.
        conditions: see :func:`corruptions`.
        seed: of noise, directions and clouds.
        **settings: for ``evaluate``, such as ``against`` and ``batch_size``.

    Raises:
        DataError: the network takes images that aren't RGB, or one can't be read.
        EvaluationError: see ``evaluate``.

    >>> from PIL import Image
    >>> class Brightest(nn.Module):
    ...     def forward(self, x):
    ...         return x.mean((2, 3))
    >>> items = [(Image.new("RGB", (32, 32), "red"), 0), (Image.new("RGB", (32, 32), "blue"), 2)]
    >>> config = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    >>> for condition, found in evaluate_corrupted(Brightest(), items, config, corruptions(["contrast"], [1, 5])):
    ...     print(condition.severity, found.top1)
    1 1.0
    5 1.0
    """
    for condition in conditions:
        assert condition.severity is not None
        images = corrupted_images(items, config, condition.name, condition.severity, seed=seed)
        yield condition, evaluate(model, images, **settings)
