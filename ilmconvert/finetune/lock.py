"""One run at a time in a folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilmconvert.finetune.errors import FineTuneError

if sys.platform != "win32":
    import fcntl

WAIT = 10.0  # seconds: processes of a killed launcher may take a moment to end


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes' runs out of ``folder``. The lock ends with the process, also if that is killed.

    Raises:
        FineTuneError: another process is at work there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FineTuneError(f"can't write into {folder}: {error.strerror}; name another folder") from error
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        return
    end = time.monotonic() + WAIT
    while True:
        try:
            # unlike flock, not inherited by the processes that read pictures
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise FineTuneError(f"another process is running in {folder}; wait for it, or end it") from error
        time.sleep(0.1)
