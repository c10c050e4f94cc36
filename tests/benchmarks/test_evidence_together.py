"""The evidence runner: runs that are trained together are those that are trained alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._inductor
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from benchmarks.evidence import compiled
from benchmarks.evidence.arms import ARMS, FROZEN, Arm
from benchmarks.evidence.stacked import stackable
from benchmarks.evidence.together import Task, Together, train_all
from benchmarks.evidence.train import Settings, train
from ilmconvert.errors import ILMConvertError
from ilmconvert.testing import randomize_norms
from tests.benchmarks.evidence_jobs import DIFFERENT_ARMS, small_images, small_network


@pytest.mark.parametrize("name", DIFFERENT_ARMS)
def test_runs_trained_together_are_those_trained_alone(name: str) -> None:
    source, others = small_network(), small_images().subset(list(range(11, -1, -1)))
    tasks = [Task(Settings(0.01), 0, small_images()), Task(Settings(0.002, 0.0, 1.0), 1, others)]
    group = Together(ARMS[name], tasks, source, 3, 2)
    train_all([group])
    for task, found in zip(tasks, group.results(), strict=True):
        alone = train(ARMS[name], task.settings, source, task.images, 3, 2, seed=task.seed)
        assert found.loss == pytest.approx(alone.loss, rel=1e-4)
        assert found.gradient == pytest.approx(alone.gradient, rel=1e-4)
        begin, end = alone.start.state_dict(), alone.network.state_dict()
        moved = sum((end[key] - begin[key]).double().square().sum().item() for key in begin)
        off = sum(
            (end[key] - value).double().square().sum().item() for key, value in found.network.state_dict().items()
        )
        assert off < 1e-6 * moved


@pytest.mark.parametrize(("recipe", "share"), [({"opt": "lamb"}, 0.0), ({"opt": "adamw"}, 0.5)], ids=str)
def test_what_the_stacked_optimizer_does_not_do_is_refused(recipe: dict[str, str], share: float) -> None:
    arm = Arm("", ARMS[FROZEN].build, recipe=recipe, freeze_share=share)
    with pytest.raises(ILMConvertError, match=f"{recipe['opt']}.* can't be trained together"):
        Together(arm, [Task(Settings(0.01), 0, small_images())], small_network(), 3, 2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_layers_written_for_stacked_networks_compute_the_same(compiled: bool, training: bool) -> None:
    layers = (
        nn.Conv2d(8, 4, 1),
        nn.Conv2d(4, 6, (3, 5), 2, (1, 2), bias=False),
        Conv2dSame(6, 6, 3, 2, groups=6),
        BatchNormAct2d(6),
        nn.Conv2d(6, 6, 3, groups=6, bias=False, padding=1),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 2, 1, bias=False),
    )
    network, x = nn.Sequential(*layers), torch.randn(3, 8, 15, 16)
    randomize_norms(network)
    network.train(training)
    expected = copy.deepcopy(network)(x)
    assert torch.allclose(stackable(network, compiled=compiled)(x), expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [2.0, math.nan])
def test_a_compiled_step_that_gives_something_else_is_refused(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(traced: Any, seen: Any) -> Any:
        return lambda *given: [part * wrong for part in traced(*given)]

    monkeypatch.setattr(torch._inductor, "compile", spoiled)
    monkeypatch.setattr(compiled, "_COMPILED", {})
    with pytest.raises(ILMConvertError, match=r"the compiled step is off by .*; omit --compile"):
        Together(ARMS[FROZEN], [Task(Settings(0.01), 0, small_images())], small_network(), 3, 2, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [FROZEN, "train-bn", "ilm-gn-range", "ilm-ln-anneal", "frozen-bn-adamw"])
def test_a_compiled_step_is_the_plain_one(name: str) -> None:
    tasks = [Task(Settings(0.01), 0, small_images()), Task(Settings(0.002, 0.0, 1.0), 1, small_images())]
    plain, fused = (Together(ARMS[name], tasks, small_network(), 3, 2, compiled=how) for how in (False, True))
    train_all([plain, fused])
    for found, expected in zip(fused.state(), plain.state(), strict=True):
        assert torch.allclose(found.double(), expected.double(), atol=1e-5)


def test_a_run_that_diverges_among_others_stays_as_it_was_and_leaves_them_alone() -> None:
    tasks = [Task(Settings(rate), 0, small_images()) for rate in (0.01, 1e30)]
    group = Together(ARMS[FROZEN], tasks, small_network(), 3, 1)
    train_all([group])
    fine, diverged = group.results()
    assert diverged.diverged
    alone = train(ARMS[FROZEN], Settings(0.01), small_network(), small_images(), 3, 1, seed=0)
    assert fine.loss == pytest.approx(alone.loss, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "compiled"),
    [(FROZEN, False), ("train-bn", False), ("ilm-gn-range", False), ("ilm-ln-anneal", False), ("ilm-gn-range", True)],
)
def test_graphs_side_by_side_train_what_the_processor_trains(name: str, compiled: bool) -> None:
    torch.backends.cudnn.allow_tf32 = False
    tasks = [Task(Settings(0.01), 0, small_images()), Task(Settings(0.002, 0.0, 1.0), 1, small_images())]
    on_gpu = [replace(task, images=task.images.to("cuda")) for task in tasks]
    groups = [Together(ARMS[name], on_gpu, small_network().cuda(), 3, 2, compiled=compiled) for _ in range(2)]
    train_all(groups)
    for group in groups:
        for task, found in zip(tasks, group.results(), strict=True):
            alone = train(ARMS[name], task.settings, small_network(), task.images, 3, 2, seed=task.seed)
            assert found.loss == pytest.approx(alone.loss, rel=1e-3)
