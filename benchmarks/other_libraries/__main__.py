"""Networks of other libraries: ``python -m benchmarks.other_libraries [PATTERN ...] [--out FILE] [--table]``.

Each is converted to ILM-GN with random weights and statistics, compared with its source, saved and loaded, trained a
step, and saved and loaded in its own way. One JSON line a network; those that have a line are left alone, so that a
run can be continued. Libraries that aren't installed are left out and named.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.other_libraries.check import check
from benchmarks.other_libraries.networks import NETWORKS, QUICK
from benchmarks.other_libraries.table import RESULTS, markdown, read, write

TIMEOUT = 240.0


def results(names: Iterable[str], timeout: float = TIMEOUT) -> Iterator[dict[str, Any]]:
    """The lines of these networks. They share a process, which imports each library once, until one of them ends it."""
    pool = None
    for name in names:
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            yield pool.submit(check, name).result(timeout)
        except (BrokenProcessPool, TimeoutError) as error:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)
            pool = None
            line = {"network": name, "library": NETWORKS[name].library, "converted": 0, "norms": 0}
            yield {**line, "problem": f"{type(error).__name__}: its process was ended"}
    if pool is not None:
        pool.shutdown()


def is_installed(name: str) -> bool:
    try:
        version(NETWORKS[name].library)
    except PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_libraries", description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], help="of the networks' names, such as 'monai/*'")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of lines")
    parser.add_argument("--retry", action="store_true", help="run again what has a problem")
    parser.add_argument("--quick", action="store_true", help="two networks of timm and torchvision instead")
    parser.add_argument("--table", action="store_true", help="print the table of the file, and run nothing")
    arguments = parser.parse_args()
    known = {line["network"]: line for line in read(arguments.out)}
    if not arguments.table:
        wanted = [
            n
            for n in NETWORKS
            if (n in QUICK) == arguments.quick and any(fnmatchcase(n, pattern) for pattern in arguments.patterns)
        ]
        open_ = [n for n in wanted if n not in known or (arguments.retry and known[n]["problem"])]
        missing = {NETWORKS[n].library for n in open_ if not is_installed(n)}
        if missing:
            print(f"not installed: {', '.join(sorted(missing))}", file=sys.stderr)
        for line in results(n for n in open_ if NETWORKS[n].library not in missing):
            known[line["network"]] = line
            write(arguments.out, known.values())
            print(line["network"], line["problem"] or "ok", file=sys.stderr, flush=True)
    print(markdown(read(arguments.out)))


if __name__ == "__main__":
    main()
