"""What :mod:`benchmarks.finetune` compares: recipes on converted networks, with one budget for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.finetune_data import SETS, SIZE
from ilmconvert import __version__
from ilmconvert.finetune import Recipe, get_recipe
from ilmconvert.surgery.group_norm_baseline import BASELINES

FROZEN, ANNEAL = "frozen-bn", "anneal"
LEADER = "full"  # the recipe that the baselines are trained with
IDENTITY = "full, exact start"  # no bound
LAYERS = {"ilm_gn": "ILM-GN", "ilm_ln": "ILM-LN"}
# Every arm has these; what is special to a recipe is in the recipe.
BUDGET: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 2,
    "lr": 0.002,
    "head_lr_scale": 2.0,
    "clip_grad": 2.0,
    "warmup_epochs": 0.3,
    "scale": (0.6, 1.0),
    "ratio": (0.8, 1.25),
    "input_size": SIZE,
    "validation_batch_size": 40,
    "workers": 0,
}
RESTORE_BOUND = 2.0
# A gain over group statistics moves the channels' means, too, so that a step may weigh more than in BatchNorm.
SLOW_NORMS = {"norm_lr_scale": 0.1, "restore_lr_scale": 0.1}


@dataclass(frozen=True)
class Arm:
    """A recipe on a converted network, and the baselines that are run beside it.

    ``special`` is what this arm needs beyond the recipe of its name.
    """

    name: str
    recipe: str
    to: str
    special: Mapping[str, Any] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One call of ``finetune``: an arm, and the baselines beside it, on one set with one seed."""

    arm: Arm
    image_set: str
    seed: int
    quick: bool = False
    lr: float | None = None  # instead of the budget's

    def recipe(self) -> Recipe:
        budget = {**BUDGET, "seed": self.seed, "hflip": 0.0 if self.image_set.startswith("digits") else 0.5}
        special = dict(self.arm.special)
        if self.lr is not None:
            budget["lr"] = self.lr
        if self.quick:
            budget |= {"epochs": 1, "warmup_epochs": 0.0}
            special = {key: 0.5 if key == "freeze_epochs" else value for key, value in special.items()}
        changed = {**budget, **special, "to": self.arm.to}
        return get_recipe(self.arm.recipe, **changed, eval_every=budget["epochs"])

    def settings(self) -> str:
        """A digest that changes with the recipe, the library's version or the set's images a class."""
        made = SETS[self.image_set]
        content = [self.recipe().to_dict(), made.train, made.val, self.quick, __version__]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def run_keys(self) -> set[tuple[str, str, int, str]]:
        """Those of the runs that it makes."""
        return {(self.image_set, name, self.seed, self.settings()) for name in (self.arm.name, *self.arm.baselines)}


def arms() -> dict[str, Arm]:
    """Every arm by name; the first carries the baselines."""
    found = []
    bound = {"restore_bound": RESTORE_BOUND}
    for to in LAYERS:
        first = to == next(iter(LAYERS))
        if first:  # the baselines' norms learn at the full rate, and so do this arm's
            found.append(Arm(f"{to} full, fast norms", LEADER, to, bound, baselines=tuple(BASELINES)))
        found += [
            Arm(f"{to} full", LEADER, to, {**bound, **SLOW_NORMS}),
            Arm(f"{to} {IDENTITY}", LEADER, to, SLOW_NORMS),
            Arm(f"{to} norm", "norm", to, bound),
            Arm(f"{to} distill", "distill", to, {**bound, "distill": 0.5}),
            Arm(f"{to} freeze-then-full", "freeze-then-full", to, {**bound, "freeze_epochs": 1.0}),
            Arm(f"{to} anneal", ANNEAL, to),
        ]
    return {arm.name: arm for arm in found}


def ablations() -> dict[str, Arm]:
    """What annealing would be without one of its parts; run only if named."""
    late, kept = {"anneal_end": 0.7}, {"reference_images": 0}
    found = []
    for to in LAYERS:
        found += [
            Arm(f"{to} {ANNEAL}, the source's references", ANNEAL, to, kept),
            Arm(f"{to} {ANNEAL}, late", ANNEAL, to, late),
            Arm(f"{to} {ANNEAL}, late, the source's references", ANNEAL, to, {**late, **kept}),
        ]
    return {arm.name: arm for arm in found}


def chosen_arms(names: Sequence[str] | None) -> Iterator[Arm]:
    """The arms of these names, or all of :func:`arms`; a baseline's name brings the arm that it is run beside."""
    for arm in (arms() if names is None else {**arms(), **ablations()}).values():
        if names is None or {arm.name, *arm.baselines} & set(names):
            yield arm


def order(arm: str) -> int:
    return [*BASELINES, *arms(), *ablations()].index(arm)


def title(arm: str) -> str:
    """
    >>> title("ilm_gn full"), title("train-bn")
    ('ILM-GN, full', 'BatchNorm, training')
    """
    if arm in BASELINES:
        return BASELINES[arm]
    to, _, rest = arm.partition(" ")
    return f"{LAYERS[to]}, {rest}"
