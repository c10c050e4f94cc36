"""transformers: a conversion that ``save_pretrained`` writes and ``from_pretrained`` builds again.

transformers changes the modules of a model before it reads the weights where ``config.json`` has a
``quantization_config`` whose method somebody registered. A conversion is such a change, though nothing is quantised.
The entry is in the file alone: a model in memory has none, and nobody takes it for a quantised one. This module
registers itself when it is imported, see :mod:`ilmconvert.export.import_hook`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ilmconvert.checkpoint.metadata import Metadata
from ilmconvert.errors import CheckpointError
from ilmconvert.export.config_entry import METHOD, metadata_of
from ilmconvert.surgery.conversion_info import note
from ilmconvert.surgery.converted_layers import ConvertedLayer, layers_of, replace_layers
from ilmconvert.surgery.sources import describe_norm

_ENTRY = "quantization_config"
_QUANTISED = ("hf_quantizer", "is_quantized", "quantization_method")


@register_quantization_config(METHOD)
class ConversionConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The entry of config.json: the metadata that a checkpoint of :func:`ilmconvert.save` has as well.

    Args:
        metadata: JSON values, see :class:`ilmconvert.checkpoint.metadata.Metadata`.
    """

    def __init__(self, metadata: Mapping[str, Any] | None = None, **others: Any) -> None:
        self.quant_method = METHOD
        self.metadata = dict(metadata or {})

    @classmethod
    def of(cls, model: nn.Module, layers: tuple[ConvertedLayer, ...]) -> ConversionConfig:
        """The entry for a model with these converted layers."""
        return cls(metadata_of(model, layers))


@register_quantizer(METHOD)
class ConversionQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts the layers into the model that transformers has built, before it reads their values."""

    def _process_model_before_weight_loading(self, model: Any, **others: Any) -> Any:
        try:
            metadata = Metadata.from_json(json.dumps(self.quantization_config.metadata))
            with torch.device("cpu"):  # transformers builds on the meta device, where no norm can be tried out
                layers = _layers_in(model, metadata.layers)
                self._frozen = [layer.name for layer in layers if _is_frozen(model.get_submodule(layer.name))]
                replace_layers(model, layers)
        except ValueError as error:
            raise CheckpointError(f"the conversion in config.json can't be built again: {error}") from error
        return note(model, settings=metadata.settings, provenance=metadata.provenance)

    def _process_model_after_weight_loading(self, model: Any, **others: Any) -> Any:
        _check_filled(model)
        for name in self._frozen:  # transformers lets all that it reads train
            model.get_submodule(name).requires_grad_(False)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                for attribute in _QUANTISED:
                    vars(module).pop(attribute, None)
                for attribute in ("_is_quantized", _ENTRY):
                    vars(module.config).pop(attribute, None)
        return model

    def is_serializable(self, *args: Any, **others: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _layers_in(model: Any, layers: Iterable[ConvertedLayer]) -> list[ConvertedLayer]:
    """The layers by their names in ``model``, which may be the base of the saved model, or hold that as its base."""
    if type(model).__name__ in (model.config.architectures or ()):
        return list(layers)
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    base, prefix = model.base_model_prefix, f"{model.base_model_prefix}."

    def here(name: str) -> str:
        if base not in names:
            return name.removeprefix(prefix)
        return name if name in names else f"{prefix}{name}"

    renamed = [replace(layer, name=here(layer.name), aliases=tuple(map(here, layer.aliases))) for layer in layers]
    # What belongs to a head that this model doesn't have stays away, as its weights do.
    return [layer for layer in renamed if names.issuperset(layer.names)]


def _is_frozen(module: nn.Module) -> bool:
    """Whether ``module`` is a norm whose gamma and beta are buffers."""
    source = describe_norm(module)
    values = () if source is None else (source.weight, source.bias)
    return any(t is not None for t in values) and not any(isinstance(t, nn.Parameter) for t in values)


def _check_filled(model: nn.Module) -> None:
    """transformers reports values that the file lacks, and goes on; it knows no initial values of these layers."""
    if not any(map(_is_read, model.parameters())):  # transformers 4 doesn't mark what it reads
        return
    for layer in layers_of(model):
        for name, t in model.get_submodule(layer.name).named_parameters(recurse=False):
            if not (t.is_meta or _is_read(t)):
                raise CheckpointError(f"{layer.name}.{name} isn't in the file, or of another shape; save it again")


def _is_read(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "_is_hf_initialized", False)


@contextmanager
def _entry_in_config(model: Any) -> Iterator[None]:
    """While a model is being saved, its configuration says how its layers are made."""
    attributes, layers = vars(model.config), layers_of(model)
    before = attributes.get(_ENTRY)
    method = before.get("quant_method") if isinstance(before, dict) else getattr(before, "quant_method", None)
    if before is not None and method != METHOD:
        if layers and not getattr(model, "_hf_peft_config_loaded", False):
            raise CheckpointError(
                f"config.json has room for one method, and {type(model).__name__} is quantised by "
                f"{getattr(method, 'value', method)} and converted; use ilmconvert.save"
            )
        yield
        return
    attributes.pop(_ENTRY, None)  # of a model that was built from the configuration of a converted one
    if layers:
        attributes[_ENTRY] = ConversionConfig.of(model, layers)
    try:
        yield
    finally:
        attributes.pop(_ENTRY, None)
        if before is not None:
            attributes[_ENTRY] = before


_save_pretrained = PreTrainedModel.save_pretrained


@functools.wraps(_save_pretrained)
def _save_with_conversion(self: Any, *args: Any, **kwargs: Any) -> Any:
    with _entry_in_config(self):
        return _save_pretrained(self, *args, **kwargs)


# A quantizer that is set on a model has a say in what is saved, but only on the model that was converted itself: of one
# that holds a converted part, the conversion would be lost without a word.
PreTrainedModel.save_pretrained = _save_with_conversion
