"""``config.json`` of a published folder: what ``timm.create_model`` reads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from timm.models._hub import save_config_for_hf
from torch import nn

from ilmconvert._constants import ENTRYPOINT
from ilmconvert.checkpoint.metadata import Metadata
from ilmconvert.data.trained_images import described, trained_classes, trained_transform
from ilmconvert.errors import CheckpointError
from ilmconvert.models.timm_zoo import SOURCE_FIELDS

_CURE = "write it with ilmconvert.save, and load it with ilmconvert.load"


def check_publishable(metadata: Metadata) -> None:
    """Raise a CheckpointError for a model that timm can't build by a ``config.json``."""
    spec = metadata.spec
    if spec is None or spec["library"] != "timm":
        what = "a custom model" if spec is None else f"{spec['library']}'s {spec['architecture']}"
        raise CheckpointError(f"the hub layout is timm's, and this is {what}; {_CURE}")
    if spec["model_args"].get("features_only"):
        raise CheckpointError(
            "a feature extractor lacks a part of its network: convert and publish the whole one, "
            "and load it with features_only=True"
        )


def config_of(model: nn.Module, metadata: Metadata) -> dict[str, Any]:
    """The content of ``config.json``: by timm's own writer, with our entrypoint, the layers and the changed tag.

    Raises:
        CheckpointError: see :func:`check_publishable`, or timm can't describe the model.
    """
    check_publishable(metadata)
    assert metadata.spec is not None
    base, args = metadata.spec["architecture"], metadata.spec["model_args"]
    own: dict[str, Any] = {"base": base, "layers": [layer.to_dict() for layer in metadata.layers]}
    if metadata.aliases:
        own["aliases"] = metadata.aliases
    if metadata.standardized_input is not None:
        own["standardized_input"] = metadata.standardized_input.to_dict()
    own.update({key: value for key, value in args.items() if key != "pretrained_cfg"})
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            save_config_for_hf(model, path, model_args=own)
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"timm can't describe the model ({error}); {_CURE}") from error
    config["architecture"] = ENTRYPOINT
    config["pretrained_cfg"]["tag"] = changed_tag(model, metadata)
    _correct(config, in_chans=args.get("in_chans"))
    _as_trained(config, model)
    config["ilmconvert"] = {
        "version": metadata.ilmconvert,
        "settings": metadata.settings,
        "provenance": metadata.provenance,
    }
    return config


def _as_trained(config: dict[str, Any], model: nn.Module) -> None:
    """Size, normalisation and class names of the images that a fine-tuned network was trained on."""
    known, names = trained_transform(model), trained_classes(model)
    if known:
        cfg = config["pretrained_cfg"]
        for key in ("test_input_size", "test_crop_pct"):
            cfg.pop(key, None)
        cfg.update(described(known))
    if names and len(names) == config["num_classes"]:
        config["label_names"] = list(names)
        config.pop("label_descriptions", None)


def changed_tag(model: nn.Module, metadata: Metadata) -> str:
    """timm's tag of the weights with what became of the norms: these aren't the weights that the tag stands for."""
    only_standardized = metadata.standardized_input is not None and not metadata.layers
    kind = str(metadata.settings.get("to", "standardized" if only_standardized else "ilm"))
    tag = str(model.pretrained_cfg.get("tag") or "")  # type: ignore[union-attr, operator]
    return tag if tag.endswith(kind) else f"{tag}_{kind}".lstrip("_")


def _correct(config: dict[str, Any], in_chans: int | None) -> None:
    """What older versions of timm leave in that is true of the base's file alone."""
    cfg = config["pretrained_cfg"]
    for key in (*SOURCE_FIELDS, "label_offset"):
        cfg.pop(key, None)
    cfg.update(custom_load=False, num_classes=config["num_classes"])
    if in_chans is not None:
        for key in ("input_size", "test_input_size", "min_input_size"):
            if cfg.get(key):
                cfg[key] = [in_chans, *cfg[key][1:]]
