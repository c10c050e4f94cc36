"""How to build a model again: library, architecture and constructor arguments."""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ilmconvert.errors import ModelError
from ilmconvert.models.argument_names import argument_hint
from ilmconvert.models.names import LIBRARIES, unknown, zoo
from ilmconvert.models.skip_init import skip_init
from ilmconvert.surgery.conversion_info import note, noted

#: Constructor arguments that make a library read or fetch weights; a checkpoint from elsewhere may hold any.
_WEIGHT_ARGS = frozenset({"checkpoint_path", "cache_dir", "weights", "weights_backbone", "state_dict"})
#: Arguments that say where the parameters are to be, not what the model is.
_PLACE_ARGS = frozenset({"device", "dtype"})
#: Longer than every name of a model.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model again, without its weights.

    Attributes:
        library: "timm" or "torchvision".
        architecture: the library's name of the model; timm's with its tag, as in "resnet50.a1_in1k".
        model_args: keyword arguments of the constructor, all of them JSON values.

    >>> spec = ModelSpec("timm", "test_resnet.r160_in1k", {"num_classes": 10})
    >>> ModelSpec.from_dict(spec.to_dict()) == spec
    True
    """

    library: str
    architecture: str
    model_args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "library": self.library,
            "architecture": self.architecture,
            "model_args": json.loads(json.dumps(dict(self.model_args))),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            ModelError: the library or the architecture isn't known here, or ``data`` isn't such a dict.
        """
        if not isinstance(data, Mapping) or not {"library", "architecture"} <= data.keys():
            raise ModelError("a model is described by the entries library, architecture and model_args")
        library, architecture, args = data["library"], data["architecture"], data.get("model_args") or {}
        if library not in LIBRARIES:
            raise ModelError(f"unknown model library {library!r}; known are {' and '.join(LIBRARIES)}")
        if not isinstance(architecture, str) or len(architecture) > _LONGEST_NAME:
            raise ModelError(f"unknown model {reprlib.repr(architecture)}")
        if not zoo(library).is_known(architecture):
            raise ModelError(unknown(f"{library}/{architecture}"))
        if not isinstance(args, Mapping):
            raise ModelError("model_args has to be a JSON object of constructor arguments")
        if places := sorted(_PLACE_ARGS & args.keys()):
            raise ModelError(f"{', '.join(places)} can't be a constructor argument of a stored model")
        return cls(library, architecture, json_args(args))

    def build(self, *, initialize: bool = True) -> nn.Module:
        """A new model without pretrained weights, in training mode; :func:`ilmconvert.info` tells this spec of it.

        With ``initialize=False`` the random initialisation of parameters is skipped; overwrite every parameter then.

        Raises:
            ModelError: the library can't build the model with these arguments.
        """
        return label_built(self.build_within([] if initialize else [skip_init()]), self)

    def build_within(self, contexts: list[AbstractContextManager[None]]) -> nn.Module:
        """:meth:`build` inside of contexts that change how modules are built; the spec isn't noted on the model.

        Raises:
            ModelError: see :meth:`build`.
        """
        with ExitStack() as stack, warnings.catch_warnings():
            for context in contexts:
                stack.enter_context(context)
            # torchvision announces a change of default initialisations that the caller doesn't choose here
            warnings.simplefilter("ignore", FutureWarning)
            try:
                model: nn.Module = zoo(self.library).build(self.architecture, dict(self.model_args))
            except Exception as error:
                raise ModelError(self.cannot_build(error)) from error
        return model

    def cannot_build(self, error: Exception) -> str:
        """The error message: which model couldn't be built, and why, in one line."""
        shown = {key: value for key, value in self.model_args.items() if key != "pretrained_cfg"}
        args = ", ".join(f"{key[:_LONGEST_NAME]}={reprlib.repr(value)}" for key, value in shown.items())
        reason = " ".join(str(error)[:1000].split()) or type(error).__name__
        reason += argument_hint(error, self.library)
        return f"{self.library} can't build {self.architecture}{f' with {args}' if args else ''}: {reason}"


def label(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Note the spec on the model, where :func:`ilmconvert.info` and ``ilmconvert.save`` find it."""
    return note(model, spec=spec)


def label_built(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """:func:`label` for what a library has just built; a published conversion notes its base itself."""
    return model if isinstance(noted(model).spec, ModelSpec) else label(model, spec)


def json_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of constructor arguments as JSON values; raises a ModelError if they can't be."""
    weights = sorted(key for key in args if key in _WEIGHT_ARGS or _asks_for_weights(key))
    if weights:
        raise ModelError(f"{', '.join(weights)} can't be a constructor argument here: weights are named by --weights")
    try:
        result: dict[str, Any] = json.loads(json.dumps(dict(args), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"model arguments have to be JSON values, so that they can be stored: {error}") from error
    return result


def _asks_for_weights(name: str) -> bool:
    """``pretrained``, ``pretrained_backbone`` and the like; ``pretrained_cfg`` describes the model."""
    return name.startswith("pretrained") and name != "pretrained_cfg"
