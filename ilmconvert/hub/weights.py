"""The weights that timm's settings of a published model point to: in a folder, on the hub, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilmconvert.errors import CheckpointError, ModelError
from ilmconvert.hub.names import WEIGHTS
from ilmconvert.record import METADATA_KEY, Record
from ilmconvert.tensor_file import read_all


def read_weights(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> tuple[dict[str, Tensor], Record | None]:
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
        metadata, tensors = read_all(path)
        text = metadata.get(METADATA_KEY)
        return tensors, None if text is None else Record.from_json(text)
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

    from ilmconvert import __version__

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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"can't get {file} of {repository}: {reason}") from error
    return Path(where)
