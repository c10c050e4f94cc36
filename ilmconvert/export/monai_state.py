"""MONAI: ``copy_model_state`` doesn't mix the values of a norm with those of the layer that it became.

It pairs tensors by name and shape. ``weight`` and ``bias`` of both fit and mean different things.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from monai.networks import utils
from torch import nn

from ilmconvert.errors import ModelError
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.sources import find_source
from ilmconvert.surgery.targets import config_of

_copy = utils.copy_model_state


@functools.wraps(_copy)
def _copy_whole_layers(
    dst: Any,
    src: Any,
    dst_prefix: str = "",
    mapping: Any = None,
    exclude_vars: Any = None,
    inplace: Any = True,
    **more: Any,
) -> Any:
    _, updated, unchanged = _copy(dst, src, dst_prefix, mapping, exclude_vars, False, **more)
    if isinstance(dst, nn.Module):
        _check(dst, src, set(updated), set(unchanged))
    return _copy(dst, src, dst_prefix, mapping, exclude_vars, inplace, **more)


def _check(dst: nn.Module, src: Any, updated: set[str], unchanged: set[str]) -> None:
    """No layer gets a part of its values, where it or its counterpart is converted."""
    from_converted = bool(layers_of(src)) if isinstance(src, nn.Module) else any(k.endswith(".ref_std") for k in src)
    for name, module in dst.named_modules():
        if config_of(module) is None and not (from_converted and find_source(module) is not None):
            continue
        parts = {f"{name}.{key}" for key in module.state_dict()} - {f"{name}.num_batches_tracked"}
        if parts & updated and parts & unchanged:
            raise ModelError(f"{name} is converted in one of the two networks only; copy the weights, then convert")


# MONAI imports the function by name, here and there.
for _name, _module in list(sys.modules.items()):
    if _name.startswith("monai") and getattr(_module, "copy_model_state", None) is _copy:
        vars(_module)["copy_model_state"] = _copy_whole_layers
