"""Several runs put together: means over those that differ in nothing but their seed, and paired differences."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ilmconvert._constants import shown_by
from ilmconvert.errors import ReportError
from ilmconvert.evaluation.estimate import Estimate, estimate
from ilmconvert.finetune.run_config import MAY_DIFFER
from ilmconvert.report.run import Run, label, read_run
from ilmconvert.report.tables import Table
from ilmconvert.report.text import NONE

#: The baselines in the order in which one is taken to compare with.
_STRONGEST_FIRST = ("frozen-bn", "train-bn", "group-norm")
#: Fields of a recipe in which repeated runs may differ, and those that mean nothing to a baseline.
_NOT_COMPARED = ("seed", *MAY_DIFFER["recipe"])
_OF_A_CONVERSION = (
    "name", "to", "init", "first_only", "restore_bound", "reference_images", "anneal", "anneal_to", "anneal_end",
    "restore_lr_scale", "freeze_batch_norm",
)  # fmt: skip
_IMAGES = ("train", "val", "classes")


@dataclass(frozen=True)
class Repeated:
    """A network that was trained in one way with several seeds.

    Attributes:
        title: what it is called.
        baseline: the name of the baseline; "" of a converted network.
        top1: accuracy on validation images in the best epoch, by seed.
        settings: the fields of its recipe that may tell it from others.
    """

    title: str
    baseline: str
    top1: Mapping[int, float]
    settings: Mapping[str, Any]

    @property
    def accuracy(self) -> Estimate:
        """The mean over seeds."""
        return estimate(list(self.top1.values()))

    def less(self, other: Repeated) -> Estimate | None:
        """The paired difference over the seeds that both have; None if there are none.

        >>> a, b = (Repeated("", "", top1, {}) for top1 in ({0: 0.5, 1: 0.75}, {1: 0.5, 2: 0.5}))
        >>> a.less(b).mean
        0.25
        """
        common = [self.top1[seed] - other.top1[seed] for seed in sorted(self.top1) if seed in other.top1]
        return estimate(common) if common else None


@dataclass(frozen=True)
class RunComparison:
    """What several runs come to together; ``str(comparison)`` says it in sentences.

    Attributes:
        networks: converted ones first, then baselines.
        against: the one that the others are compared with; None where there is nothing to compare.
    """

    networks: tuple[Repeated, ...]
    against: Repeated | None

    _repr_html_ = shown_by("ilmconvert.report.notebook:run_comparison")

    def others(self) -> Iterator[tuple[Repeated, Estimate]]:
        """The networks that can be compared, each with its difference."""
        for network in self.networks:
            found = None if self.against is None or network is self.against else network.less(self.against)
            if found is not None:
                yield network, found

    def table(self) -> Table:
        """A row for each network, with 95 % intervals over seeds."""
        less = {network.title: found for network, found in self.others()}
        title = "" if self.against is None else f"less {self.against.title}, points"
        rows = [
            (network.title, str(len(network.top1)), _percent(network.accuracy), _points(less.get(network.title)))
            for network in self.networks
        ]
        return Table(("network", "seeds", "top-1", title), rows, numbers=1).without_empty_columns()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        less = {network.title: vars(found) for network, found in self.others()}
        return {
            "against": None if self.against is None else self.against.title,
            "networks": [
                {
                    "network": network.title,
                    "baseline": network.baseline or None,
                    "top1": {str(seed): value for seed, value in network.top1.items()},
                    **{key: value for key, value in vars(network.accuracy).items() if key != "count"},
                    "difference": less.get(network.title),
                }
                for network in self.networks
            ],
        }

    def __str__(self) -> str:
        return "\n".join(_sentence(network, found, self.against) for network, found in self.others())


def compare_runs(folders: Iterable[str | Path], against: str | None = None) -> RunComparison:
    """Put runs of :func:`ilmconvert.finetune.finetune` together, with their baselines.

    Runs that differ in nothing but their seed are one network. The differences are paired: between networks of one
    seed, which saw the same images in the same order. Where several networks are the baseline to compare with, as with
    other learning rates, it is the one of the highest accuracy.

    Args:
        folders: of runs on the same images; those that aren't finished are left out.
        against: the baseline that all are compared with; None is frozen BatchNorm where it was run.

    Raises:
        ReportError: a folder isn't a run's, no accuracy was measured, the images are others, or no such baseline.

    Warns:
        UserWarning: a run isn't finished.
    """
    runs = [each for folder in folders for each in _finished(read_run(folder))]
    if not runs:
        raise ReportError("none of these runs is finished; resume them by ilmconvert finetune --resume")
    _check_images(runs)
    networks = _titled(_grouped(runs))
    networks.sort(key=lambda network: network.baseline != "")
    return RunComparison(tuple(networks), _reference(networks, against))


def _finished(run: Run) -> Iterator[Run]:
    for each in (run, *run.baselines):
        if not each.finished:
            warnings.warn(f"the run in {each.path} isn't finished; it is left out", stacklevel=3)
        elif each.best is None or each.best.get("val_top1") is None:
            raise ReportError(f"no accuracy was measured in {each.path}; give runs with labelled validation images")
        else:
            yield each


def _check_images(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for key in _IMAGES:
            ours, theirs = (each.config.get("data", {}).get(key) for each in (first, run))
            if ours != theirs:
                raise ReportError(f"{first.path} and {run.path} have other images ({key}); give runs on the same ones")


def _grouped(runs: Sequence[Run]) -> list[Repeated]:
    """One for each way of training, its title not yet telling it from others."""
    models = {run.config.get("model", {}).get("name") for run in runs}
    found: dict[str, Repeated] = {}
    for run in runs:
        recipe, model = dict(run.config.get("recipe", {})), run.config.get("model", {}).get("name")
        seed = recipe.get("seed", 0)
        left_out = _NOT_COMPARED + (_OF_A_CONVERSION if run.name else ())
        settings = {key: value for key, value in recipe.items() if key not in left_out}
        title = label(run.name, run) if len(models) == 1 else f"{model}: {label(run.name, run)}"
        key = json.dumps([title, run.name, settings], sort_keys=True, default=str)
        network = found.setdefault(key, Repeated(title, run.name, {}, settings))
        assert run.best is not None
        found[key] = replace(network, top1={seed: run.best["val_top1"], **network.top1})
    return [replace(network, top1=dict(sorted(network.top1.items()))) for network in found.values()]


def _titled(networks: Sequence[Repeated]) -> list[Repeated]:
    """With titles of their own: those of the same name have the fields behind it in which they differ."""
    titled = []
    for network in networks:
        same = [other.settings for other in networks if other.title == network.title]
        differ = [key for key in network.settings if any(other.get(key) != network.settings[key] for other in same)]
        named = [f"{'recipe' if key == 'name' else key} {network.settings[key]}" for key in differ]
        titled.append(replace(network, title=", ".join([network.title, *named])))
    return titled


def _reference(networks: Sequence[Repeated], against: str | None) -> Repeated | None:
    there = [network.baseline for network in networks if network.baseline]
    if against is not None and against not in there:
        names = ", ".join(dict.fromkeys(there))
        cure = f"they have {names}" if names else f"ilmconvert finetune --baseline {against} runs it"
        raise ReportError(f"no run has the baseline {against}; {cure}")
    name = against or next((name for name in _STRONGEST_FIRST if name in there), "")
    same = [network for network in networks if network.baseline == name]
    if name:
        return max(same, key=lambda network: network.accuracy.mean)
    return same[0] if len(networks) > 1 else None


def _percent(found: Estimate) -> str:
    return f"{100 * found.mean:.1f}" + ("" if found.half is None else f" ± {100 * found.half:.1f}") + " %"


def _points(found: Estimate | None) -> str:
    """
    >>> _points(estimate([0.01, 0.02, 0.03])), _points(estimate([0.01]))
    ('+2.0 ± 2.5', '+1.0')
    """
    if found is None:
        return NONE
    return f"{100 * found.mean:+.1f}" + ("" if found.half is None else f" ± {100 * found.half:.1f}")


def _sentence(network: Repeated, found: Estimate, against: Repeated | None) -> str:
    assert against is not None
    if found.half is None:
        return f"{network.title}, {against.title}: one seed tells nothing; run more by ilmconvert finetune --seed N"
    if not found.told_from_zero:
        return f"{network.title} can't be told from {against.title}: {_points(found)} points over {found.count} seeds"
    where = "ahead of" if found.mean > 0 else "behind"
    return f"{network.title} is {where} {against.title}: {_points(found)} points over {found.count} seeds"
