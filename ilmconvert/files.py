"""Writing files so that a crash, a full disk or a second writer never leaves half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ilmconvert.errors import CheckpointError


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, and rename it to ``path``.

    Raises:
        CheckpointError: the file can't be written; an existing ``path`` is untouched, nothing is left behind.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as f:
            mode = os.fstat(f.fileno()).st_mode
        write(temporary)
        # Some writers leave a private file behind; the user's umask decides.
        os.chmod(temporary, mode)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as e:
        raise CheckpointError(f"can't write {path}: {e.strerror or e}; choose another place") from e
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder can't be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
