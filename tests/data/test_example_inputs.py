"""Probe batches and the comparison of two models on them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.errors import ModelError
from ilmconvert.evaluation import OutputDifference, output_error
from ilmconvert.models.create import ModelSpec, create_model
from ilmconvert.models.norm_counts import skeleton
from ilmconvert.surgery.outputs import outputs


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("test_resnet", {}, (2, 3, 160, 160)),
        ("test_vit", {"img_size": 96, "in_chans": 1}, (2, 1, 96, 96)),
        ("torchvision/mobilenet_v3_small", {}, (2, 3, 224, 224)),
        ("torchvision/lraspp_mobilenet_v3_large", {}, (2, 3, 224, 224)),
    ],
)
def test_models_take_their_example_inputs(name: str, args: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = create_model(name, weights="none", **args)
    batch = example_inputs(model)
    assert [tuple(x.shape) for x in batch] == [shape]
    with torch.no_grad():
        results = outputs(model(*batch))
    assert results
    assert all(t.shape[0] == 2 for t in results)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("inception_v3", (3, 299, 299)),
        ("r3d_18", (3, 16, 112, 112)),
        ("swin3d_t", (3, 16, 224, 224)),
        ("vit_b_32", (3, 224, 224)),
    ],
)
def test_sizes_that_are_not_the_usual_ones(name: str, shape: tuple[int, ...]) -> None:
    (x,) = example_inputs(skeleton(ModelSpec("torchvision", name)), batch_size=1)
    assert tuple(x.shape) == (1, *shape)


def test_optical_flow_takes_two_images() -> None:
    first, second = example_inputs(skeleton(ModelSpec("torchvision", "raft_small")))
    assert first.shape == second.shape == (2, 3, 128, 160)


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return create_model("torchvision/ssdlite320_mobilenet_v3_large", weights="none")


def test_detection_takes_lists(detector: nn.Module) -> None:
    (images,) = example_inputs(detector, batch_size=3, size=(64, 96))
    assert [tuple(image.shape) for image in images] == [(3, 64, 96)] * 3
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


def test_example_inputs_are_reproducible_and_leaves_the_random_state() -> None:
    model = create_model("test_resnet", weights="none").double()
    state = torch.get_rng_state()
    first, again, other = (example_inputs(model, size=32, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float64


def test_unknown_models_need_a_shape() -> None:
    model = nn.Linear(3, 4)
    with pytest.raises(ModelError, match=r"size=\(3, 224, 224\)"):
        example_inputs(model)
    assert example_inputs(nn.Conv3d(1, 2, 1), size=(1, 4, 5, 6))[0].shape == (2, 1, 4, 5, 6)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


def test_outputs_finds_every_tensor() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    nested = {"a": [one, (two, None)], "b": Pair(three, one), "c": Result(two), "d": "text"}
    assert [t.numel() for t in outputs(nested)] == [1, 2, 3, 1, 2]


class Constant(nn.Module):
    def __init__(self, value: Tensor | dict[str, Tensor]) -> None:
        super().__init__()
        self.value = value
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        self.modes.append(self.training)
        return self.value


X = (torch.zeros(2, 1),)
TEN = torch.full((1,), 10.0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (torch.tensor([[4.0, -8.0], [2.0, 1.0]]), torch.tensor([[5.0, -8.0], [0.0, 1.0]]), (2.0, 0.25, 0.5)),
        (torch.zeros(2, 3), torch.zeros(2, 3), (0.0, 0.0, 1.0)),
        (torch.zeros(2, 3), torch.ones(2, 3), (1.0, math.inf, 1.0)),
        (torch.ones(2, 3), torch.ones(2, 4), (math.inf, math.inf, None)),
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4), (0.0, 0.0, None)),
        ({"x": TEN, "y": torch.zeros(5)}, {"x": TEN, "y": torch.ones(5)}, (1.0, 0.1, None)),
    ],
)
def test_output_error(a: Any, b: Any, expected: tuple[float, float, float | None]) -> None:
    assert output_error(Constant(a), Constant(b), X) == OutputDifference(*expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_never_pass_for_equal(bad: float) -> None:
    found = output_error(Constant(torch.ones(2, 3)), Constant(torch.tensor([[1.0, bad, 1.0]] * 2)), X)
    assert not found.relative_error <= 1e-3
    both = output_error(Constant(torch.full((2, 3), bad)), Constant(torch.full((2, 3), bad)), X)
    assert not both.relative_error <= 1e-3


def test_training_flags_are_restored() -> None:
    model = nn.Sequential(Constant(torch.ones(2, 3)), nn.Dropout())
    model.train()
    model[1].eval()
    output_error(model, model, X)
    assert [m.training for m in model] == [True, False]
    assert model[0].modes == [False, False]


def test_detection_is_compared_before_the_selection_of_boxes(detector: nn.Module) -> None:
    model = detector
    images = example_inputs(model, batch_size=1)
    assert output_error(model, copy.deepcopy(model), images).relative_error == 0
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.head.parameters()).add_(1e-2)
    assert output_error(model, changed, images).relative_error > 1e-6
    assert not [m for m in model.modules() if m._forward_hooks]
