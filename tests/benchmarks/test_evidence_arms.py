"""The evidence runner: its arms, how one is trained, its choice of settings, and what has moved."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.evidence.arms import ARMS, FROZEN, Arm
from benchmarks.evidence.begin import prepared_for
from benchmarks.evidence.movement import movement
from benchmarks.evidence.select import RATES, SEEDS, at_edge, choose
from benchmarks.evidence.train import BATCH_SIZE, Settings, predictions, train
from ilmconvert.errors import ILMConvertError
from ilmconvert.nn import ILMNorm
from tests.benchmarks.evidence_jobs import DIFFERENT_ARMS, small_images, small_network


def test_choice_takes_the_better_mean_of_the_best_two_rates_and_aids_that_help_twice() -> None:
    asked = []
    table = {(0.002, 1000): 0.5, (0.005, 1000): 0.8, (0.012, 1000): 0.79, (0.03, 1000): 0.1}
    table |= {(0.005, 1001): 0.7, (0.012, 1001): 0.75}

    def score(settings: Settings, seed: int) -> float:
        asked.append((settings, seed))
        gain = {0.5: 0.0, 0.0: 0.02}[settings.distill] + {0.1: 0.0, 1.0: 0.05 if seed == SEEDS[0] else -0.2}[
            settings.norm_scale
        ]
        return table[settings.rate, seed] + gain

    assert choose(score) == Settings(0.012, distill=0.0, norm_scale=0.1)
    assert {seed for _, seed in asked} == set(SEEDS)
    assert not at_edge(Settings(0.012))
    assert at_edge(Settings(max(RATES)))


@pytest.mark.parametrize("name", [*DIFFERENT_ARMS, "ilm-gn-gated-adamw-fast"])
def test_every_arm_trains_its_network(name: str) -> None:
    images, source = small_images(), small_network()
    before = {key: value.clone() for key, value in source.state_dict().items()}
    trained = train(ARMS[name], Settings(0.01), source, images, 3, 1, seed=0)
    assert not trained.diverged
    assert not trained.network.training
    assert predictions(trained.network, trained.prepare, images).shape == (12,)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    ends = dict(trained.network.named_parameters())
    changed = {key for key, value in trained.start.named_parameters() if not torch.equal(value, ends[key])}
    assert "7.weight" in changed
    assert ("3.weight" in changed) == (name != "ilm-gn-norm")
    assert any(isinstance(m, ILMNorm) for m in trained.network.modules()) == name.startswith("ilm")


@pytest.mark.parametrize("name", ["ilm-gn", "ilm-gn-range", "ilm-ln"])
def test_exact_starts_compute_what_frozen_batch_norm_does_on_training_images(name: str) -> None:
    images, source = small_images(), small_network()
    # a range leaves a tenth of the images beyond each of two limits
    x = prepared_for(ARMS[name], images)(images.pixels)
    expected, found = ARMS[FROZEN].build(source, x)(x), ARMS[name].build(source, x)(x)
    equal = torch.isclose(found, expected, atol=1e-4).all(1).double().mean()
    assert equal >= (0.7 if name == "ilm-gn-range" else 1.0)


@pytest.mark.parametrize("name", ["ilm-in-first", "ilm-in-first-standardised"])
def test_the_first_norm_alone_is_converted(name: str) -> None:
    images = small_images()
    built = ARMS[name].build(small_network(), prepared_for(ARMS[name], images)(images.pixels))
    first, second = built.get_submodule("1"), built.get_submodule("4")
    assert isinstance(first, ILMNorm)
    assert (first.num_groups, first.restore_weight) == (16, None)
    assert type(second) is nn.BatchNorm2d


def test_the_wide_meta_network_is_wider() -> None:
    images = small_images()
    names = ("ilm-gn-wide-adamw-fast", "ilm-gn-adamw-fast")
    wide, usual = (ARMS[name].build(small_network(), images.pixels).get_submodule("1") for name in names)
    assert isinstance(wide, ILMNorm)
    assert isinstance(usual, ILMNorm)
    assert (wide.key_group_size, wide.encoder.shape) == (4, (4, 4))
    assert (usual.key_group_size, usual.encoder.shape) == (16, (2, 1))


def test_frozen_and_trained_statistics() -> None:
    def statistics(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        trained = train(ARMS[name], Settings(0.01), small_network(), small_images(), 3, 1, seed=0)
        start, end = (network.get_submodule("1").running_mean for network in (trained.start, trained.network))
        assert isinstance(start, torch.Tensor)
        assert isinstance(end, torch.Tensor)
        return start, end

    assert torch.equal(*statistics(FROZEN))
    assert not torch.equal(*statistics("train-bn"))
    reestimated = statistics("frozen-bn-reestimated")
    assert torch.equal(*reestimated)
    assert not torch.equal(reestimated[0], statistics(FROZEN)[0])


def test_standardised_arms_do_not_see_light_and_contrast() -> None:
    images = small_images()
    to_one = prepared_for(ARMS["frozen-bn-unit-adamw-fast"], images)(images.pixels)
    assert torch.allclose(to_one.std((1, 2, 3), correction=0), torch.ones(12), atol=1e-3)
    prepare = prepared_for(ARMS["frozen-bn-standardised"], images)
    x = images.pixels // 2
    # halving bytes is a change of contrast in normalised units, up to the channels' own means
    grey = x[:, :1].expand(-1, 3, -1, -1)
    whole, half = prepare(grey * 2), prepare(grey)
    assert torch.allclose(whole.mean((1, 2, 3)), half.mean((1, 2, 3)), atol=1e-5)
    assert torch.allclose(whole.std((1, 2, 3)), half.std((1, 2, 3)), atol=1e-3)


def test_distillation_and_frozen_backbone_change_the_result() -> None:
    images, source = small_images(), small_network()
    ends = [
        train(arm, Settings(0.01, distill), source, images, 3, 1, seed=0).network.get_parameter("0.weight")
        for arm, distill in (
            (ARMS["ilm-gn"], 0.5),
            (ARMS["ilm-gn"], 0.0),
            (ARMS["ilm-gn-freeze"], 0.0),
            (Arm("", ARMS["ilm-gn"].build, freeze_share=0.9), 0.0),
        )
    ]
    assert len({end.sum().item() for end in ends}) == len(ends)
    moved = [(end - source.get_parameter("0.weight")).norm().item() for end in ends]
    assert moved[-1] == 0 < moved[2]  # six steps, all of them before nine tenths of the run


def test_training_takes_whole_batches() -> None:
    with pytest.raises(ILMConvertError, match="1 training images"):
        train(ARMS[FROZEN], Settings(0.01), small_network(), small_images(BATCH_SIZE - 1), 3, 1, seed=0)


def test_a_clip_below_the_gradient_sets_the_length_of_the_first_step() -> None:
    images, source = small_images(2), small_network()

    def moved(rate: float, clip: float) -> float:
        arm = Arm("", ARMS["ilm-gn"].build, recipe={"weight_decay": 0.0, "head_lr_scale": 1.0})
        trained = train(arm, Settings(rate, 0.0, 1.0), source, images, 3, 1, seed=0, clip=clip)
        assert trained.gradient > clip
        pairs = zip(trained.start.parameters(), trained.network.parameters(), strict=True)
        return math.sqrt(sum((b - a).square().sum().item() for a, b in pairs))

    expected = 1.9 * 2e-4  # the first step of Nesterov's momentum 0.9 is 1.9 times the gradient
    assert moved(0.02, 0.01) == pytest.approx(expected, rel=0.05)
    assert moved(0.002, 0.1) == pytest.approx(expected, rel=0.05)


def test_movement_of_a_network_that_did_not_move_is_nothing_and_of_one_that_did_is_seen() -> None:
    images, source = small_images(), small_network()
    trained = train(ARMS["ilm-gn"], Settings(0.01), source, images, 3, 1, seed=0)
    still = movement(replace(trained, network=trained.start), images)
    assert still == {"affine": 0.0, "restore": 0.0, "gate": 0.0, "offset": 0.0, "meta": 0.0}
    layers = [m for m in trained.network.modules() if isinstance(m, ILMNorm)]
    for layer in layers:
        nn.init.constant_(layer.weight_decoder, -99.0)  # the scale falls by a half for one image as for another
        nn.init.normal_(layer.bias_decoder, std=9.0)
        assert layer.restore_weight is not None
        assert layer.weight is not None
        nn.init.zeros_(layer.restore_weight)
        nn.init.constant_(layer.weight, 0.5)
    moved = movement(trained, images)
    assert min(moved[key] for key in ("affine", "restore", "gate", "offset")) > 0
    assert moved["meta"] > 0
