"""Agreement under corruptions as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilmconvert.errors import ILMConvertError
from ilmconvert.evaluation.robustness import Agreement


def check_plot(path: Path) -> None:
    """Refuse what :func:`plot_agreement` couldn't write, before the slow work.

    Raises:
        ILMConvertError: matplotlib is missing, or knows no such kind of file.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ILMConvertError("the plot needs matplotlib: pip install 'ilmconvert[finetune]'") from error
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise ILMConvertError(f"{path} is no plot that can be written; end its name in .png, .svg or .pdf")


def plot_agreement(rows: Sequence[Agreement], path: Path) -> None:
    """One group of points a condition, one colour a network; the mean over severities and its 95 % interval.

    Raises:
        ILMConvertError: matplotlib is missing, or the file can't be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row.network for row in rows))
    names = list(dict.fromkeys(row.condition.name for row in rows))
    figure = Figure(figsize=(7, 0.32 * len(names) + 1.2), layout="constrained")
    panel: Any = figure.subplots()
    for shift, network in enumerate(networks):
        found = [[r for r in rows if (r.network, r.condition.name) == (network, name)] for name in names]
        values = [sum(r.agreement for r in group) / len(group) for group in found]
        # The same images at every severity: the interval of their mean is hardly smaller than those of one.
        ends = [[sum(r.interval[side] for r in group) / len(group) for group in found] for side in (0, 1)]
        errors = [[abs(end - value) for end, value in zip(side, values, strict=True)] for side in ends]
        heights = [i + 0.2 * (shift - (len(networks) - 1) / 2) for i in range(len(names))]
        panel.errorbar(values, heights, xerr=errors, fmt="o", markersize=4, label=network)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set(xlabel="agreement with the source's class of the clean image", xlim=(0, 1.02))
    panel.grid(axis="x", alpha=0.3)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=len(networks), frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ILMConvertError(f"can't write {path}: {error}") from error
