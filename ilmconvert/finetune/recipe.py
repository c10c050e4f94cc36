"""Recipes: everything that decides how a network is fine-tuned, as one frozen object. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ilmconvert._constants import shown_by
from ilmconvert.errors import RecipeError
from ilmconvert.finetune.field_checks import checked, describe, settings_of, unknown
from ilmconvert.finetune.recipe_fields import RUN_OPTIONS, Settings

__all__ = ["RECIPES", "Recipe", "RecipeError", "get_recipe"]

#: The global batch that ``lr_base`` is meant for.
LR_BASE_SIZE = 256
#: What ``lr_base`` is for: an adaptive optimizer's steps are as long as the rate, whatever the gradient.
_SGD = ("sgd", "momentum")
#: Between the rates that were chosen on three sets at batch size 2 (docs/evidence.md); three times this is too much.
_ADAMW_RATE = 2e-4


@dataclass(frozen=True)
class Recipe(Settings):
    """How a network is fine-tuned: plain values only, checked when it is made, the same in YAML and in options.

    ``learning_rate`` is the one that the optimizer gets. Names are those of timm's train.py where they mean the same.

    >>> Recipe(batch_size=64, grad_accum=2).learning_rate
    0.05
    """

    _repr_html_ = shown_by("ilmconvert.report.notebook:recipe")

    def __post_init__(self) -> None:
        for name, (_, about, hint) in settings_of(Recipe).items():
            object.__setattr__(self, name, checked(name, getattr(self, name), about, hint))
        if not isinstance(self.name, str):
            raise RecipeError(f"name has to be a string, not {self.name!r}")
        _check_together(self)

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate at its highest, before the factors of the parameter groups."""
        if self.lr is not None:
            return self.lr
        return self.lr_base * self.batch_size * self.grad_accum / LR_BASE_SIZE

    def to_dict(self) -> dict[str, Any]:
        """Every field as a JSON value."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def to_yaml(self) -> str:
        """Every field as YAML text that :meth:`from_yaml` reads."""
        import yaml

        text: str = yaml.safe_dump(self.to_dict(), sort_keys=False)
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from some of its fields; ``base`` may name the recipe that has the others.

        Raises:
            RecipeError: an unknown field or base, a value of another type or out of range.

        >>> Recipe.from_dict({"base": "norm", "epochs": 3}).train
        'norm'
        """
        values = dict(values)
        base = values.pop("base", None)
        if base is not None and base not in RECIPES:
            raise unknown("recipe", base, RECIPES)
        return _changed(RECIPES[base] if base is not None else cls(), values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file, see :meth:`from_dict`; also in a run's ``run.yaml`` or ``config.yaml``.

        Raises:
            RecipeError: no such file, no YAML, or not a recipe.
        """
        from yaml import YAMLError

        from ilmconvert.finetune.read_yaml import read_yaml

        try:
            content = read_yaml(path)
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise RecipeError(f"can't read the recipe {path}: {reason}") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{path} holds no recipe; it is a list of lines such as 'epochs: 10'")
        try:
            return cls.from_dict({"name": Path(path).stem, **_recipe_in(content)})
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error


Recipe.__doc__ = (Recipe.__doc__ or "") + describe(Recipe)


def get_recipe(recipe: str | Path | Recipe, **overrides: Any) -> Recipe:
    """A recipe by name, from a YAML file or as it is, with some fields changed.

    Raises:
        RecipeError: no such recipe or field (the message holds names that are near), or a wrong value.

    >>> get_recipe("full", epochs=3, lr=0.01).learning_rate
    0.01
    """
    if isinstance(recipe, str) and recipe in RECIPES:
        recipe = RECIPES[recipe]
    elif not isinstance(recipe, Recipe):
        path = Path(recipe)
        if path.suffix not in (".yaml", ".yml"):
            raise unknown("recipe", str(recipe), [*RECIPES, "or a .yaml file"])
        recipe = Recipe.from_yaml(path)
    return _changed(recipe, overrides)


def _recipe_in(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The fields in a file: its own, or those of the run that it describes."""
    for section, others in (("finetune", None), ("recipe", ("model", "data", "versions", "baseline"))):
        fields_of_section = content.get(section)
        if not isinstance(fields_of_section, Mapping):
            continue
        for key, value in content.items():
            # a file of options has a section for each command, a run's config.yaml these
            if key != section and not (isinstance(value, Mapping) if others is None else key in others):
                raise RecipeError(f"{key} stands beside {section}:, where it has no meaning; write it below")
        return _fields_of_run(fields_of_section) if section == "finetune" else fields_of_section
    return content


def _fields_of_run(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Of a run's options those that are a recipe's.

    Raises:
        RecipeError: one that a run doesn't have, or the same one twice.
    """
    fields_by_option = {"recipe": "base", "recipe_name": "name"}
    for name, (_, about, _) in settings_of(Recipe).items():
        fields_by_option |= {opt.lstrip("-").replace("-", "_"): name for opt in about.also if opt.startswith("--")}
        fields_by_option[name] = name
    found: dict[str, Any] = {}
    for key, value in options.items():
        option = str(key).replace("-", "_")
        if option in RUN_OPTIONS:
            continue
        if option not in fields_by_option:
            raise unknown("option", key, [name.replace("_", "-") for name in (*fields_by_option, *RUN_OPTIONS)])
        field = fields_by_option[option]
        if field in found:
            raise RecipeError(f"{key} is there twice, by two names of the same option; leave one of them out")
        found[field] = value
    if "base" in found:
        found.setdefault("name", found["base"])
    return found


def is_sgd(opt: str) -> bool:
    """Whether an optimizer is SGD, whose rates are many times those of the others."""
    return opt in _SGD


def _changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    known = [f.name for f in fields(Recipe)]
    for name in values:
        if name not in known:
            raise unknown("field of a recipe", name, known)
    other_rates = "lr_base" in values or is_sgd(values.get("opt", recipe.opt)) != is_sgd(recipe.opt)
    if recipe.lr is not None and "lr" not in values and other_rates:
        values = {**values, "lr": None}  # the recipe's own is for its optimizer, and would hide lr_base
    return replace(recipe, **values)


def _check_together(recipe: Recipe) -> None:
    """Fields that are right each by itself, and wrong together."""
    if recipe.freeze_epochs >= recipe.epochs:
        raise RecipeError(f"freeze_epochs ({recipe.freeze_epochs:g}) has to be less than epochs ({recipe.epochs})")
    if recipe.warmup_epochs is not None and recipe.warmup_epochs >= recipe.epochs:
        raise RecipeError(f"warmup_epochs ({recipe.warmup_epochs:g}) has to be less than epochs ({recipe.epochs})")
    _check_restoring(recipe)
    if recipe.input_std is not None and not recipe.standardize_input:
        raise RecipeError(
            "input_std is of standardised images; standardise them (--standardize-input), or leave it out"
        )
    if recipe.freeze_epochs and recipe.train == "norm":
        raise RecipeError("freeze_epochs has no meaning with train: norm, where the rest never trains; use train: full")
    if recipe.distill == 1 and (recipe.mixup or recipe.cutmix or recipe.smoothing):
        raise RecipeError("mixup, cutmix and smoothing change labels, and distill: 1 uses none; leave them at 0")
    if is_sgd(recipe.opt):
        return
    if recipe.opt != "adamw":
        from timm.optim import get_optimizer_info, list_optimizers

        if recipe.opt not in list_optimizers():
            raise unknown("optimizer", recipe.opt, list_optimizers())
        if get_optimizer_info(recipe.opt).second_order:
            raise RecipeError(f"{recipe.opt} needs gradients of gradients, which a run doesn't compute; take adamw")
    if recipe.lr is None:
        raise RecipeError(
            f"lr_base is the rate of SGD; give {recipe.opt} one of its own with lr (--lr; AdamW: {_ADAMW_RATE:g})"
        )


def _check_restoring(recipe: Recipe) -> None:
    if recipe.restore_bound is not None and recipe.init != "identity":
        raise RecipeError(
            "restore_bound (--restore-bound) is of the restoring path, which a start from moments lacks; leave it out, "
            "or take init: identity (--init identity)"
        )
    if recipe.anneal == "rate" and not recipe.anneal_to:
        raise RecipeError(
            "anneal: rate takes a part of the restoring path and never all; say with anneal_to (--anneal-to 0.37) what "
            "it leaves, or take anneal: cosine"
        )
    if recipe.anneal_to and recipe.anneal == "none":
        raise RecipeError(
            "anneal_to is of an annealed restoring path; say how it is annealed (--anneal rate), or set it to 0 "
            "(--anneal-to 0)"
        )


# Single small batches have gradients many times the usual ones, and a new head with a much higher rate than the rest
# spoils what it stands on, with any norm.
_STEADY: dict[str, Any] = {"clip_grad": 2.0, "head_lr_scale": 2.0}
# What was chosen on validation images for the networks that won under shifts (docs/evidence.md).
_CHOSEN: dict[str, Any] = {"opt": "adamw", "lr": _ADAMW_RATE, "distill": 0.5, "norm_lr_scale": 0.1, **_STEADY}

#: The recipes by name. ``full`` has the settings of the paper (SGD 0.9, weight decay 1e-4, 0.1 for 256 images).
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("norm", train="norm", **_STEADY),
        Recipe("full", **_STEADY),
        Recipe("distill", distill=1.0, lr_base=0.05, **_STEADY),
        Recipe(
            "anneal",
            reference_images=128,  # an average instance of these then needs no path
            anneal="cosine",
            anneal_end=0.25,  # most of the run is for the paper's layer: what the path's end spoils has to heal
            distill=0.5,
            restore_lr_scale=0.0,
            **_STEADY,
        ),
        Recipe("freeze-then-full", freeze_epochs=2.0, **_STEADY),
        Recipe("first-norm", to="ilm_in", init="moments", first_only=True, standardize_input=True, **_CHOSEN),
        Recipe("anneal-part", anneal="rate", anneal_to=0.37, **_CHOSEN),
    )
}
