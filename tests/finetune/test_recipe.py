"""Recipes: what they accept, how they are stored, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilmconvert.errors import ILMConvertError
from ilmconvert.finetune.field_checks import settings_of
from ilmconvert.finetune.recipe import RECIPES, Recipe, RecipeError, get_recipe


def test_the_recipes() -> None:
    assert set(RECIPES) == {"norm", "full", "distill", "anneal", "freeze-then-full", "first-norm", "anneal-part"}
    assert all(RECIPES[name].name == name for name in RECIPES)
    assert RECIPES["norm"].train == "norm"
    assert RECIPES["distill"].distill == 1
    assert RECIPES["anneal"].anneal != "none"
    assert 0 < RECIPES["anneal"].distill < 1
    assert RECIPES["freeze-then-full"].freeze_epochs > 0
    first = RECIPES["first-norm"]
    assert (first.to, first.init, first.first_only, first.freeze_batch_norm) == ("ilm_in", "moments", True, True)
    part = RECIPES["anneal-part"]
    assert (part.to, part.init, part.first_only) == ("ilm_gn", "identity", False)
    assert 0 < part.anneal_to < 1


def test_full_has_the_settings_of_the_paper() -> None:
    full = get_recipe("full", batch_size=256)
    assert (full.opt, full.momentum, full.weight_decay, full.learning_rate) == ("sgd", 0.9, 1e-4, 0.1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_base": 0.1, "batch_size": 2}, 0.1 * 2 / 256),
        ({"lr_base": 0.1, "batch_size": 32, "grad_accum": 8}, 0.1),
        ({"lr_base": 0.1, "lr": 0.03, "batch_size": 2}, 0.03),
    ],
)
def test_learning_rate(settings: dict[str, Any], expected: float) -> None:
    assert Recipe(**settings).learning_rate == pytest.approx(expected)


def test_a_rate_goes_with_its_optimizer() -> None:
    first = RECIPES["first-norm"]
    assert first.opt == "adamw"
    assert get_recipe("first-norm", opt="lamb").lr == get_recipe("first-norm", epochs=3).lr == first.lr
    sgd = get_recipe("first-norm", opt="sgd", batch_size=2)
    assert (sgd.lr, sgd.learning_rate) == (None, get_recipe("full", batch_size=2).learning_rate)
    assert Recipe.from_dict({"base": "first-norm", "opt": "momentum"}).lr is None
    assert get_recipe("first-norm", opt="sgd", lr=0.01).lr == 0.01
    for recipe, changes in (("full", {"opt": "adamw"}), ("first-norm", {"lr_base": 0.1})):
        with pytest.raises(RecipeError, match=r"lr_base is the rate of SGD; give adamw .* lr \(--lr; AdamW: 0.0002\)"):
            get_recipe(recipe, **changes)


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name, scale=(0.2, 0.9), patience=4, min_lr=1e-7, amp="no", workers=0)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.from_yaml(path) == get_recipe(path) == recipe
    # as a run's config.yaml holds it
    path.write_text(yaml.safe_dump({"model": "x", "recipe": recipe.to_dict()}))
    assert get_recipe(path) == recipe


def test_yaml_of_a_few_fields(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: norm\nepochs: 3\nweight_decay: 1e-5\namp: no\nlayer_decay: null\nscale: [0.5, 1]\n")
    recipe = get_recipe(path, epochs=4)
    assert (recipe.name, recipe.train, recipe.epochs, recipe.weight_decay) == ("mine", "norm", 4, 1e-5)
    assert (recipe.amp, recipe.layer_decay, recipe.scale) == ("no", None, (0.5, 1.0))


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RECIPES["full"].lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentun": 0.9}, "unknown field of a recipe 'momentun'; did you mean momentum"),
        ({"zzzz": 1}, "ilmconvert finetune --help"),
        ({"epochs": 1.5}, "epochs has to be a whole number, not 1.5"),
        ({"epochs": True}, "epochs has to be a whole number, not True"),
        ({"epochs": 0}, "epochs has to be at least 1, not 0"),
        ({"lr": "fast"}, "lr has to be a number or null, not 'fast'"),
        ({"lr": 0}, "lr has to be more than 0, not 0"),
        ({"lr_base": float("nan")}, "lr_base has to be finite"),
        ({"lr_base": None}, "lr_base has to be a number, not None"),
        ({"compile": "yes"}, "compile has to be true or false, not 'yes'"),
        ({"train": "nrom"}, "train is one of norm, full, not 'nrom'"),
        ({"amp": True}, "amp has to be a string, not True"),
        ({"scale": (0.5,)}, "scale has to be two numbers"),
        ({"scale": (1.0, 0.5)}, "scale: the first number is the smaller one"),
        ({"ratio": (-1, 1)}, "ratio has to be more than 0"),
        ({"distill": 1.5}, "distill has to be at most 1, not 1.5"),
        ({"opt": "sdg"}, "unknown optimizer 'sdg'; did you mean sgd"),
        ({"opt": "adahessian", "lr": 0.1}, "adahessian needs gradients of gradients"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs .2. has to be less than epochs .2."),
        ({"epochs": 2, "freeze_epochs": 2.5}, "freeze_epochs .2.5. has to be less than epochs .2."),
        ({"train": "norm", "freeze_epochs": 1}, "use train: full"),
        ({"anneal": "linear", "anneal_end": 0}, "anneal_end has to be more than 0"),
        ({"input_std": 1.0}, r"input_std is of standardised images; standardise them \(--standardize-input\)"),
        ({"anneal_to": 0.37}, r"say how it is annealed \(--anneal rate\), or set it to 0"),
        ({"anneal": "rate"}, r"say with anneal_to \(--anneal-to 0.37\) what it leaves"),
        ({"anneal": "rate", "anneal_to": 1.5}, "anneal_to"),
        ({"distill": 1, "mixup": 0.2}, "leave them at 0"),
    ],
)
def test_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as found:
        get_recipe("full", **settings)
    assert isinstance(found.value, ILMConvertError)
    assert "\n" not in str(found.value)
    if not {"momentun", "zzzz"} & settings.keys():
        with pytest.raises(RecipeError, match=message):
            Recipe(**settings)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "momentum"])
def test_optimizers_of_timm(optimizer: str) -> None:
    assert get_recipe("full", opt=optimizer, lr=0.001).opt == optimizer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't read the recipe .*: No such file"),
        ("epochs: [", "can't read the recipe"),
        ("- 1\n- 2\n", "holds no recipe"),
        ("epoch: 3\n", r"recipe.yaml: unknown field .*epochs"),
        ("base: fulll\n", r"recipe.yaml: unknown recipe 'fulll'; did you mean full"),
        ("epochs: 3\nepochs: 4\n", r"recipe.yaml: epochs is there twice .line 2."),
        ("finetune: {epoch: 3}\n", r"recipe.yaml: unknown option 'epoch'; did you mean epochs\?"),
        ("finetune: {batchsize: 3}\n", r"unknown option 'batchsize'; did you mean batch-size"),
        ("finetune: {modle: resnet50}\n", r"unknown option 'modle'; did you mean model"),
        ("finetune: {recipe: fulll}\n", r"unknown recipe 'fulll'; did you mean full"),
        ("finetune: {temperature: 2, kd-temperature: 3}\n", "kd-temperature is there twice, by two names"),
        ("finetune: {epochs: 3}\nlr: 4\n", "lr stands beside finetune:, where it has no meaning; write it below"),
        ("recipe: {epochs: 3}\nlr: 4\n", "lr stands beside recipe:"),
    ],
)
def test_files_that_hold_no_recipe(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=message) as found:
        get_recipe(path)
    assert "\n" not in str(found.value)


def test_unknown_name() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'anneall'; did you mean anneal"):
        get_recipe("anneall")


def test_every_field_is_documented() -> None:
    described = settings_of(Recipe)
    assert {f.name for f in fields(Recipe)} - set(described) == {"name"}
    for name, (_, about, _) in described.items():
        assert f"        {name}: {about.text}" in (Recipe.__doc__ or "")


def test_recipes_need_no_torch() -> None:
    code = "import sys; from ilmconvert.finetune.recipe import get_recipe; get_recipe('full', epochs=3).to_yaml(); "
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
