"""Count the convertible norm layers of every model of timm and torchvision; rewrites ilmconvert/zoo_norms.csv.

    python -m benchmarks.zoo_norms

Takes about five minutes on two cores; run it for a new version of a library. ``ilmconvert list`` reads the file.
"""

from __future__ import annotations

import time
from pathlib import Path

import timm
import torch
import torchvision

import ilmconvert.models
from ilmconvert.models.create import list_models
from ilmconvert.models.norm_counts import COUNTS_FILE, count_norms


def main() -> None:
    """Count, and write the file."""
    start = time.perf_counter()
    counts = {name: count_norms(name) for name in list_models()}
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__.partition('+')[0]}"
    lines = [f"# norm layers that can be converted: {versions}", *(f"{name},{n}" for name, n in counts.items())]
    path = Path(ilmconvert.models.__file__).with_name(COUNTS_FILE)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    some = sum(n > 0 for n in counts.values())
    seconds = time.perf_counter() - start
    print(f"{some} of {len(counts)} models, {sum(counts.values())} layers, {seconds:.0f} s, torch {torch.__version__}")


if __name__ == "__main__":
    main()
