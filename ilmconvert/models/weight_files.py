"""Read weight files, and load them into a model strictly."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert.errors import ModelError

#: Where training scripts nest the weights, in the order in which they are looked for.
NESTED_KEYS = ("state_dict", "model", "state_dict_ema", "model_ema", "ema")
#: What to do where a library's own weights can't be had.
WEIGHTS_CURE = "give a file (--weights FILE) or take random weights (--weights none)"
_PREFIXES = ("module.", "_orig_mod.")
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_SHOWN = 3


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth, .pt, .bin, .ckpt or .tar file (never unpickling code).

    A nested state dict is found under ``state_dict``, ``model``, ``state_dict_ema``, ``model_ema`` or ``ema``, the
    first of them that is there; the prefixes ``module.`` and ``_orig_mod.`` of wrapped models are taken off.

    Raises:
        ModelError: the file is missing, unreadable, of another kind, or holds no state dict.
    """
    path = Path(path)
    if not path.exists():
        raise ModelError(f"there is no file {path}; give the path of a .safetensors or .pth file of weights")
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give the path of a .safetensors or .pth file of weights")
    if path.suffix != ".safetensors" and path.suffix not in _TORCH_SUFFIXES:
        kinds = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise ModelError(f"can't tell what kind of file {path} is; its name has to end in one of {kinds}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return strip_prefixes(find_state_dict(content, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if any(key.startswith("ilmconvert") for key in file.metadata() or {}):
                raise ModelError(f"{path} is a converted checkpoint already; read it with ilmconvert.load")
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} isn't a readable .safetensors file, or it is truncated: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower():
            cure = "save its state_dict() alone, best as .safetensors, and give that"
            raise ModelError(f"{path} holds more than tensors, which would run code when read; {cure}") from error
        raise ModelError(f"{path} isn't a file that torch.save wrote, or it is damaged") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:  # all of them from damaged files
        raise ModelError(f"{path} isn't a file that torch.save wrote, or it is truncated") from error


def find_state_dict(content: Any, path: str | Path = "the file") -> dict[str, Tensor]:
    """The state dict in what a file holds: itself, or nested under one of ``NESTED_KEYS``.

    >>> sorted(find_state_dict({"epoch": 3, "model": {"weight": torch.ones(2)}}))
    ['weight']
    """
    if isinstance(content, Mapping):
        for key in NESTED_KEYS:
            if isinstance(content.get(key), Mapping):
                return find_state_dict(content[key], path)
        if content and all(isinstance(key, str) for key in content):
            tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
            if len(tensors) == len(content):
                return tensors
    found = ", ".join(map(str, list(content)[:_SHOWN])) if isinstance(content, Mapping) else type(content).__name__
    wanted = ", ".join(NESTED_KEYS)
    raise ModelError(f"{path} holds no state dict, also none under {wanted} (it holds: {found or 'nothing'})")


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.`` and ``_orig_mod.`` off where every key has it (wrapped, averaged or compiled models).

    >>> list(strip_prefixes({"module._orig_mod.weight": torch.ones(2)}))
    ['weight']
    """
    result = {key: value for key, value in state.items() if key != "n_averaged"}
    while prefix := next((p for p in _PREFIXES if result and all(k.startswith(p) for k in result)), None):
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` into ``model``; every key and shape has to match.

    Raises:
        ModelError: names the first keys that are missing, unexpected or of another shape. ``source`` is what the
            message calls the weights.
    """
    try:
        # A plain dict, without version marks: then a missing num_batches_tracked is forgiven, as in files of old.
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        problems = _differences(model, state) or " ".join(str(error).split())
        raise ModelError(f"{source} doesn't fit the model: {problems}") from error


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in wrong]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    text = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys)
    if wrong and not missing and not unexpected:
        rows = {state[key].shape[0] for key in wrong if state[key].ndim}
        if len(rows) == 1 and len(wrong) <= 4:
            text += f"; for a head of another size pass num_classes (--model-arg num_classes={rows.pop()})"
    return text


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
