"""Whatever takes a model takes one that is on an accelerator; of conversions themselves see tests/surgery."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from ilmconvert import apply_delta, calibrate_bound, convert, load, load_weights, save, save_delta
from ilmconvert import save_pretrained as save_folder
from ilmconvert.calibration import calibrate, update_references
from ilmconvert.calibration.collapse import collapse
from ilmconvert.data.example_inputs import example_inputs
from ilmconvert.data.transforms import unit_images
from ilmconvert.errors import FineTuneError
from ilmconvert.evaluation import fidelity, output_error, reconstruct_source
from ilmconvert.evaluation.accuracy import evaluate
from ilmconvert.evaluation.robustness import StandardizedInput, all_conditions, compare_networks, networks
from ilmconvert.evaluation.verify.initial_values import differing_initial_values
from ilmconvert.evaluation.verify.source_model import differing_tensors
from ilmconvert.export.fold import fold
from ilmconvert.export.inference_form import inference_form
from ilmconvert.finetune import Recipe, find_batch_size, get_recipe
from ilmconvert.finetune.learner import Job, Learner
from ilmconvert.finetune.meter import Meter
from ilmconvert.finetune.networks import replace_head, start
from ilmconvert.nn import functional, ilm_norm
from ilmconvert.testing import randomize_norms
from ilmconvert.testing.build_models import targets
from tests.finetune.finetune_jobs import bars
from tests.helpers import TOLERANCE, relative_error, source_network
from tests.pretend_device import DEVICE, awake, moved, pretend_device, same_there, small_network, step, without_float64

SOURCE = small_network()
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS, SIZE = torch.arange(4), (3, 32, 32)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module", params=[contextlib.nullcontext, without_float64])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with pretend_device() as there, request.param():
        yield there


def is_there(model: nn.Module) -> nn.Module:
    """``model``, all of which is on the device."""
    assert {t.device for t in model.state_dict().values()} == {DEVICE}
    return model


def test_a_model_without_a_head_stays_there() -> None:
    model = moved(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))
    with pytest.raises(FineTuneError, match=r"head|classifier"):
        replace_head(model, 5, seed=0)
    is_there(model)


def test_files_there(tmp_path: Path) -> None:
    source = source_network()
    converted = convert(source)
    ours, theirs = (save(m, tmp_path / f"{i}.safetensors") for i, m in enumerate((moved(converted), converted)))
    assert ours.read_bytes() == theirs.read_bytes()
    for where in (DEVICE, "lazy"):
        same_there(load(ours, device=where), converted)
    same_there(load(ours, into=moved(source), device=DEVICE), converted)
    assert {t.device for t in load(ours, into=moved(source)).state_dict().values()} == {CPU}
    state = tmp_path / "weights.pth"
    torch.save(source.state_dict(), state)
    model = moved(timm.create_model("test_resnet"))
    load_weights(model, state)
    same_there(model, source)
    save_folder(load(ours, device=DEVICE), tmp_path / "folder")


def test_ties_and_deltas_there(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.Linear(4, 4), nn.Linear(4, 4))
    base[3].weight = base[2].weight
    converted, there = convert(randomize_norms(base.eval())), moved(base)
    file = save(convert(there), tmp_path / "tied.safetensors")
    again = load(file, into=moved(base), device=DEVICE)
    assert again[3].weight is again[2].weight
    same_there(again, converted)
    for one in (base, there):
        delta = save_delta(convert(there), tmp_path / "delta.safetensors", base=one)
        same_there(apply_delta(one, delta, device=DEVICE), converted)
    same_there(apply_delta(there, delta), converted)
    assert {t.device for t in apply_delta(there, delta, device="cpu").state_dict().values()} == {CPU}


@pytest.mark.parametrize(("to", "where"), [("ilm_gn", DEVICE), ("gn", CPU)], ids=str)
def test_calibrated_there(to: str, where: torch.device) -> None:
    batches = [part.to(where) for part in (IMAGES, IMAGES + 1, 2 * IMAGES)]
    model = convert(moved(SOURCE), to, init="moments")
    assert differing_initial_values(moved(SOURCE), model) == []
    assert calibrate(model, batches, source=moved(SOURCE)).kept != "start"
    is_there(collapse(is_there(model), batches, tolerance=1e9).model) if to == "ilm_gn" else is_there(model)


@pytest.mark.parametrize("where", [CPU, DEVICE], ids=["images on the CPU", "images there"])
def test_bounded_and_referred_there(where: torch.device) -> None:
    batches = [part.to(where) for part in (IMAGES, IMAGES + 1, 2 * IMAGES)]
    model, x = convert(moved(SOURCE)), IMAGES.to(DEVICE)
    before = model(x)
    assert update_references(model, batches)
    assert relative_error(is_there(model)(x), before) <= TOLERANCE[torch.float32]
    assert calibrate_bound(model, batches)
    step(model, x)


@pytest.mark.parametrize("settings", [{}, {"restore_bound": 2.0}, {"to": "ilm_in"}, {"init": "moments"}], ids=str)
def test_the_forms_of_a_layer_there(settings: dict[str, Any]) -> None:
    converted = convert(SOURCE, **settings)
    there, x = moved(converted), IMAGES.to(DEVICE)
    expected = converted(IMAGES)
    assert relative_error(there(x), expected) <= TOLERANCE[torch.float32]
    assert relative_error(is_there(fold(there))(x), expected) <= TOLERANCE[torch.float32]
    step(copy.deepcopy(there), x.contiguous(memory_format=torch.channels_last))
    trained = awake(there, 0.1)
    for form in (fold, inference_form):
        assert relative_error(is_there(form(trained))(x), trained(x)) <= TOLERANCE[torch.float32]


def test_a_function_without_parameters_is_exported_there(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, 4, 4)
    expected = ilm_norm(x, None, None, num_groups=2)
    monkeypatch.setattr(functional, "is_exported", lambda: True)
    assert relative_error(ilm_norm(x.to(DEVICE), None, None, num_groups=2), expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("places", [(DEVICE, DEVICE), (CPU, DEVICE), (DEVICE, CPU)], ids=str)
def test_compared_there(places: tuple[torch.device, torch.device]) -> None:
    source, converted = (
        moved(m) if where == DEVICE else m for m, where in zip((SOURCE, convert(SOURCE)), places, strict=True)
    )
    for x, labels in ((IMAGES, LABELS), (IMAGES.to(DEVICE), LABELS.to(DEVICE))):
        found = fidelity(source, converted, [(x, labels)], layers="all")
        assert found.relative_error <= TOLERANCE[torch.float32]
        assert len(found.thumbnails) == found.labelled == len(x)
    assert differing_tensors(source, converted) == []
    if places == (DEVICE, DEVICE):
        assert output_error(source, converted, example_inputs(converted, size=SIZE)).top1_agreement == 1.0
        assert relative_error(is_there(reconstruct_source(converted))(x), source(x)) <= TOLERANCE[torch.float32]
    ours, theirs = copy.deepcopy(converted), copy.deepcopy(source)
    assert evaluate(ours, [(IMAGES, LABELS)], against=theirs, device=DEVICE).agreement == 1.0


def test_detectors_on_two_devices_are_compared() -> None:
    torch.manual_seed(0)
    source = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    converted = convert(randomize_norms(source.eval()))
    for one, other in ((source, moved(converted)), (moved(source), converted)):
        found = fidelity(one, other, [([torch.rand(3, 64, 64)],)], cost=False)
        assert found.relative_error <= 10 * TOLERANCE[torch.float32]


def test_targets_are_where_their_images_are() -> None:
    heads = SimpleNamespace(mask_predictor=nn.Identity(), keypoint_predictor=nn.Identity())
    for target in targets([torch.rand(3, 8, 8, device=DEVICE)], SimpleNamespace(roi_heads=heads)):
        assert {t.device for t in target.values()} == {DEVICE}


def test_corrupted_images_for_a_network_there() -> None:
    images, normalize = unit_images(SOURCE, bars(), at_most=3, input_size=32)
    network, conditions = convert(SOURCE, restore_bound=2.0), all_conditions((3,))[::5]
    for each in (images, [image.to(DEVICE) for image in images]):
        found, expected = (
            [*compare_networks(networks(m, normalize, own), own, normalize, conditions)]
            for m, own in ((moved(network), each), (network, images))
        )
        assert [a.agreement for a in found] == [a.agreement for a in expected]
    assert StandardizedInput(moved(network))(IMAGES.to(DEVICE)).device == DEVICE


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("anneal", {"clip_grad": 1.0}),
        ("full", {"mixup": 0.4, "ema_decay": 0.9}),
        ("full", {"smoothing": 0.1, "channels_last": True}),
        ("full", {"distill": 0.5}),
    ],
    ids=str,
)
def test_learns_there(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())  # timm's average asks for one there
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator.state, "device", DEVICE)
    recipe = replace(get_recipe(name), epochs=2, amp="no", **settings)
    begun = start(moved(SOURCE), recipe, num_classes=4)
    teacher = begun.source if recipe.distill else None
    job = Job(is_there(begun.network), recipe, True, teacher, compare_features=teacher is not None)
    learner, meter = Learner(job, accelerator, steps_per_epoch=2), Meter(accelerator)
    learner.train()
    for batch in range(4):
        loss, logits, _ = learner.learn(IMAGES.to(DEVICE), LABELS.to(DEVICE), batch=batch, step=batch)
        meter.add(loss, logits, LABELS.to(DEVICE))
    meter.restore(meter.local())
    assert meter.local()[0][0] > 0
    assert {t.device for t in learner.kept_network(4).state_dict().values()} == {CPU}


def test_the_largest_batch_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    assert find_batch_size(SOURCE, Recipe(), SIZE, device=DEVICE, largest=4) == 4
