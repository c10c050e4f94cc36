"""A published conversion as ``timm.create_model`` builds it: its base by timm, with ILM Norms in the norms' places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, model_entrypoint, resolve_pretrained_cfg
from torch import Tensor, nn

from ilmconvert._constants import ENTRYPOINT
from ilmconvert.checkpoint.metadata import METADATA_KEY, Metadata
from ilmconvert.checkpoint.safetensors_io import read_all
from ilmconvert.errors import CheckpointError, ModelError, one_line
from ilmconvert.export.hub.folder import WEIGHTS
from ilmconvert.export.hub.install import Layers, check, install, own_tensors, standardize
from ilmconvert.models.norm_counts import skeleton
from ilmconvert.models.spec import ModelSpec, json_args, label
from ilmconvert.models.timm_zoo import SOURCE_FIELDS, portable
from ilmconvert.surgery.conversion_info import note
from ilmconvert.surgery.converted_layers import ConvertedLayer
from ilmconvert.surgery.input_standardization import InputStandardization

#: Arguments that timm keeps for its feature extractors, and those about where tensors lie.
_FEATURE_ARGS = frozenset({"features_only", "out_indices", "feature_cls", "feature_cfg", "feature_location"})
_RUNTIME_ARGS = frozenset({"device", "dtype", "pretrained_model_args"})
#: What a config.json says to this library alone.
_OWN_ARGS = frozenset({"base", "layers", "aliases", "standardized_input"})
#: A network may be larger than its file by a new head or first convolution; settings of another one are far larger.
_LARGEST_GROWTH = 4
_USE = f"{ENTRYPOINT} is built from a folder: timm.create_model('local-dir:FOLDER' or 'hf-hub:ORG/NAME')"


def build(
    *,
    pretrained: bool,
    base: str | None = None,
    layers: Any = None,
    aliases: Mapping[str, str] | None = None,
    standardized_input: Any = None,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The network that a published ``config.json`` describes; ``timm.create_model`` calls it with what stands there.

    timm's own entrypoint of the base builds the network and loads its weights, so that other classes, other input
    channels and ``features_only`` mean what they mean for the base. For that the norms of the base get placeholders
    for weights, and are replaced afterwards.

    Args:
        pretrained: read the weights; otherwise the network is new, its norms too.
        base: timm's name of the architecture that was converted.
        layers: names and settings of its ILM Norms, as in a checkpoint's metadata.
        aliases: second names of tensors that the file holds once.
        standardized_input: the standardisation of each image in the network, if there is one.
        pretrained_cfg, pretrained_cfg_overlay, cache_dir: as for any entrypoint of timm.
        **kwargs: for the base's entrypoint.

    Raises:
        ModelError: an unknown base, or layers or weights that don't fit it.
    """
    layers = _checked(base, layers)
    standardization = None if standardized_input is None else _standardization(standardized_input)
    assert base is not None
    cfg = resolve_pretrained_cfg(base, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    whole = skeleton(ModelSpec("timm", base, {**_without(kwargs, _FEATURE_ARGS | _RUNTIME_ARGS), **_settings(cfg)}))
    other = _asked_for(cfg, kwargs)
    state = placeholders = metadata = None
    if pretrained:
        state, metadata = read_weights(cfg, cache_dir)
        state.update({alias: state[name] for alias, name in (aliases or {}).items() if name in state})
        _check_size(whole, state, other)
        placeholders = _without_ilm(state, whole, layers)
    check(whole, layers, state, other)
    model = install(_base(base, cfg, kwargs, placeholders), whole, layers, state)
    if standardization is not None:
        standardize(model, standardization)
    _note(model, base, cfg, kwargs, metadata)
    return model


def _checked(base: Any, layers: Any) -> Layers:
    if base is None or layers is None:
        raise ModelError(_USE)
    if not isinstance(base, str) or base.partition(".")[0] == ENTRYPOINT or not timm.is_model(base):
        raise ModelError(f"the base {str(base)[:60]!r} isn't a model of this version of timm ({timm.__version__})")
    if not isinstance(layers, list | tuple):
        raise ModelError("the layers in its config.json are damaged; export the model again")
    try:
        return tuple(ConvertedLayer.from_dict(entry) for entry in layers)
    except ValueError as error:
        raise ModelError(f"config.json: {error}") from error


def _standardization(values: Any) -> InputStandardization:
    try:
        return InputStandardization.from_dict(values)
    except ValueError as error:
        raise ModelError(f"config.json: {error}") from error


def _base(base: str, cfg: Mapping[str, Any], kwargs: Mapping[str, Any], state: dict[str, Tensor] | None) -> nn.Module:
    """The base as its own entrypoint builds it, with the weights if there are any."""
    settings = _without(cfg, SOURCE_FIELDS)
    if not hasattr(timm.models, "get_model_traits") and kwargs.get("in_chans", 3) == cfg["input_size"][0]:
        # These versions take every file for one of three channels.
        settings["first_conv"] = None
    pretrained = state is not None
    if pretrained:
        settings["state_dict"] = state
    args = dict(kwargs)
    if "pretrained_model_args" in args:  # of the timm versions that pass it on
        args["pretrained_model_args"] = _without(args["pretrained_model_args"], _OWN_ARGS)
    model: nn.Module = model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=settings, **args)
    return model


def _without_ilm(state: Mapping[str, Tensor], whole: nn.Module, layers: Layers) -> dict[str, Tensor]:
    """The state with placeholders for the tensors of the base's norms in place of the ILM Norms' own."""
    modules = dict(whole.named_modules(remove_duplicate=False))
    names = {name for made in layers for name in made.names}
    result = {key: t for key, t in state.items() if key.rpartition(".")[0] not in names}
    for name in names & modules.keys():  # a head that was left out, for num_classes=0, may have had a norm
        for key, t in own_tensors(modules[name]).items():
            result[f"{name}.{key}"] = torch.zeros(t.shape, dtype=t.dtype)
    return result


def _asked_for(cfg: Mapping[str, Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """What the names of those parts begin with that the caller wants otherwise than in the file: head, first layer."""
    stored = kwargs.get("pretrained_model_args") or {}
    parts = {"num_classes": ("classifier", cfg["num_classes"]), "in_chans": ("first_conv", cfg["input_size"][0])}
    found: list[str] = []
    for argument, (part, default) in parts.items():
        if kwargs.get(argument, default) != stored.get(argument, default):
            names = cfg.get(part) or ()
            found += [names] if isinstance(names, str) else names
    # The head of LeViT is a norm and a linear layer; with no classes there is neither.
    return tuple(f"{name.rpartition('.')[0] or name}." for name in found)


def _check_size(whole: nn.Module, state: Mapping[str, Tensor], other: tuple[str, ...]) -> None:
    """Refuse settings of a network that is far larger than the file, before anything of its size is allocated."""
    described = sum(t.numel() for key, t in whole.state_dict().items() if not key.startswith(other))
    held = sum(t.numel() for t in state.values())
    if described > _LARGEST_GROWTH * held:
        raise ModelError(f"config.json describes a network of {described:,} numbers, and its weights are {held:,}")


def _note(
    model: nn.Module, base: str, cfg: Mapping[str, Any], kwargs: Mapping[str, Any], metadata: Metadata | None
) -> None:
    """What timm and this library look up on a model: where it is from, and how to build it again."""
    shown = {key: value for key, value in model.pretrained_cfg.items() if key != "state_dict"}  # type: ignore[union-attr, operator]
    # timm's own save_for_hf writes this name, and takes the arguments of this call along.
    shown.update({key: cfg[key] for key in (SOURCE_FIELDS | {"first_conv"}) & cfg.keys() - {"state_dict"}})
    shown["architecture"] = ENTRYPOINT
    model.pretrained_cfg = model.default_cfg = shown  # type: ignore[assignment]
    try:
        args = json_args(_without(kwargs, _RUNTIME_ARGS))
        registered = base in timm.models.get_arch_pretrained_cfgs(base) and "." in base
        own = {} if registered else {"pretrained_cfg": portable({**cfg, "architecture": base.partition(".")[0]})}
        label(model, ModelSpec("timm", base, {**own, **args}))
    except ModelError:  # arguments that no file can hold, a class for instance
        pass
    if metadata is not None:
        note(model, settings=dict(metadata.settings), provenance=dict(metadata.provenance))


def _settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {"pretrained_cfg": _without(cfg, SOURCE_FIELDS)}


def _without(values: Mapping[str, Any], keys: frozenset[str] | set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def read_weights(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> tuple[dict[str, Tensor], Metadata | None]:
    """All tensors, and what the file says of itself if this library wrote it. Never unpickles.

    Args:
        cfg: a pretrained_cfg as timm hands it to an entrypoint.
        cache_dir: of the hub's files; None for the usual place.

    Raises:
        ModelError: the settings name no weights, or the file is missing or damaged.
    """
    given = cfg.get("state_dict")
    if given:
        return {key: torch.as_tensor(value) for key, value in given.items()}, None
    path = _file(cfg, cache_dir)
    try:
        header, tensors = read_all(path)
        text = header.get(METADATA_KEY)
        return tensors, None if text is None else Metadata.from_json(text)
    except (CheckpointError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def _file(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> Path:
    if cfg.get("source") == "hf-hub" and cfg.get("hf_hub_id"):
        return _from_hub(str(cfg["hf_hub_id"]), str(cfg.get("hf_hub_filename") or WEIGHTS), cache_dir)
    if not cfg.get("file"):
        raise ModelError("these settings name no weights; use pretrained=False, or local-dir:FOLDER or hf-hub:ORG/NAME")
    path = Path(cfg["file"])
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise ModelError(f"there is no file {path}; timm writes it with safe_serialization=True")
    return path


def _from_hub(repository: str, file: str, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download

    from ilmconvert._constants import __version__

    repo_id, _, revision = repository.partition("@")
    try:
        where = hf_hub_download(
            repo_id,
            file,
            revision=revision or None,
            cache_dir=cache_dir,
            library_name="ilmconvert",
            library_version=__version__,
        )
    except Exception as error:  # the client's, the network's and the file system's
        reason = one_line(error) or type(error).__name__
        raise ModelError(f"can't get {file} of {repository}: {reason}") from error
    return Path(where)
