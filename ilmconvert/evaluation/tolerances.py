"""What counts as equal: every limit that a conversion is held to, each with its reason.

``ilmconvert verify``, ``convert`` and ``sweep`` and the tests read them here, so that none of them passes what another
refuses.
"""

from __future__ import annotations

import torch

from ilmconvert.surgery.difference import ROUNDING as ROUNDING

#: Least signal-to-error ratio in decibels of every layer of an exact conversion by itself, in single precision, where
#: EfficientNet-Lite0 and timm's test models have 128 and more. It sees what the outputs hardly show: a change of one
#: weight of test_resnet's first norm by 0.001 moves the largest output by 8e-6, and leaves this layer 71 dB.
EXACT_RATIO = 80.0

#: Least share of images on which an exact conversion has the class of its source: rounding swaps two classes only where
#: their logits are equal to six digits.
EXACT_AGREEMENT = 0.999

#: The same with a bound on the restoring path, which is meant for images unlike those of the training: of ordinary
#: ones it changes few (docs/robustness.md).
BOUNDED_AGREEMENT = 0.99

#: Largest difference of a layer's values from those that a start from the source's moments gives, over the largest of
#: them: they are computed in double precision and stored once.
INITIAL_VALUES: dict[torch.dtype, float] = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
