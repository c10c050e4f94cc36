"""A default device, as ``torch.set_default_device`` sets one, is none of the business of models elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ilmconvert import convert, undo
from ilmconvert.calibration import calibrate
from ilmconvert.calibration.collapse import collapse
from ilmconvert.data.corruptions import CORRUPTIONS, corrupt
from ilmconvert.data.dataset import Augmented, EpochSampler, ImageDataset
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.data.folders import split
from ilmconvert.data.transforms import unit_images
from ilmconvert.evaluation import fidelity
from ilmconvert.export.fold import fold
from ilmconvert.export.inference_form import inference_form
from ilmconvert.surgery.group_norm_baseline import group_norm_baseline
from ilmconvert.testing import check_conversion, randomize_norms
from tests.finetune.finetune_jobs import bars
from tests.pretend_device import DEVICE, awake, moved, pretend_device, small_network, step

CPU, SIZE = torch.device("cpu"), (3, 32, 32)


@pytest.fixture(autouse=True, scope="module")
def device() -> Iterator[torch.device]:
    with pretend_device() as there:
        yield there


def calibrate_without_affine(model: nn.Module, x: Tensor) -> None:
    """Of a norm that has neither gamma nor beta."""
    norm = nn.BatchNorm2d(16, affine=False)
    source = randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.Flatten())).to(x.device).eval()
    calibrate(convert(source, "gn", init="moments"), [x, x], source=source)


def divide(model: nn.Module, x: Tensor) -> None:
    """Images whose labels are a tensor, in two parts and in random order."""
    images = TensorDataset(torch.zeros(10, 3, 8, 8, device="cpu"))
    images.targets = torch.arange(10, device="cpu") % 2
    train, val = split(ImageDataset(images), 0.2, 0, None)
    assert (len(train), len(val)) == (8, 2)
    assert sorted(i for _, i in EpochSampler(Augmented(train, None, 0))) == list(range(8))


CALLS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "randomize_norms": lambda m, x: randomize_norms(m),
    "convert": lambda m, x: convert(m, restore_bound=2.0, example=example_inputs(m, size=SIZE)[0]),
    "undo": lambda m, x: undo(convert(m)),
    "train": lambda m, x: step(convert(m), x),
    "train, channels last": lambda m, x: step(convert(m), x.contiguous(memory_format=torch.channels_last)),
    "forms": lambda m, x: (fold(convert(m))(x), inference_form(awake(convert(m)))(x), group_norm_baseline(m)(x)),
    "calibrate": lambda m, x: calibrate(convert(m, "gn", init="moments"), [x, x], source=m),
    "calibrate, without affine": calibrate_without_affine,
    "collapse": lambda m, x: collapse(convert(m), [x], tolerance=1e9),
    "fidelity": lambda m, x: fidelity(m, convert(m), [x]),
    "corrupt": lambda m, x: [corrupt(x[0].clamp(0, 1), name, 3) for name in CORRUPTIONS],
    "images": lambda m, x: unit_images(m, bars(), at_most=2, input_size=32),
    "divide": divide,
    "nudge": lambda m, x: check_conversion._nudged(x, torch.Generator()),
}


@pytest.mark.parametrize("where", [CPU, DEVICE], ids=["model on the CPU", "model there"])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_made_is_where_the_model_is(name: str, where: torch.device) -> None:
    source, x = small_network(), torch.randn(4, *SIZE)
    model = moved(source) if where == DEVICE else copy.deepcopy(source)
    with torch.device(DEVICE):
        CALLS[name](model, x.to(where))
