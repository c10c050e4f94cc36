"""How far each conversion of the real EfficientNet-Lite0 is from its source, before any training.

``python -m benchmarks.real_network`` prints a Markdown table, ``--json`` the same as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch import nn

from ilmconvert import convert
from ilmconvert._constants import exact_targets
from ilmconvert.data.sample_photographs import load_lite0, preprocess, sample_photographs
from ilmconvert.evaluation.demo import compare, group_norm_baseline, logits_of

# The usual replacement that normalises over the same groups as the target.
BASELINES: dict[str, tuple[str, int | None]] = {
    "ilm_gn": ("GroupNorm(32)", 32),
    "ilm_ln": ("GroupNorm(1)", 1),
    "ilm_in": ("InstanceNorm", None),
}


@dataclass(frozen=True)
class Row:
    """One network against the source; errors are relative to the source's largest absolute logit."""

    layer: str
    start: str
    agreement: float
    largest_error: float
    mean_error: float


def measure() -> list[Row]:
    """Every target with both initialisations and both baselines, over all sample images."""
    source = load_lite0()
    batch = preprocess(source, sample_photographs())
    reference = logits_of(source, batch)
    rows = []
    for layer, start, model in _networks(source):
        found = compare(layer, start, reference, logits_of(model, batch))
        rows.append(Row(layer, start, found.agreement, found.largest_error, found.mean_error))
    return rows


def to_markdown(rows: list[Row], images: int) -> str:
    lines = [
        f"| new layer | start | same top-1 ({images} images) | largest logit error | mean logit error |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        errors = f"{row.largest_error:.1e} | {row.mean_error:.1e}"
        lines.append(f"| {row.layer} | {row.start} | {row.agreement:.3f} | {errors} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_network", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a Markdown table")
    arguments = parser.parse_args()
    rows = measure()
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(to_markdown(rows, len(sample_photographs())))


def _networks(source: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    for to in exact_targets():
        usual, groups = BASELINES[to]
        for copy_affine in (False, True):
            baseline = group_norm_baseline(source, num_groups=groups, copy_affine=copy_affine)
            yield usual, "gamma, beta copied" if copy_affine else "fresh", baseline
        for init in ("moments", "identity"):
            yield to, init, convert(source, to, init=init)


if __name__ == "__main__":
    main()
