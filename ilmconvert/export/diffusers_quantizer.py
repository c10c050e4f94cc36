"""diffusers: a conversion that ``save_pretrained`` writes and ``from_pretrained`` builds again.

The mechanism is that of :mod:`ilmconvert.export.transformers_quantizer`: an entry of config.json names a method that
changes modules before the weights are read. diffusers keeps its methods in two tables. A model in memory has no entry.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from ilmconvert.checkpoint.metadata import Metadata
from ilmconvert.errors import CheckpointError
from ilmconvert.export.config_entry import METHOD, metadata_of
from ilmconvert.surgery.conversion_info import note
from ilmconvert.surgery.converted_layers import layers_of, replace_layers

_ENTRY = "quantization_config"
_QUANTISED = ("hf_quantizer", "is_quantized", "quantization_method")


class Method(str, Enum):
    """The ``quant_method`` in config.json; diffusers asks for its ``value``."""

    ILMCONVERT = METHOD


class ConversionConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The entry of config.json: the metadata that a checkpoint of :func:`ilmconvert.save` has as well.

    Args:
        metadata: JSON values, see :class:`ilmconvert.checkpoint.metadata.Metadata`.
    """

    def __init__(self, metadata: dict[str, Any] | None = None, **others: Any) -> None:
        self.quant_method = Method.ILMCONVERT
        self.metadata = dict(metadata or {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}(metadata={self.metadata})"


class ConversionQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Puts the layers into the model that diffusers has built, before it reads their values."""

    def _process_model_before_weight_loading(self, model: Any, **others: Any) -> Any:
        try:
            metadata = Metadata.from_json(json.dumps(self.quantization_config.metadata))
            with torch.device("cpu"):  # diffusers builds on the meta device, where no norm can be tried out
                replace_layers(model, metadata.layers)
        except ValueError as error:
            raise CheckpointError(f"the conversion in config.json can't be built again: {error}") from error
        return note(model, settings=metadata.settings, provenance=metadata.provenance)

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """diffusers leaves values that the file lacks on the meta device; it knows none for these layers."""
        ours = tuple(f"{layer.name}." for layer in layers_of(model))
        lacking = next((key for key in missing_keys if key.startswith(ours)), None)
        if lacking is not None:
            raise CheckpointError(f"{lacking} isn't in the file; save it again")
        return missing_keys

    def _process_model_after_weight_loading(self, model: Any, **others: Any) -> Any:
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


@contextmanager
def _entry_in_config(model: Any) -> Iterator[None]:
    """While a model is being saved, its configuration says how its layers are made."""
    before, layers = model._internal_dict, layers_of(model)
    if layers and before.get(_ENTRY) is not None:
        text = f"config.json has room for one method, and {type(model).__name__} is quantised and converted"
        raise CheckpointError(f"{text}; use ilmconvert.save")
    if layers:
        entry = {"quant_method": METHOD, "metadata": metadata_of(model, layers)}
        model._internal_dict = FrozenDict({**before, _ENTRY: entry})
    try:
        yield
    finally:
        model._internal_dict = before


_save_pretrained, _from_pretrained = ModelMixin.save_pretrained, ModelMixin.from_pretrained.__func__


@functools.wraps(_save_pretrained)
def _save_with_conversion(self: Any, *args: Any, **kwargs: Any) -> Any:
    with _entry_in_config(self):
        return _save_pretrained(self, *args, **kwargs)


@functools.wraps(_from_pretrained)
def _load_with_conversion(cls: Any, *args: Any, **kwargs: Any) -> Any:
    result = _from_pretrained(cls, *args, **kwargs)
    model: Any = result[0] if isinstance(result, tuple) else result
    if isinstance(vars(model).get("hf_quantizer"), ConversionQuantizer):
        for name in _QUANTISED:  # so that nobody takes it for a quantised model
            model.__dict__.pop(name, None)
        left = {k: v for k, v in model._internal_dict.items() if k not in (_ENTRY, "_pre_quantization_dtype")}
        model._internal_dict = FrozenDict(left)
    return result


AUTO_QUANTIZER_MAPPING[METHOD] = ConversionQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = ConversionConfig
ModelMixin.save_pretrained, ModelMixin.from_pretrained = _save_with_conversion, classmethod(_load_with_conversion)
