"""What kind of file of weights a file is, told from its first bytes: names and suffixes are anybody's choice."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ilmconvert.errors import ModelError

SAFETENSORS, TORCH = "safetensors", "torch"
_WANTED = "give the path of a .safetensors file, or of one that torch.save wrote"
#: What a call does that is proposed to whoever trusts a file.
MAKES_ONE = "in Python makes a file that is read without running code: give that"
# What files of torch.save began with before they were archives.
_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
# Each with what the file is, and what to do.
_OTHERS = (
    (
        b"version https://git-lfs",
        "is a pointer of Git LFS, which stands for the file of weights; "
        "fetch that by 'git lfs pull' in its repository, or download it by itself",
    ),
    (b"\x1f\x8b", "is compressed by gzip; unpack it and give the file inside"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them; " + _WANTED),
    (b"GGUF", "is a GGUF file; " + _WANTED),
    (b"{", "is a text of JSON, such as the index of a checkpoint in several parts; " + _WANTED),
)


def kind_of(path: Path) -> str:
    """``SAFETENSORS`` or ``TORCH``.

    Raises:
        ModelError: the file isn't there, can't be read, or is of another kind; the message says which, and what to do.
    """
    if not path.exists():
        raise ModelError(f"there is no file {path}; {_WANTED}")
    if not path.is_file():
        raise ModelError(f"{path} is not a file; {_WANTED}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    if not start:
        raise ModelError(f"{path} is empty; copy or download it again")
    if start[8:9] == b"{":
        return SAFETENSORS
    if start.startswith(b"PK"):
        _check_archive(path)
        return TORCH
    if start.startswith(b"\x80"):  # a pickle
        if _MAGIC in start[:64]:
            return TORCH
        call = f"torch.save(pickle.load(open({str(path)!r}, 'rb')), 'weights.pth')"
        raise ModelError(f"{path} is a pickle that torch.save didn't write; if you trust it, {call} {MAKES_ONE}")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        raise ModelError(f"{path} is a web page, not the file of weights that the page is about; download that itself")
    if start[257:262] == b"ustar":
        raise ModelError(f"{path} is a tar archive; unpack it and give the file inside")
    for signature, words in _OTHERS:
        if start.startswith(signature):
            raise ModelError(f"{path} {words}")
    raise ModelError(f"{path} is neither a .safetensors file nor one that torch.save wrote; {_WANTED}")


def _check_archive(path: Path) -> None:
    """Whether a zip archive is one of ``torch.save``, or a ModelError that says which other one it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path} is cut short or damaged; copy or download it again") from error
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code; "
            f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pth') {MAKES_ONE}"
        )
    if "archive_format" in last:
        raise ModelError(
            f"{path} is an archive of torch.export, which holds a program; "
            f"torch.save(dict(torch.export.load({str(path)!r}).state_dict), 'weights.pth') {MAKES_ONE}"
        )
    if "data.pkl" not in last:
        what = "of numpy arrays" if any(name.endswith(".npy") for name in last) else "without weights of torch.save"
        raise ModelError(f"{path} is a zip archive {what}; {_WANTED}")
