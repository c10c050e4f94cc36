"""What is known of a converted model: what was converted, how, and from what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from ilmconvert._constants import shown_by
from ilmconvert.surgery.converted_layers import ConvertedLayer, layers_of
from ilmconvert.surgery.input_standardization import InputStandardization, input_standardization

# On the root of a model; whatever copies or pickles the module takes it along.
_ATTRIBUTE = "_ilmconvert_info"


class SourceSpec(Protocol):
    """How a model is built; a :class:`ilmconvert.models.spec.ModelSpec`."""

    @property
    def library(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def model_args(self) -> Mapping[str, Any]: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ConversionInfo:
    """What is known of a converted model. ``str(info)`` is one line.

    Attributes:
        layers: what was converted: the layers that a conversion made, as they are now, with their settings.
        settings: how: the ``to`` and ``init`` of ``convert``, and ``annealed``, ``calibrated``, ``collapsed`` and
            ``collapse_deviation`` after these steps; JSON values. Empty before a conversion.
        spec: from what: library, architecture and constructor arguments; None for a custom model.
        provenance: where the source's weights come from; JSON values.
        standardized_input: the standardisation of each image in the network, if there is one; see
            :func:`ilmconvert.standardize_input`.
    """

    layers: tuple[ConvertedLayer, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    spec: SourceSpec | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    standardized_input: InputStandardization | None = None

    _repr_html_ = shown_by("ilmconvert.report.notebook:conversion")

    @property
    def to(self) -> str | None:
        """The target, where known."""
        return self.settings.get("to")

    @property
    def init(self) -> str | None:
        """The initial values, where known."""
        return self.settings.get("init")

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the keys of a checkpoint's metadata."""
        standardized = self.standardized_input
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            "settings": dict(self.settings),
            "spec": None if self.spec is None else self.spec.to_dict(),
            "provenance": dict(self.provenance),
            **({} if standardized is None else {"standardized_input": standardized.to_dict()}),
        }

    def __str__(self) -> str:
        titles = Counter(layer.config.title for layer in self.layers)
        made = ", ".join(f"{count} {title} layers" for title, count in titles.items()) or "no converted layers"
        how = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        name = "a custom model" if self.spec is None else f"{self.spec.library}/{self.spec.architecture}"
        weights = f", weights {self.provenance['weights']}" if "weights" in self.provenance else ""
        standardized = "" if self.standardized_input is None else f"; {self.standardized_input}"
        return f"{made}{f' ({how})' if how else ''} of {name}{weights}{standardized}"


def info(model: nn.Module) -> ConversionInfo:
    """What was converted in ``model``, how, and from what.

    It stays with the model through copies, pickling, :func:`ilmconvert.save` and :func:`ilmconvert.load`, and the hub.
    A model that wasn't converted has no layers and no settings; of one that ``create_model`` built the spec and the
    provenance are known.

    >>> from ilmconvert import convert
    >>> from ilmconvert.testing import randomize_norms
    >>> found = info(convert(randomize_norms(nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64)))))
    >>> print(found)
    1 ILM Norm layers (to ilm_gn, init identity) of a custom model
    >>> found.layers[0].name, found.layers[0].config.num_groups
    ('1', 32)
    """
    return replace(noted(model), layers=layers_of(model), standardized_input=input_standardization(model))


def noted(model: nn.Module) -> ConversionInfo:
    """:func:`info` without a look at the layers."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, ConversionInfo) else ConversionInfo()


def note(model: nn.Module, found: ConversionInfo | None = None, **changes: Any) -> nn.Module:
    """Change what :func:`info` says of ``model``, in place: its settings, spec or provenance; first to ``found``."""
    setattr(model, _ATTRIBUTE, replace(found or noted(model), **changes))
    return model
