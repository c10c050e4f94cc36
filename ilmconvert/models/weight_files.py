"""Read files of weights: which state dict in a file is meant, and how far its training had come."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ilmconvert.errors import ModelError
from ilmconvert.models.file_kinds import MAKES_ONE, SAFETENSORS, kind_of
from ilmconvert.models.match_names import some, strip_wrappers
from ilmconvert.models.pickle_stand_ins import Foreign
from ilmconvert.models.state_dict_search import KNOWN, likely, named, progress, state_dicts

#: What to do where a library's own weights can't be had.
WEIGHTS_CURE = "give a file (--weights FILE) or take random weights (--weights none)"
#: Between the path of a file and the entry in it that is meant.
SEPARATOR = "::"
# No model's name ends so.
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        path: of the file.
        candidates: the state dicts that may be meant, by their entries ("" is the file itself); one, unless nothing
            tells which it is.
        entries: of all state dicts in the file.
        progress: how far the training had come, as in ``{"epoch": 12}``.
        unread: classes whose objects were left unread.
    """

    path: Path
    candidates: Mapping[str, dict[str, Tensor]]
    entries: tuple[str, ...]
    progress: Mapping[str, int]
    unread: tuple[str, ...]

    def address(self, entry: str) -> str:
        """How an entry of the file is named, for ``--weights`` and the rest."""
        return f"{self.path}{SEPARATOR}{entry}"

    def choices(self, entries: list[str]) -> str:
        """What to write for each of these entries."""
        return " or ".join(map(self.address, entries))


def read_state_dict(place: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that ``torch.save`` wrote; no code that it names is run.

    Training scripts nest state dicts. Of ``state_dict_ema``, ``model_ema``, ``ema`` (averaged weights, which timm
    prefers, too), ``state_dict`` and ``model`` the first that is there is taken, or else the only one under any other
    name. ``FILE::ENTRY`` names another. The prefixes ``module.`` and ``_orig_mod.`` of wrapped models are taken off.

    Raises:
        ModelError: the file is missing, unreadable, of another kind, or holds no state dict, or several of which none
            is known to be meant.
    """
    found = read_weight_file(place)
    if len(found.candidates) > 1:
        entries = list(found.candidates)
        raise ModelError(f"{found.path} holds several state dicts; name one: {found.choices(entries)}")
    return strip_wrappers(next(iter(found.candidates.values())))


def read_weight_file(place: str | Path) -> WeightFile:
    """Everything that :func:`read_state_dict` chooses from.

    Raises:
        ModelError: see :func:`read_state_dict`.
    """
    path, entry = split_place(place)
    if kind_of(path) == SAFETENSORS:
        content, unread = _read_safetensors(path), list[str]()
    else:
        content, unread = _read_torch(path)
    found = state_dicts(content)
    if not found:
        raise ModelError(_no_state_dict(content, path))
    if entry is None:
        candidates = {name: found[name] for name in likely(list(found))}
    else:
        one = named(found, entry)
        if one is None:
            raise ModelError(f"{path} holds no weights under {entry}; it does under {', '.join(found) or 'no entry'}")
        candidates = dict([one])
    return WeightFile(path, candidates, tuple(found), progress(content), tuple(unread))


def split_place(place: str | Path) -> tuple[Path, str | None]:
    """The path, and the entry if one is named.

    >>> split_place("last.pth.tar::state_dict")
    (PosixPath('last.pth.tar'), 'state_dict')
    """
    path, separator, entry = str(place).rpartition(SEPARATOR)
    return (Path(path), entry) if separator and not Path(place).exists() else (Path(place), None)


def refuse_path(name: str) -> None:
    """Say what to do with a file or folder that stands in the place of a model's name, also with one that is missing.

    Raises:
        ModelError: there is one, or the name ends as files of weights do.
    """
    path, _ = split_place(name)
    if name and path.is_dir():
        if (path / "config.json").is_file() and not _is_converted(path / "model.safetensors"):
            raise ModelError(
                f"{name} is a folder, not a model's name; of a model in timm's layout write local-dir:{name}"
            )
        found = [file for file in ("model.safetensors", "best.safetensors") if _is_converted(path / file)]
        if found:
            raise ModelError(
                f"{path / found[0]} is a checkpoint of ilmconvert already; "
                f"ilmconvert inspect {name} shows what it holds"
            )
        raise ModelError(f"{name} is a folder that holds no checkpoint; give a model's name, or a checkpoint's file")
    if path.is_file():
        if _is_converted(path):
            raise ModelError(
                f"{path} is a checkpoint of ilmconvert already; ilmconvert inspect {path} shows what it holds"
            )
        raise ModelError(
            f"{path} is a file, not a model's name; if it holds weights, name the model that they are of: "
            f"ilmconvert MODEL --weights {name}"
        )
    if path.suffix in _SUFFIXES:
        raise ModelError(f"{name} doesn't exist; check the path, or give a model's name (`ilmconvert list`)")


def _is_converted(path: Path) -> bool:
    """Whether a file is a checkpoint that this package wrote."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any(key.startswith("ilmconvert") for key in file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if any(key.startswith("ilmconvert") for key in file.metadata() or {}):
                raise ModelError(
                    f"{path} is a checkpoint of ilmconvert, not weights of a source; ilmconvert inspect {path} shows "
                    "what it holds, and ilmconvert.load reads it"
                )
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is cut short or damaged; copy or download it again ({error})") from error


def _read_torch(path: Path) -> tuple[Any, list[str]]:
    from ilmconvert.models.safe_pickles import PickledCodeError, load_pickled

    try:
        return load_pickled(path)
    except PickledCodeError as error:
        call = f"torch.save(torch.load({str(path)!r}, weights_only=False), 'weights.pth')"
        raise ModelError(f"{path} can't be read without running code; if you trust it, {call} {MAKES_ONE}") from error
    except Exception as error:  # whatever damage makes of the unpickler
        raise ModelError(f"{path} is cut short or damaged; copy or download it again") from error


def _no_state_dict(content: Any, path: Path) -> str:
    """What the file holds instead, and what to do."""
    entries = content if isinstance(content, Mapping) else {"": content}
    for key in (*KNOWN, *entries):
        if isinstance(entries.get(key), Foreign):
            what = f"a whole {entries[key].name} instead of a state dict{f' under {key}' if key else ''}"
            item = f"[{key!r}]" if key else ""
            call = f"torch.save(torch.load({str(path)!r}, weights_only=False){item}.state_dict(), 'weights.pth')"
            return f"{path} holds {what}, which would run code when read; if you trust it, {call} {MAKES_ONE}"
    held = some(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    return f"{path} holds no state dict (it holds: {held or 'nothing'}); save the model's state_dict() and give that"


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
