"""timm's augmentation policies, made to work with every Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def keep_a_bit(policy: object) -> None:
    """Let the posterizing of a policy keep one bit of a colour or more, in place.

    timm's strongest level keeps none, as in ``rand-m9-mstd0.5-inc1``: a black image, and from Pillow 13 on an error in
    the middle of an epoch.

    Args:
        policy: timm's ``RandAugment``, ``AugMixAugment`` or ``AutoAugment``; whatever else it is, nothing happens.
    """
    for operation in _operations(policy):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _operations(policy: object) -> Iterator[Any]:
    from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment

    if isinstance(policy, RandAugment | AugMixAugment):
        yield from policy.ops
    elif isinstance(policy, AutoAugment):
        yield from (operation for part in policy.policy for operation in part)


def _posterize(image: Any, bits: int, **others: Any) -> Any:
    from timm.data.auto_augment import posterize

    return posterize(image, max(bits, 1), **others)
