"""What a block of code touches, how long it takes, and how far its memory grows."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FORBIDDEN = ("socket.", "subprocess.", "shutil.", "urllib.", "http.", "ftplib.", "pickle.", "webbrowser.")
_CHANGES = ("remove", "rename", "mkdir", "rmdir", "link", "symlink", "chmod", "chown", "truncate", "utime", "putenv")
_STARTS = ("system", "exec", "posix_spawn", "spawn", "fork", "forkpty", "startfile", "kill")
_FORBIDDEN_OS = frozenset(f"os.{name}" for name in (*_CHANGES, *_STARTS))
_READS = frozenset({"open", "os.listdir", "os.scandir", "os.chdir", "glob.glob", "os.walk"})

_active: Watch | None = None
_installed = False


@dataclass
class Watch:
    """What was found.

    Attributes:
        folder: where files may be read.
        touched: audit events of what may not happen: other files, sockets, processes, pickles, foreign code.
        seconds: of this thread's processor time.
        wall: seconds by the clock.
        memory: bytes by which resident memory's high-water mark exceeded what there was before.
    """

    folder: Path
    touched: list[str] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0
    memory: int = 0

    def __post_init__(self) -> None:
        libraries = {sys.prefix, sys.base_prefix, *(p for p in sys.path if p), os.getcwd()}
        self._roots = tuple(str(Path(p).resolve()) for p in (*libraries, self.folder))

    def allows(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether an audit event is none of those that must not happen."""
        if event.startswith(_FORBIDDEN) or event in _FORBIDDEN_OS:
            return False
        if event in _READS:
            return self._may_read(arguments)
        if event == "exec":  # of code that stands in no library: imports are fine
            file = getattr(arguments[0], "co_filename", "")
            return file.startswith(("<", *self._roots))
        return True

    def _may_read(self, arguments: tuple[Any, ...]) -> bool:
        path, mode = arguments[0], arguments[1] if len(arguments) > 1 else "r"
        if isinstance(path, int) or path is None:
            return True
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        return os.path.abspath(os.fsdecode(path)).startswith(("/proc/self/", *self._roots)) and not writes


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _active
    if watch is not None and not watch.allows(event, arguments):
        watch.touched.append(f"{event} {arguments!r}"[:300])
        raise PermissionError(f"{event} while a checkpoint is loaded")


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """Watch this process inside of the block; what must not happen is refused, and noted. Linux only."""
    global _active, _installed
    if not _installed:
        sys.addaudithook(_audit)  # for good: Python has no way to remove one
        _installed = True
    found = Watch(folder)
    gc.collect(0)
    ctypes.CDLL(None).malloc_trim(0)  # so that memory that was freed before counts again
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    wall, seconds = time.perf_counter(), time.thread_time()
    _active = found
    try:
        yield found
    finally:
        _active = None
        found.seconds, found.wall = time.thread_time() - seconds, time.perf_counter() - wall
        found.memory = max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))
