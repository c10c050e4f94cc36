"""What :mod:`ilmconvert.models.create` needs to know about timm."""

from __future__ import annotations

import dataclasses
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.models
from torch import Tensor, nn

from ilmconvert._constants import ENTRYPOINT
from ilmconvert.errors import ModelError, WeightsError, one_line
from ilmconvert.models.weight_files import WEIGHTS_CURE
from ilmconvert.surgery.conversion_info import noted

_CFG_FIELDS = frozenset(field.name for field in dataclasses.fields(timm.models.PretrainedCfg))
#: Entries of a pretrained_cfg that say where its weights lie.
SOURCE_FIELDS = frozenset({"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"})
_RUNTIME_ARGS = frozenset({"device", "dtype", "cache_dir"})
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def names() -> list[str]:
    """All architectures, without tags, and without the one of published conversions, which needs their settings."""
    return [name for name in timm.list_models() if name != ENTRYPOINT]


def tagged(architecture: str) -> list[str]:
    """Names of the architecture with a tag of pretrained weights, as in resnet50.a1_in1k."""
    return list(timm.models.get_arch_pretrained_cfgs(architecture))


def is_known(name: str) -> bool:
    """Whether timm has the architecture and, where the name has one, the tag; also under a deprecated name."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        return False
    return not tag or name in tagged(architecture)


def canonical(name: str) -> str:
    """The current name with its tag, so that a later change of timm's default tag doesn't matter."""
    renamed = timm.models.get_deprecated_models().get(name)
    if renamed:
        name = renamed
    cfg = None if "." in name else timm.models.get_pretrained_cfg(name)
    return f"{name}.{cfg.tag}" if cfg is not None and cfg.tag else name


def build(architecture: str, args: dict[str, Any]) -> nn.Module:
    """The model without pretrained weights."""
    model: nn.Module = timm.create_model(architecture, pretrained=False, **args)
    return model


def build_pretrained(
    name: str, architecture: str, args: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The model with its default weights, arguments that the weights bring along, and where the weights are from."""
    overlay: dict[str, Any] = {}
    if ":" in name:
        source, _, where = name.partition(":")
        provenance = {"weights": "default", ("local_dir" if source == "local-dir" else "hf_hub_id"): where}
        target = _reachable_source(name)
    else:
        target, cfg = architecture, timm.models.get_pretrained_cfg(architecture)
        if cfg is None or not cfg.has_weights:
            raise WeightsError(f"there are no default weights of {architecture}", WEIGHTS_CURE)
        provenance = {"weights": "default", **_origin(cfg)}
        overlay = _offline_overlay(architecture, cfg)
    try:
        model = timm.create_model(target, pretrained=True, pretrained_cfg_overlay=overlay or None, **args)
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise WeightsError(f"can't get the default weights of {name}: {reason}", WEIGHTS_CURE) from error
    # A published conversion tells where its base is from.
    return model, {}, dict(noted(model).provenance) or provenance


def build_from_foreign(architecture: str, args: dict[str, Any], state: Mapping[str, Tensor]) -> nn.Module | None:
    """The model with weights under an older or original naming that timm translates; None where they don't fit."""
    cfg = timm.models.get_pretrained_cfg(architecture)
    classes, channels = args.get("num_classes"), args.get("in_chans")
    if cfg is None or "pretrained_cfg" in args:
        return None
    # timm drops or adapts weights of another size: then nothing would be checked
    if classes not in (None, cfg.num_classes) or channels not in (None, cfg.input_size[0]):
        return None
    try:
        model: nn.Module = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}, **args
        )
    except Exception:  # whatever a translation of other weights raises: they don't fit
        return None
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator, union-attr]
    return model


def resolve_hub(name: str) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a model on the hub or in a folder, from its ``config.json``."""
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    source, _, where = _reachable_source(name).partition(":")
    load = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
    try:
        cfg, architecture, args = load(where)
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise ModelError(f"can't read the model {name}: {reason}") from error
    if not timm.is_model(architecture):
        raise ModelError(f"{name} is a {architecture}, which this version of timm ({timm.__version__}) doesn't have")
    return architecture, {"pretrained_cfg": portable(cfg), **args}


def infer(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Architecture and arguments of a model that ``timm.create_model`` made, as far as it shows them."""
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    architecture = cfg.get("architecture")
    if not architecture or not timm.is_model(architecture):
        return None
    args = {key: value for key, value in getattr(model, "_model_args", {}).items() if key not in _RUNTIME_ARGS}
    name = f"{architecture}.{cfg['tag']}" if cfg.get("tag") else architecture
    registered = timm.models.get_pretrained_cfg(name) if is_known(name) else None
    if registered is None or portable(registered.to_dict()) != portable(cfg):
        name, args = architecture, {"pretrained_cfg": portable(cfg), **args}
    for key, default in (
        ("num_classes", cfg.get("num_classes")),
        ("in_chans", (cfg.get("input_size") or (3,))[0]),
    ):
        current = getattr(model, key, None)
        if isinstance(current, int) and current != args.get(key, default):
            args[key] = current
    return name, args


def portable(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A ``pretrained_cfg`` as JSON values, without the entries that say where the weights are."""
    kept = {key: value for key, value in cfg.items() if key in _CFG_FIELDS - SOURCE_FIELDS and value is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _origin(cfg: timm.models.PretrainedCfg) -> dict[str, Any]:
    found = {key: getattr(cfg, key) for key in ("url", "hf_hub_id", "license", "origin_url")}
    return {key: value for key, value in found.items() if value}


def _offline_overlay(architecture: str, cfg: timm.models.PretrainedCfg) -> dict[str, Any]:
    """Without a network: point timm to the cached file, since the hub's client tries for a minute otherwise."""
    if not cfg.hf_hub_id or _hub_is_reachable():
        return {}
    repository, _, revision = cfg.hf_hub_id.partition("@")
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else _HUB_FILES
    for file in files:
        if cached := _cached(repository, file, revision or None):
            return {"file": str(cached), "custom_load": cfg.custom_load}
    raise WeightsError(f"no network to download the default weights of {architecture}", WEIGHTS_CURE)


def _reachable_source(name: str) -> str:
    """``name``, or without a network the folder in the hub's cache that holds it."""
    source, _, where = name.partition(":")
    if not where:
        raise ModelError(f"{name!r} lacks the model after the colon, as in hf-hub:timm/resnet18.a1_in1k")
    if source == "local-dir" or _hub_is_reachable():
        return name
    repository, _, revision = where.partition("@")
    if cached := _cached(repository, "config.json", revision or None):
        return f"local-dir:{cached.parent}"
    raise ModelError(f"no network to reach {name}; download it elsewhere and give its folder (local-dir:PATH)")


def _cached(repository: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, file, revision=revision)
    except ValueError:  # not a valid repository id
        return None
    return Path(found) if isinstance(found, str) else None


def _hub_is_reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():  # then the proxy resolves the name
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
