"""A model by name: timm, torchvision, a hub id or a local folder; with pretrained, random or a file's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ilmconvert.errors import ModelError, WeightsError
from ilmconvert.models.load_weights import LoadedWeights, load_into
from ilmconvert.models.names import LIBRARIES, list_models, unknown, zoo
from ilmconvert.models.spec import ModelSpec, json_args, label_built
from ilmconvert.models.weight_files import read_weight_file, refuse_path, sha256
from ilmconvert.surgery.conversion_info import note, noted

__all__ = ["ModelSpec", "create_model", "infer_spec", "list_models", "parse_name"]

HUB_SOURCES = ("hf-hub", "hf_hub", "local-dir")


def parse_name(name: str) -> ModelSpec:
    """The model that a name means.

    ``resnet50`` and ``timm/resnet50`` are timm's (torchvision's, for a bare name that timm lacks),
    ``torchvision/resnet50`` is torchvision's, ``hf-hub:org/name`` and ``local-dir:path`` are timm models on the
    Hugging Face hub and in a folder with ``config.json``; their settings are copied into the spec.

    Raises:
        ModelError: there is no such model (the message holds names that are near), or the name is that of a file.

    >>> parse_name("torchvision/resnet18")
    ModelSpec(library='torchvision', architecture='resnet18', model_args={})
    """
    from ilmconvert.models import timm_zoo

    if ":" in name:
        if name.partition(":")[0] not in HUB_SOURCES:
            refuse_path(name)
            raise ModelError(f"{name!r} isn't a model name; names with a colon start with hf-hub: or local-dir:")
        return ModelSpec("timm", *_with_json_args(timm_zoo.resolve_hub(name)))
    library, slash, bare = name.partition("/")
    if slash and library not in LIBRARIES:
        refuse_path(name)
        if bare.count("/") or library in (".", "..", "~", ""):
            raise ModelError(f"there is no file or folder {name}, nor a model; check it, or see `ilmconvert list`")
        raise ModelError(f"{unknown(name)} (for a model on the hub write hf-hub:{name}, for a folder local-dir:{name})")
    for candidate in (library,) if slash else LIBRARIES:
        library_zoo, architecture = zoo(candidate), bare if slash else name
        if library_zoo.is_known(architecture):
            return ModelSpec(candidate, library_zoo.canonical(architecture))
    refuse_path(name)
    raise ModelError(unknown(name))


def create_model(name: str, *, weights: str | Path = "default", **model_args: Any) -> nn.Module:
    """A model by name in evaluation mode, with weights.

    Args:
        name: see :func:`parse_name`.
        weights: "default" (the library's pretrained ones, downloaded where they aren't cached), "none" (random
            ones), or a file of weights that fit the model, or ``FILE::ENTRY`` for an entry of it (see
            :func:`ilmconvert.load_weights`).
        **model_args: passed to the library's constructor, such as ``num_classes=10``; JSON values only.

    How the model is built (a :class:`ModelSpec`) and where its weights come from (a dict) are noted on it:
    :func:`ilmconvert.info` tells them.

    Raises:
        ModelError: unknown name, arguments that the library refuses, weights that can't be had or don't fit.

    >>> model = create_model("test_resnet", weights="none", num_classes=10)
    >>> from ilmconvert import info
    >>> info(model).provenance
    {'weights': 'none'}
    """
    spec = parse_name(name)
    spec = ModelSpec(spec.library, spec.architecture, {**spec.model_args, **json_args(model_args)})
    library = zoo(spec.library)
    provenance: dict[str, Any]
    if weights == "none":
        model, provenance = spec.build(), {"weights": "none"}
    elif weights == "default":
        try:
            model, found_args, provenance = library.build_pretrained(name, spec.architecture, dict(model_args))
        except WeightsError as error:
            if isinstance(error.__cause__, TypeError):  # of the constructor, not of the weights
                raise ModelError(spec.cannot_build(error.__cause__)) from error
            raise
        found = ModelSpec(spec.library, spec.architecture, {**spec.model_args, **json_args(found_args)})
        model = label_built(model, found)
    else:
        model, loaded = _from_file(library, spec, weights)
        loaded.announce()
        provenance = {**loaded.provenance(), "sha256": sha256(loaded.file)}
    return note(model, provenance=provenance).eval()


def infer_spec(model: nn.Module) -> ModelSpec | None:
    """The spec of a model that timm's or this library's ``create_model`` made; None where that can't be told."""
    spec = noted(model).spec
    if isinstance(spec, ModelSpec):
        return spec
    if not isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        return None
    from ilmconvert.models import timm_zoo

    try:
        found = timm_zoo.infer(model)
        return ModelSpec("timm", *_with_json_args(found)) if found else None
    except ModelError:
        return None


def _from_file(library: ModuleType, spec: ModelSpec, place: str | Path) -> tuple[nn.Module, LoadedWeights]:
    model = spec.build(initialize=False)

    def translate(state: dict[str, Tensor]) -> bool:
        nonlocal model
        translated = library.build_from_foreign(spec.architecture, dict(spec.model_args), state)
        if translated is not None:
            model = label_built(translated, spec)
        return translated is not None

    loaded = load_into(model, read_weight_file(place), translate)
    return model, loaded


def _with_json_args(found: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return found[0], json_args(found[1])
