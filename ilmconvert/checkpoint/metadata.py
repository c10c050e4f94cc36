"""The metadata of a checkpoint: how to build its model again, in a versioned format that is checked when read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ilmconvert.checkpoint.build_budget import Budget, build_within_budget
from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.errors import CheckpointError, ModelError
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.conversion_info import noted
from ilmconvert.surgery.converted_layers import ConvertedLayer, layers_of, replace_layers
from ilmconvert.surgery.input_standardization import InputStandardization, input_standardization
from ilmconvert.surgery.module_state import state_of

if TYPE_CHECKING:
    from ilmconvert.models.create import ModelSpec

METADATA_KEY = "ilmconvert"
#: The newest that is read. A file says 2 only if it holds what those of 1 can't: a standardisation of the input.
FORMAT_VERSION = 2
#: Characters of JSON; a layer takes about 250.
LARGEST_METADATA = 1 << 20
_DEEPEST = 64


@dataclass(frozen=True)
class Metadata:
    """The JSON metadata of a checkpoint.

    Attributes:
        spec: library, architecture and constructor arguments; None for a custom model (not from timm or torchvision).
        layers: name, aliases and settings of every ILM Norm.
        aliases: second names of tensors, each with the name under which the tensor is stored.
        settings: the ``to`` and ``init`` of the conversion, where known.
        provenance: of the weights.
        extra: entries of the model's state that are no tensors, by name.
        standardized_input: the standardisation of each image in the network, if there is one.
        ilmconvert: the version that wrote the file.
    """

    spec: dict[str, Any] | None
    layers: tuple[ConvertedLayer, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    ilmconvert: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    standardized_input: InputStandardization | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        data = {"format_version": 1, **vars(self), "layers": [layer.to_dict() for layer in self.layers]}
        standardized = data.pop("standardized_input")
        if standardized is not None:
            data |= {"format_version": 2, "standardized_input": standardized.to_dict()}
        if not self.extra:  # as in files that were written before there were any
            del data["extra"]
        return data

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Parse and check; raises a ValueError that says what is wrong."""
        data = parse(text)
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError("its metadata names no format version; convert the model again")
        if version > FORMAT_VERSION:
            raise ValueError(f"format {version} is newer than this ilmconvert's {FORMAT_VERSION}; upgrade ilmconvert")
        kinds = {
            "layers": list,
            "aliases": dict,
            "settings": dict,
            "provenance": dict,
            "ilmconvert": str,
            "extra": dict,
        }
        data.setdefault("extra", {})
        wrong = [key for key, kind in kinds.items() if not isinstance(data.get(key), kind)]
        if wrong or not isinstance(data.get("spec", 0), dict | None):
            raise ValueError(f"its metadata is damaged at {', '.join(wrong) or 'spec'}; convert the model again")
        if not all(isinstance(v, str) for v in data["aliases"].values()):
            raise ValueError("its metadata is damaged at aliases; convert the model again")
        layers = tuple(ConvertedLayer.from_dict(entry) for entry in data.pop("layers"))
        standardized = data.get("standardized_input")
        return cls(
            data["spec"],
            layers,
            **{k: data[k] for k in kinds if k != "layers"},
            standardized_input=None if standardized is None else InputStandardization.from_dict(standardized),
        )


def parse(text: str) -> Any:
    """JSON of bounded length and depth; raises a ValueError that says what is wrong."""
    if len(text) > LARGEST_METADATA:
        raise ValueError(f"its metadata takes {len(text)} characters, of at most {LARGEST_METADATA}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"its metadata isn't JSON ({e}); copy or convert it again") from e
    level = [data]
    for _ in range(_DEEPEST):
        level = [v for parent in level if isinstance(parent, dict | list) for v in _children(parent)]
    if level:
        raise ValueError(f"its metadata is nested deeper than {_DEEPEST} levels; convert the model again")
    return data


def _children(parent: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return parent.values() if isinstance(parent, dict) else parent


def describe(
    model: nn.Module,
    spec: ModelSpec | None,
    provenance: Mapping[str, Any] | None,
    aliases: dict[str, str],
    extra: dict[str, Any],
) -> Metadata:
    """The metadata of ``model``."""
    from ilmconvert._constants import __version__

    layers = layers_of(model)
    found, fitting = noted(model), _fitting_spec(model, spec, layers)
    if provenance is None:
        provenance = found.provenance
    return Metadata(
        spec=fitting.to_dict() if fitting else None,
        layers=layers,
        aliases=aliases,
        settings=dict(found.settings),
        provenance=dict(provenance),
        ilmconvert=__version__,
        extra=extra,
        standardized_input=input_standardization(model),
    )


def refuse_unconverted(model: nn.Module) -> None:
    """Raise a CheckpointError for a model in which nothing is ours, which was to be converted before it is saved."""
    if not layers_of(model) and input_standardization(model) is None:
        raise CheckpointError(
            "the model holds no ILM Norm layer and no GroupNorm layer of a conversion; convert it first"
        )


def _fitting_spec(model: nn.Module, spec: ModelSpec | None, layers: tuple[ConvertedLayer, ...]) -> ModelSpec | None:
    """The given spec, which must build this very structure; or the one found on the model, if it does."""
    if spec is not None:
        problem = _difference(model, spec, layers)
        if problem:
            raise CheckpointError(f"{spec.library}/{spec.architecture} with these arguments isn't the model: {problem}")
        return spec
    problem = None
    for candidate in _candidates(model):
        problem = _difference(model, candidate, layers)
        if problem is None:
            return candidate
    if problem:
        warnings.warn(
            f"the model isn't what its architecture's name builds ({problem}): the file needs load(path, into=model)",
            stacklevel=4,
        )
    return None


def _candidates(model: nn.Module) -> list[ModelSpec]:
    """Ways to build the model: as :func:`ilmconvert.info` and timm say, or with a head of another size."""
    stored = noted(model).spec
    if stored is None and not hasattr(model, "pretrained_cfg"):
        return []
    from ilmconvert.models.create import ModelSpec, infer_spec

    candidates = [stored] if isinstance(stored, ModelSpec) else []
    inferred = infer_spec(model)
    if inferred is not None and inferred not in candidates:
        candidates.append(inferred)
    num_classes = getattr(model, "num_classes", None)
    if candidates and isinstance(num_classes, int):
        args = {**candidates[0].model_args, "num_classes": num_classes}
        candidates.append(replace(candidates[0], model_args=args))
    return candidates


def _difference(model: nn.Module, spec: ModelSpec, layers: tuple[ConvertedLayer, ...]) -> str | None:
    """How what ``spec`` builds differs from ``model`` in its modules, their settings or tensors; None if it doesn't."""
    tensors = {name: t for name, t in state_of(model).items() if isinstance(t, Tensor)}
    entries = {name: Entry(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    try:
        # As it will be when the file is loaded.
        built = replace_layers(build_within_budget(spec, Budget.of(entries)), layers)
    except (ModelError, ValueError) as e:
        return str(e)
    ours, theirs = dict(_structure(model)), dict(_structure(built))
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            return f"{name or 'the root'} is {ours.get(name, 'absent')}, not {theirs.get(name, 'absent')}"
    return None


def _structure(model: nn.Module) -> list[tuple[str, str]]:
    modules = [
        (name, f"{type(m).__name__}({'' if isinstance(m, ILMNorm) else m.extra_repr()})")
        for name, m in model.named_modules(remove_duplicate=False)
    ]
    state = state_of(model)
    return modules + [
        (name, f"of shape {tuple(t.shape)}" if isinstance(t, Tensor) else "no tensor") for name, t in state.items()
    ]
