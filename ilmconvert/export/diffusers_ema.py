"""diffusers: moving averages of a converted model aren't written into a network without the conversion.

``EMAModel.save_pretrained`` builds a network from its configuration, and pairs the parameters of both by their order.
"""

from __future__ import annotations

import functools
from typing import Any

from diffusers.training_utils import EMAModel

from ilmconvert.errors import CheckpointError

_copy_to = EMAModel.copy_to


@functools.wraps(_copy_to)
def _copy_to_as_many(self: Any, parameters: Any) -> None:
    targets = list(parameters)
    if len(targets) != len(self.shadow_params):
        raise CheckpointError(
            f"these are averages of {len(self.shadow_params)} parameters, not of {len(targets)}; a converted model is "
            "saved by ema.copy_to(model.parameters()) and model.save_pretrained"
        )
    _copy_to(self, targets)


EMAModel.copy_to = _copy_to_as_many
