"""Tasks in fresh processes: a crash, a hang or a lack of memory ends one task and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

_PRELOADED = [
    "ilmconvert.testing",
    "ilmconvert.models.timm_zoo",
    "ilmconvert.models.torchvision_zoo",
    "ilmconvert.checkpoint.save_load",
]
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """``function(*args)``, expected to need ``memory`` bytes and at most ``timeout`` seconds."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    memory: int = 0
    timeout: float = 900.0


@dataclass
class _Running:
    task: Task
    process: BaseProcess
    connection: Connection
    deadline: float


def available_memory() -> int:
    """Bytes that new processes may use."""
    with suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8 << 30


def run_tasks(tasks: Sequence[Task], jobs: int, memory: int | None = None) -> Iterator[tuple[Task, Any, str | None]]:
    """Run ``jobs`` tasks at a time, each in a process of its own; yields (task, result or None, error or None).

    Tasks start in order. One that would bring the expected memory of all above ``memory`` bytes waits until it is
    alone; one that alone takes more than that is ended.
    """
    memory = available_memory() if memory is None else memory
    context = _context()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting, running = deque(tasks), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                expected = waiting[0].memory + sum(r.task.memory for r in running)
                if running and expected > memory:
                    break
                running.append(_start(waiting.popleft(), context, threads))
            over = [(one, result) for one in running if (result := _finished(one, memory)) is not None]
            for one, result in over:
                running.remove(one)
                yield one.task, *result
            if running and not over:
                wait([r.connection for r in running], timeout=_POLL_SECONDS)
    finally:
        for one in running:
            _end(one.process)


def _context() -> Any:
    """Fresh processes that needn't import everything again, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _start(task: Task, context: Any, threads: int) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, task.function, task.args, threads), daemon=True)
    process.start()
    theirs.close()
    return _Running(task, process, ours, time.monotonic() + task.timeout)


def _work(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    # If memory runs out after all, this process goes first.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    connection.send(function(*args))
    connection.close()


def _finished(one: _Running, memory: int) -> tuple[Any, str | None] | None:
    """Result and error of a task that is over, ended here if it has to be; None if it goes on."""
    if one.connection.poll():
        try:
            result = one.connection.recv()
        except EOFError:
            one.process.join()
            return None, f"its process died with exit code {one.process.exitcode} (-9: out of memory)"
        one.process.join()
        return result, None
    if time.monotonic() > one.deadline:
        _end(one.process)
        return None, f"took longer than {one.task.timeout:.0f} s"
    if _resident(one.process.pid) > memory:
        _end(one.process)
        return None, f"took more than {memory / 2**30:.1f} GiB of memory"
    return None


def _resident(pid: int | None) -> int:
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()
