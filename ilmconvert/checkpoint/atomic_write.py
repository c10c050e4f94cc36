"""Writing files so that a crash, a full disk or a second writer never leaves half of one."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ilmconvert.errors import CheckpointError, one_line

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".ilmconvert.tmp"


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file in the folder of ``path``, flush it to disk, and rename it to ``path``.

    What killed writers left in that folder is removed first.

    Raises:
        CheckpointError: the file can't be written; an existing ``path`` is untouched, nothing is left behind.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file in it")
    try:
        remove_leftovers(path.parent)
        with temporary_folder(path) as folder:
            temporary = folder / path.name
            with open(temporary, "xb") as f:
                mode = os.fstat(f.fileno()).st_mode
            with failed_writes():
                write(temporary)
            # Some writers leave a private file behind; the user's umask decides.
            os.chmod(temporary, mode)
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as e:
        raise CheckpointError(f"can't write {path}: {e.strerror or e}; choose another place") from e
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``; those that are alive hold a lock on theirs."""
    for found in folder.glob(f".*{_SUFFIX}"):
        with suppress(OSError):
            descriptor = _lock(found)
            if descriptor is not None:
                shutil.rmtree(found, ignore_errors=True)
                os.close(descriptor)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, locked while it is in use, gone afterwards.

    A folder and not a file: it stays the one that is locked whatever a writer does to the file, such as to write
    another one and to rename it.
    """
    folder, descriptor = _new_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _new_folder(path: Path) -> tuple[Path, int | None]:
    while True:
        # A name may have 255 bytes, a letter takes up to four.
        folder = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}{_SUFFIX}")
        folder.mkdir()
        # Before it is locked, another writer may take it for left over.
        with suppress(BlockingIOError, FileNotFoundError):
            descriptor = _lock(folder)
            if folder.is_dir():
                return folder, descriptor
            if descriptor is not None:
                os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks ``folder`` until it is closed; None where there are no locks.

    The lock ends with the process that took it, also if that is killed.

    Raises:
        BlockingIOError: somebody has it.
        FileNotFoundError: the folder is gone.
    """
    if sys.platform == "win32":  # a folder can't be opened there
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some file systems lock nothing
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def failed_writes() -> Iterator[None]:
    """Raise as an OSError what libraries make of one: safetensors, and torch.save in C++."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as e:
        if isinstance(e, SafetensorError) or any(
            name in str(e) for name in ("PytorchStreamWriter", "inline_container")
        ):
            raise OSError(one_line(e)) from e
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    if os.name == "posix":  # elsewhere a folder can't be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
