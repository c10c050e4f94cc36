"""Fine-tuning: what trains, how, and what is left in the folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ilmconvert
from ilmconvert.data.open_data import Data
from ilmconvert.errors import CheckpointError, ILMConvertError
from ilmconvert.evaluation.accuracy import Evaluation
from ilmconvert.finetune import FineTuneError, Progress, Recipe, find_batch_size
from ilmconvert.finetune.anneal import Annealing, without_restoring
from ilmconvert.finetune.networks import norm_parameters, replace_head, set_trainable, start
from ilmconvert.finetune.optimizer import (
    Schedule,
    learning_rates,
    make_optimizer,
    parameter_groups,
    parameter_kinds,
)
from ilmconvert.finetune.trainer import Trainer
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery.converted_layers import layers_of
from ilmconvert.surgery.input_standardization import standardize
from tests.finetune.finetune_jobs import CLASSES, SIZE, bars, image, network, run, tensor
from tests.helpers import relative_error


def state(path: Path | None) -> dict[str, Tensor]:
    assert path is not None
    return ilmconvert.load(path).state_dict()


def beginning() -> dict[str, Tensor]:
    """The state from which the runs of this file start."""
    return start(network(), Recipe(), num_classes=CLASSES).network.state_dict()


def changed(path: Path | None) -> set[str]:
    after, before = state(path), beginning()
    return {key for key in before if not torch.equal(after[key], before[key])}


def test_a_run_learns_and_leaves_a_folder(tmp_path: Path) -> None:
    seen: list[Progress] = []
    settings = {"opt": "adamw", "lr": 0.003, "head_lr_scale": 5.0, "warmup_epochs": 0.0}
    result = run(tmp_path / "run", epochs=6, **settings, progress=seen.append)
    assert result.summary["accuracy"]["fine_tuned"] > 0.5  # four classes
    assert result.metrics["val_top1"] == result.summary["accuracy"]["fine_tuned"]
    assert seen[-1].step == seen[-1].steps == 18
    assert [p.epoch for p in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    assert seen[-1].loss is not None
    assert seen[-1].loss < seen[2].loss  # type: ignore[operator]
    assert seen[-2].eta is not None
    assert seen[-2].eta > 0
    files = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"config.yaml", "run.yaml", "metrics.csv", "best.safetensors", "last.safetensors", "summary.json"}
    assert files == expected | {"state", ".lock"}
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["recipe"]["lr"] == 0.003
    assert config["versions"]["torch"] == torch.__version__
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result.summary
    best = ilmconvert.load(tmp_path / "run" / "best.safetensors")
    assert ilmconvert.info(best).provenance["finetuned"]["epoch"] == result.best_epoch  # type: ignore[index]
    assert best(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, CLASSES)


def test_the_same_run_twice_gives_the_same_bytes_and_keeps_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = network(drop_rate=0.3)
    torch.manual_seed(5)
    first, second = (run(tmp_path / name, model=model, epochs=1, mixup=0.5) for name in "ab")
    assert torch.equal(torch.rand(3), expected)
    assert first.last is not None
    assert second.last is not None
    assert first.last.read_bytes() == second.last.read_bytes()
    assert not any(isinstance(m, ILMNorm) for m in model.modules())


def test_norm_trains_norms_and_the_new_head_only(tmp_path: Path) -> None:
    keys = changed(run(tmp_path, recipe="norm", epochs=1).last)
    names = {key.rpartition(".")[2] for key in keys if not key.startswith("fc.")}
    assert "fc.weight" in keys
    assert names == {"weight", "bias", "encoder", "weight_decoder", "bias_decoder", "restore_weight", "restore_bias"}
    model = ilmconvert.load(tmp_path / "last.safetensors")
    layers = {name for name, m in model.named_modules() if isinstance(m, ILMNorm)}
    assert {key.rpartition(".")[0] for key in keys} == layers | {"fc"}


def test_first_norm_converts_it_alone_and_trains_everything_but_statistics(tmp_path: Path) -> None:
    result = run(tmp_path / "run", recipe="first-norm", epochs=1, baselines=["frozen-bn"])
    model = ilmconvert.load(result.last or "")
    (made,) = ilmconvert.info(model).layers
    source, trained = network(), model.state_dict()
    first = next(name for name, module in source.named_modules() if isinstance(module, nn.BatchNorm2d))
    assert (made.name, made.config.num_groups) == (first, source.get_submodule(first).num_features)
    assert ilmconvert.info(model).settings == {"to": "ilm_in", "init": "moments"}
    others = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    moved = {key for key, value in source.state_dict().items() if not torch.equal(value, trained.get(key, value))}
    assert {key for key in moved if "running" in key} == set()
    assert "conv1.0.weight" in moved
    assert {f"{name}.bias" for name in others} <= moved
    run(
        tmp_path / "again", model=str(tmp_path / "run"), num_classes=None, recipe="first-norm", distill=0, epochs=1
    )  # it fits


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_only": True}, r"came converted in \d+ layers, and the recipe converts the first norm alone"),
        ({"init": "moments"}, "came converted with init: identity, and the recipe starts from moments"),
    ],
)
def test_a_network_that_came_converted_in_another_way_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(FineTuneError, match=message):
        run(tmp_path / "run", model=ilmconvert.convert(network()), **settings)
    assert not (tmp_path / "run").exists()


def test_frozen_first_then_all(tmp_path: Path) -> None:
    frozen = changed(run(tmp_path / "a", recipe="freeze-then-full", epochs=1, freeze_epochs=0.99).last)
    all_of_them = changed(run(tmp_path / "b", recipe="freeze-then-full", epochs=3, freeze_epochs=1).last)
    assert not any(key.endswith("conv1.weight") for key in frozen)
    assert "fc.weight" in frozen
    assert any(key.endswith("conv1.weight") for key in all_of_them)


def test_the_annealed_run_ends_in_the_papers_layer(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(tmp_path, recipe="anneal", epochs=4, anneal_end=0.6, ema_decay=0.9, progress=seen.append)
    layers = [m for m in ilmconvert.load(tmp_path / "best.safetensors").modules() if isinstance(m, ILMNorm)]
    assert layers
    assert not any(layer.restore for layer in layers)
    assert all(layer.restore_weight is None and layer.ref_std is None for layer in layers)
    assert result.best_epoch is not None
    assert result.best_epoch >= 3, "an epoch with a restoring path was taken for the best"
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("restore")
    strengths = [float(row.split(",")[column]) for row in rows[1:]]
    assert strengths[0] > strengths[1] > 0
    assert strengths[2:] == [0, 0]


@pytest.mark.parametrize("how", ["linear", "rate"])
def test_annealing_a_part_of_the_way_keeps_the_rest_of_the_path(tmp_path: Path, how: str) -> None:
    result = run(tmp_path, epochs=3, anneal=how, anneal_to=0.25, anneal_end=0.5, ema_decay=0.9, warmup_epochs=0.3)
    assert result.last is not None
    networks = (start(network(), Recipe(), num_classes=CLASSES).network, ilmconvert.load(result.last))
    begun, ended = ([m for m in each.modules() if isinstance(m, ILMNorm)] for each in networks)
    for before, after in zip(begun, ended, strict=True):
        assert torch.allclose(after.restore_weight, 0.25 * before.restore_weight, rtol=1e-4)
        assert torch.allclose(after.restore_bias, 0.25 * before.restore_bias, rtol=1e-4, atol=1e-6)
        assert torch.equal(after.ref_std, before.ref_std)
    assert result.best_epoch is not None
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    strengths = [float(row.split(",")[rows[0].split(",").index("restore")]) for row in rows[1:]]
    assert strengths[-1] == pytest.approx(0.25)
    assert all(a >= b for a, b in pairwise(strengths))
    assert set(state(result.best)) == set(state(result.last))  # with the path


def test_annealing_by_the_rate_is_weight_decay_on_the_path_alone() -> None:
    """What torch's AdamW does with a coefficient that leaves as much of the path."""
    recipe, batches = Recipe(opt="adamw", lr=1e-3, epochs=2, anneal="rate", anneal_to=0.3), 200
    decayed = nn.Parameter(torch.ones(3))
    rates = learning_rates(recipe, batches)
    optimizer = torch.optim.AdamW([decayed], weight_decay=-math.log(0.3) / sum(rates))
    annealing = Annealing(recipe, batches)
    for step, rate in enumerate(rates):
        decayed.grad = torch.zeros(3)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert decayed[0].item() == pytest.approx(annealing.strength(step + 1), rel=2e-2)


def test_a_step_at_a_rate_of_zero_takes_nothing_off_the_path() -> None:
    recipe = Recipe(epochs=1, warmup_epochs=0.9, anneal="rate", anneal_to=0.3)
    assert learning_rates(recipe, 1) == [0.0]
    assert Annealing(recipe, 1).strength(1) == 1.0


def test_the_rates_are_those_of_the_schedule_whatever_the_optimizer() -> None:
    plain = learning_rates(Recipe(opt="adamw", lr=1e-3, epochs=2), 30)
    assert learning_rates(Recipe(opt="lamb", lr=1e-3, epochs=2), 30) == plain
    assert 0.9e-3 < max(plain) <= 1e-3


def test_a_path_that_is_not_zero_is_not_cut_off() -> None:
    model = nn.Sequential(ILMNorm(8, 2, key_group_size=4, restore=True))
    before = model(x := torch.randn(2, 8, 3, 3))
    assert relative_error(without_restoring(nn.Sequential(model[0]))(x), before) == 0
    ranged = nn.Sequential(ILMNorm(8, 2, key_group_size=4, restore=True, restore_range=(-0.1, 0.1, 0.1)))
    bare = without_restoring(ranged)[0]
    assert (bare.restore, bare.restore_range) == (False, None)
    model = nn.Sequential(ILMNorm(8, 2, key_group_size=4, restore=True))
    nn.init.ones_(model[0].restore_weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="isn't zero"):
        without_restoring(model)


@pytest.mark.parametrize(("recipe", "kept"), [("full", True), ("anneal", False)])
def test_a_robust_start_keeps_its_range_unless_it_is_annealed(tmp_path: Path, recipe: str, kept: bool) -> None:
    model = ilmconvert.convert(network())
    first = ilmconvert.calibrate_bound(model)
    result = run(tmp_path, model=model, recipe=recipe, epochs=1, distill=0.0)
    layer = ilmconvert.load(result.last).get_submodule(first)
    assert (layer.restore_range is not None) == kept


def test_groups_have_their_factors_and_no_decay_of_one_dimension() -> None:
    factors = {"norm_lr_scale": 2.0, "restore_lr_scale": 0.5, "head_lr_scale": 10.0}
    recipe = Recipe(**factors, lr=0.1, warmup_epochs=0.0, weight_decay=0.01)  # type: ignore[arg-type]
    model = start(network(), recipe).network
    set_trainable(model, recipe, with_head=False)
    groups = parameter_groups(model, recipe)
    encoders = {id(m.encoder) for m in model.modules() if isinstance(m, ILMNorm)}
    scales = {g["kind"]: g["lr_scale"] for g in groups if not encoders & {id(p) for p in g["params"]}}
    assert scales == {"backbone": 1.0, "norm": 2.0, "restore": 0.5, "head": 10.0}
    for group in groups:
        assert group["weight_decay"] == (0.0 if all(p.ndim == 1 for p in group["params"]) else 0.01)
        assert len({p.ndim == 1 for p in group["params"]}) == 1
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    optimizer = make_optimizer(groups, recipe)
    assert Schedule(optimizer, recipe, 10).apply(0) == pytest.approx(0.1)
    assert {g["kind"]: g["lr"] for g in optimizer.param_groups}["head"] == pytest.approx(1.0)


class Operations(TorchDispatchMode):
    """How often torch's operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten":
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("opt", ["sgd", "momentum", "adamw"])
def test_a_step_of_the_optimizer_is_one_kernel_a_group(opt: str) -> None:
    recipe = Recipe(opt=opt, lr=0.1)
    model = start(network(), recipe).network
    optimizer = make_optimizer(parameter_groups(model, recipe), recipe)
    model(torch.ones(1, 3, SIZE, SIZE)).sum().backward()
    optimizer.step()
    with Operations() as operations:
        optimizer.step()
    kernel = "aten._fused_adamw_.default" if opt == "adamw" else "aten._fused_sgd_.default"
    counting = {"aten._foreach_add_.Scalar": len(optimizer.param_groups)} if opt == "adamw" else {}  # of the steps
    assert operations.counts == {kernel: len(optimizer.param_groups), **counting}


def test_an_optimizer_that_needs_what_isnt_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = Recipe(opt="fusedadam", lr=0.1)
    with pytest.raises(FineTuneError, match=r"^fusedadam can't be had here .*; take another one, such as adamw$"):
        make_optimizer(parameter_groups(network(), recipe), recipe)


def test_layer_decay_falls_towards_the_input() -> None:
    recipe = Recipe(layer_decay=0.5, head_lr_scale=2.0, norm_lr_scale=3.0)
    model = start(network(), recipe).network
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, recipe) for p in g["params"]}
    head, last, first = model.fc.weight, model.layer4[-1].conv2.weight, model.conv1[0].weight  # type: ignore
    assert scale[id(head)] == 2.0
    assert 1.0 > scale[id(last)] > scale[id(first)] > 0
    assert scale[id(model.layer4[-1].bn2.weight)] == pytest.approx(3 * scale[id(last)])  # type: ignore
    plain = torchvision.models.resnet18()
    with pytest.raises(FineTuneError, match="take the model from timm"):
        parameter_groups(plain, recipe)


@pytest.mark.parametrize("sched", ["cosine", "constant"])
def test_the_schedule_warms_up_and_ends(sched: str) -> None:
    recipe = Recipe(sched=sched, warmup_epochs=1.5, epochs=4, lr=0.4)
    optimizer = make_optimizer(
        [{"params": [nn.Parameter(torch.zeros(2))], "lr_scale": 0.5, "weight_decay": 0.0}], recipe
    )
    schedule = Schedule(optimizer, recipe, 10)
    rates = [schedule.apply(step) for step in range(40)]
    assert rates[:15] == pytest.approx([0.4 * step / 15 for step in range(15)])
    after = range(15, 40)
    expected = [0.4 if sched == "constant" else 0.2 * (1 + math.cos(math.pi * step / 40)) for step in after]
    assert rates[15:] == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[39] / 2)


@pytest.mark.parametrize("sched", ["cosine", "constant"])
def test_by_default_a_tenth_of_the_steps_warms_up(sched: str) -> None:
    def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
        groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr_scale": 1.0, "weight_decay": 0.0}]
        schedule = Schedule(make_optimizer(groups, recipe), recipe, steps_per_epoch)
        return [schedule.apply(step) for step in range(recipe.epochs * steps_per_epoch)]

    recipe = Recipe(sched=sched, epochs=4, lr=0.4)
    assert rates(recipe, 20)[:8] == pytest.approx([0.05 * step for step in range(8)])
    assert rates(recipe, 20) == pytest.approx(rates(replace(recipe, warmup_epochs=0.4), 20))
    cold = replace(recipe, warmup_epochs=0.0)
    assert rates(recipe, 20)[8:] == pytest.approx(rates(cold, 20)[8:])
    assert rates(recipe, 2) == rates(cold, 2)  # eight steps
    assert rates(cold, 20)[0] == 0.4


def test_two_half_batches_are_one(tmp_path: Path) -> None:
    whole = state(run(tmp_path / "a", epochs=1).last)
    halves = state(run(tmp_path / "b", epochs=1, batch_size=4, grad_accum=2).last)
    assert max(relative_error(halves[key], whole[key]) for key in whole) < 1e-4


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    kept = state(run(tmp_path / "a", epochs=1, ema_decay=0.99).last)
    plain = state(run(tmp_path / "b", epochs=1).last)
    before = beginning()
    key = "fc.weight"
    assert not torch.equal(kept[key], plain[key])
    assert (kept[key] - before[key]).norm() < (plain[key] - before[key]).norm()
    assert (kept[key] - before[key]).norm() > 0


def test_distillation_needs_no_labels(tmp_path: Path) -> None:
    model = network(num_classes=CLASSES)
    teacher = network("test_efficientnet", num_classes=CLASSES)
    result = run(
        tmp_path / "run",
        data=bars(labelled=False, val=True),
        model=model,
        num_classes=None,
        teacher=teacher,
        recipe="distill",
    )
    losses = [row.split(",")[4] for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert float(losses[-1]) < float(losses[0])
    assert result.metrics["val_agreement"] is not None
    assert result.metrics["train_top1"] is None
    with pytest.raises(ILMConvertError, match="the data have no labels"):
        run(tmp_path / "other", data=bars(labelled=False), model=model, num_classes=None)


def test_a_network_distilled_from_itself_has_nothing_to_learn(tmp_path: Path) -> None:
    model = network(num_classes=CLASSES)
    seen: list[Progress] = []
    run(tmp_path / "run", model=model, num_classes=None, recipe="distill", epochs=1, progress=seen.append)
    assert seen[0].loss == pytest.approx(0, abs=1e-6)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy"]["source"] == summary["accuracy"]["converted"]
    assert summary["before"]["agreement"] == 1


def test_with_a_new_head_features_are_distilled(tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(tmp_path / "run", recipe="anneal", epochs=3, init="identity", distill=0.999, progress=seen.append)
    assert seen[0].loss is not None
    assert seen[0].loss < 0.1  # the labels' share of the loss alone: features are the source's at first
    assert seen[2].loss > seen[0].loss  # type: ignore[operator]  # the path shrinks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "distill"}, "the new head learns from labels only"),
        ({"recipe": "full", "teacher": "test_resnet"}, "a teacher has no use with distill: 0"),
        ({"recipe": "anneal", "init": "moments"}, "no restoring path to anneal"),
        ({"amp": "fp16"}, "fp16 is for accelerators"),
        ({"num_classes": 5}, "4 classes, fewer than the 5 outputs"),
        ({"num_classes": None}, "--num-classes 4"),
        ({"num_classes": 1}, "at least 2"),
        ({"baselines": ["fresh"]}, "unknown baseline 'fresh'"),
        ({"log_with": ["nowhere"]}, "unknown tracker 'nowhere'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ILMConvertError, match=message) as caught:
        run(tmp_path / "run", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match=r"the loss is (nan|inf) by step \d+; lower the learning rate"):
        run(tmp_path / "run", lr=1e6, clip_grad=None)


def test_precision_memory_format_and_checkpointing(tmp_path: Path) -> None:
    settings = {"epochs": 1}
    full = run(tmp_path / "plain", **settings)
    plain = state(full.last)
    other = state(run(tmp_path / "other", channels_last=True, grad_checkpointing=True, **settings).last)
    assert max(relative_error(other[key], plain[key]) for key in plain) < 1e-3
    half = run(tmp_path / "half", amp="bf16", **settings)
    assert half.metrics["train_loss"] == pytest.approx(full.metrics["train_loss"], rel=0.02)
    assert {t.dtype for t in state(half.last).values()} == {torch.float32}
    key = "layer1.0.conv1.weight"
    assert 0 < relative_error(state(half.last)[key], plain[key]) < 0.1


def test_patience_ends_a_run(tmp_path: Path) -> None:
    result = run(tmp_path / "run", lr=1e-12, epochs=5, patience=2, eval_every=1)
    assert result.summary["stopped_early"]
    assert result.summary["epochs"] == 3
    assert result.best_epoch == 1


def test_without_validation_the_last_epoch_is_the_best(tmp_path: Path) -> None:
    result = run(tmp_path / "run", data=bars(val=False), epochs=2)
    assert result.best_epoch == 2
    assert result.metrics["val_top1"] is None


def test_validation_every_other_epoch_and_at_the_end(tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=3, eval_every=2)
    rows = [row.split(",") for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val_top1")
    assert [bool(row[column]) for row in rows[1:]] == [False, True, True]


def test_a_new_head_comes_wherever_the_model_holds_the_old_one() -> None:
    class Listed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self.heads[0](x.flatten(1))  # type: ignore[no-any-return]

    model = Listed(nn.Flatten(), nn.Linear(12, 8))
    model.heads = [model[1]]
    replace_head(model, CLASSES, 0)
    assert model.heads == [model[1]]
    assert model(torch.ones(2, 3, 2, 2)).shape == (2, CLASSES)


def test_baselines_run_beside(tmp_path: Path) -> None:
    names = ("train-bn", "frozen-bn", "group-norm")
    result = run(tmp_path / "run", baselines=names, epochs=1)
    assert set(result.summary["baselines"]) == set(names)
    model = network()
    source = {key: t for key, t in model.state_dict().items() if key.endswith("running_mean")}
    ended = {name: load_file(tmp_path / "run" / "baselines" / name / "last.safetensors") for name in names}
    assert all(torch.equal(ended["frozen-bn"][key], value) for key, value in source.items())
    assert not all(torch.equal(ended["train-bn"][key], value) for key, value in source.items())
    assert not any("running" in key for key in ended["group-norm"])
    replace_head(model, CLASSES, 0)
    model.load_state_dict(ended["frozen-bn"])
    # each loads by itself
    x = torch.stack([tensor(image(0, 0))])
    loaded = {name: ilmconvert.load(tmp_path / "run" / "baselines" / name) for name in names}
    assert torch.equal(loaded["frozen-bn"](x), model(x))
    assert not layers_of(loaded["train-bn"])
    assert [layer.config.title for layer in layers_of(loaded["group-norm"])] == ["GroupNorm"] * len(source)
    assert ilmconvert.info(loaded["group-norm"]).to == "gn"
    assert ilmconvert.info(loaded["group-norm"]).provenance["finetuned"]["baseline"] == "group-norm"
    with pytest.raises(CheckpointError, match="convert it first"):
        ilmconvert.save(loaded["frozen-bn"], tmp_path / "mine.safetensors")
    with pytest.raises(FineTuneError, match="give the model's name instead"):
        run(tmp_path / "again", model=ilmconvert.convert(network()), baselines=names)


def tensors(change: Callable[[Tensor], Tensor]) -> Data:
    """The images of :func:`bars` as tensors."""
    data = bars()
    kept = {part: [(change(tensor(item)), label) for item, label in getattr(data, part)] for part in ("train", "val")}
    return replace(data, **kept)


def test_images_are_standardised_in_the_network(tmp_path: Path) -> None:
    settings = {"epochs": 1, "baselines": ("frozen-bn",), "distill": 0.5, "anneal": "cosine"}
    own = run(tmp_path / "own", data=tensors(lambda x: x), standardize_input=True, **settings)
    made = ilmconvert.info(ilmconvert.load(own.last)).standardized_input
    assert made is not None
    deviations = [float(x.double().std(correction=0)) for x, _ in tensors(lambda x: x).train]
    assert made.std == pytest.approx(sum(deviations) / len(deviations))

    other = run(tmp_path / "other", data=tensors(lambda x: standardize(x[None], made.std)[0]), **settings)
    for folder in ("", "baselines/frozen-bn"):
        a, b = (load_file(result.output / folder / "last.safetensors") for result in (own, other))
        assert all(torch.allclose(a[key].float(), b[key].float(), atol=1e-5) for key in a)
    frozen = ilmconvert.load(own.output / "baselines" / "frozen-bn")
    assert ilmconvert.info(frozen).standardized_input == made
    x = tensors(lambda x: x).train[0][0][None]
    assert torch.allclose(frozen(0.1 * x + 3), frozen(x), atol=1e-4)

    again = run(tmp_path / "again", model=own.last, num_classes=None, data=tensors(lambda x: 3 * x), epochs=1)
    assert ilmconvert.info(ilmconvert.load(again.last)).standardized_input == made
    wider = {"standardize_input": True, "input_std": 2 * made.std, "epochs": 1}
    with pytest.raises(
        FineTuneError, match=r"standardises each image to .* already, as it has learned; leave input_std"
    ):
        run(tmp_path / "wider", model=own.last, num_classes=None, **wider)
    assert not (tmp_path / "wider").exists()
    chosen = ilmconvert.info(ilmconvert.load(run(tmp_path / "wider", **wider).last)).standardized_input
    assert chosen is not None
    assert chosen.std == 2 * made.std


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "run", dry_run=True, recipe="norm")
    assert not (tmp_path / "run").exists()
    assert result.best is None
    assert result.summary["steps"] == 9
    assert set(result.summary["trained"]) == {"norm", "restore", "head"}
    assert result.summary["first_loss"] > 0


def test_a_checkpoint_goes_on_with_its_head(tmp_path: Path) -> None:
    first = run(tmp_path / "first", epochs=1)
    second = run(tmp_path / "second", model=tmp_path / "first", num_classes=None, epochs=1, recipe="norm")
    assert second.summary["accuracy"]["converted"] == first.metrics["val_top1"]
    assert torch.equal(state(first.last)["fc.weight"], state(second.last)["fc.weight"])


def test_a_plain_checkpoint_stays_plain(tmp_path: Path) -> None:
    plain = ilmconvert.convert(network(), "gn")
    ilmconvert.save(plain, tmp_path / "plain.safetensors")
    result = run(tmp_path / "run", model=tmp_path / "plain.safetensors", epochs=1, recipe="norm")
    trained = ilmconvert.load(tmp_path / "run" / "last.safetensors")
    assert result.best_epoch == 1
    assert not any(isinstance(m, ILMNorm) for m in trained.modules())
    before, after = plain.state_dict(), trained.state_dict()
    moved = {
        key for key in before if before[key].shape == after[key].shape and not torch.equal(before[key], after[key])
    }
    assert moved  # norms alone: convolutions stay as they are
    assert all(before[key].dim() == 1 for key in moved)


def test_norm_trains_the_plain_layers_of_the_conversion_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = timm.create_model("test_resnet", norm_layer="groupnorm1", num_classes=CLASSES)
    plain = ilmconvert.convert(own, "gn", num_groups=4, include="layer1*")
    # the norms that stayed are GroupNorms, too; they aren't the conversion's
    result = run(tmp_path / "run", model=plain, num_classes=None, epochs=1, recipe="norm", weight_decay=0.0)
    before, after = plain.state_dict(), state(result.last)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    made = {f"{e.name}.{part}" for e in layers_of(plain) for part in ("weight", "bias")}
    assert moved == made
    kinds = parameter_kinds(plain)
    assert {key for key, p in plain.named_parameters() if kinds.get(id(p)) == "norm"} == made


def test_a_plain_network_is_distilled_from_its_source(tmp_path: Path) -> None:
    source = network(num_classes=CLASSES)
    plain = ilmconvert.convert(source, "ln")
    settings: dict[str, Any] = {"num_classes": None, "recipe": "distill", "data": bars(labelled=False), "lr": 0.02}
    result = run(tmp_path / "run", model=plain, teacher=source, **settings)
    losses = [float(row.split(",")[4]) for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.7 * losses[0]
    assert result.summary["before"]["against"] == "teacher"
    assert result.metrics["val_agreement"] >= result.summary["before"]["agreement"]
    loaded = ilmconvert.load(tmp_path / "run" / "best.safetensors")
    assert ilmconvert.info(loaded).settings["to"] == "ln"
    # converted here, so that its source is there to teach it; by itself it can't
    seen: list[Progress] = []
    run(tmp_path / "b", model=source, init="moments", to="ilm_ln", epochs=1, progress=seen.append, **settings)
    assert seen[0].loss is not None
    assert seen[0].loss > 1e-3
    with pytest.raises(ILMConvertError, match=r"can't teach itself; .* --teacher"):
        run(tmp_path / "c", model=plain, **settings)


def test_a_torchvision_model_gets_a_head_and_loads_by_itself(tmp_path: Path) -> None:
    from ilmconvert.models.create import create_model

    model = create_model("torchvision/mobilenet_v3_small", weights="none")
    with pytest.warns(UserWarning, match="never trained"):
        result = run(tmp_path / "run", model=model, epochs=1, lr=1e-4, recipe="norm")
    loaded = ilmconvert.load(tmp_path / "run" / "best.safetensors")
    assert loaded.classifier[-1].out_features == CLASSES  # type: ignore
    assert result.best_epoch == 1
    assert model.classifier[-1].out_features == 1000  # type: ignore


def test_tensors_are_taken_as_they_are_and_logged(tmp_path: Path) -> None:
    items = [(torch.rand(3, SIZE, SIZE), i % CLASSES) for i in range(8)]
    data = Data(items, items, tuple("abcd"), CLASSES, {"source": "tensors"})  # type: ignore[arg-type]
    run(tmp_path / "run", data=data, epochs=1, log_with=["tensorboard"])
    assert list((tmp_path / "run" / "logs").rglob("events.*"))


def test_the_batch_size_that_fits() -> None:
    recipe, model = Recipe(), network()
    size = find_batch_size(model, recipe, (3, SIZE, SIZE))
    assert size >= 2
    assert size & (size - 1) == 0
    assert find_batch_size(model, recipe, (3, 4 * SIZE, 4 * SIZE)) <= size
    assert find_batch_size(model, recipe, (3, SIZE, SIZE), largest=7) == 4


def test_norm_parameters_of_a_baseline_are_its_norms() -> None:
    model = network()
    assert {name for name, _ in norm_parameters(model)} == {"weight", "bias"}
    assert image(0, 0).size == (SIZE, SIZE)


def test_equal_epochs_go_to_the_lower_validation_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.2, 0.3, 0.1])
    values = iter([1.0, 1.0, 1.0, 0.9])

    def evaluate(self: Trainer, against: Any = None, model: Any = None) -> Evaluation:
        return Evaluation(4, 4, next(values), None, None, next(losses), None, None)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    result = run(tmp_path / "run", epochs=4)
    assert result.best_epoch == 2
    assert result.metrics["val_loss"] == 0.2
