"""torchvision's detectors: whole and backbone alone, BatchNorm and FrozenBatchNorm2d, and its reference scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from ilmconvert import convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate, norms

IMAGES = [torch.rand(3, 80, 100, generator=torch.Generator().manual_seed(i)) for i in range(2)]
TARGETS = [{"boxes": torch.tensor([[5.0, 5, 40, 50], [20, 10, 60, 60]]), "labels": torch.tensor([1, 2])}] * 2
ROOT = Path(__file__).resolve().parent.parent.parent


def heads(model: nn.Module) -> list[Tensor]:
    """What the pyramid and the dense heads compute, before anything is sorted or suppressed."""

    def run(images: list[Tensor]) -> list[Tensor]:
        batch, _ = model.transform(images)
        levels = list(model.backbone(batch.tensors).values())
        found = model.rpn.head(levels) if hasattr(model, "rpn") else model.head(levels).values()
        return [*levels, *(t for part in found for t in (part if isinstance(part, list) else [part]))]

    model.eval()
    with torch.no_grad():
        return run(IMAGES)


@pytest.mark.slow  # examples/detection_batch_1.py runs everywhere
def test_page() -> None:
    torch.manual_seed(0)
    page = Page("torchvision_detection")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    model = page.run_next()["model"]
    assert_same(heads(model), heads(source))
    for got, expected in zip(evaluate(model, IMAGES), evaluate(source, IMAGES), strict=True):
        assert_same(got["scores"], expected["scores"])
    assert not any(p.requires_grad for norm in norms(model) for p in norm.parameters())
    names = page.run_rest()
    assert set(names["loss_dict"]) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert [set(found) for found in names["detections"]] == [{"boxes", "labels", "scores"}] * 2
    stage, start = names["model"].backbone.body["layer4"], convert(source).backbone.body["layer4"]
    assert_norms_learnt(stage, start)


def test_backbone_alone() -> None:
    source = randomize_norms(Page("torchvision_detection").run_next()["source"], scale=0.5)
    model = convert(source, include="backbone.*")
    assert len(list(norms(model))) == len(list(norms(model.backbone))) == 20
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert_same(heads(model), heads(source))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        detection.fasterrcnn_resnet50_fpn,
        detection.fasterrcnn_resnet50_fpn_v2,
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        detection.retinanet_resnet50_fpn,
        detection.retinanet_resnet50_fpn_v2,
        detection.fcos_resnet50_fpn,
        detection.maskrcnn_resnet50_fpn,
    ],
    ids=lambda build: build.__name__,
)
def test_detectors_convert_and_train(build: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    source = build(weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=128)
    model = convert(randomize_norms(source, scale=0.3))
    assert_same(heads(model), heads(source))
    targets = [{**target, "masks": torch.ones(2, 80, 100, dtype=torch.uint8)} for target in TARGETS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)  # gradients fade over so many random layers
    losses = sum(model.train()(IMAGES, targets).values())
    losses.backward()
    optimizer.step()
    assert losses.isfinite()
    assert_norms_learnt(model.backbone, convert(source.backbone))


PROGRAM = """
import inspect, json
import engine, torch, utils
from torchvision.models.detection import retinanet_resnet50_fpn
from ilmconvert import ILMNorm, convert
from tests.helpers import randomize_norms

# Older references take image_id for a tensor, newer ones for a number.
number = torch.tensor if '["image_id"].item()' in inspect.getsource(engine) else int

class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        image, left = torch.full((3, 96, 96), 0.2), 10 + 12 * index
        image[:, left : left + 30, left : left + 30] = 0.9
        box = torch.tensor([[left, left, left + 30, left + 30]], dtype=torch.float)
        return image, {"boxes": box, "labels": torch.tensor([1]), "image_id": number(index),
                         "area": torch.tensor([900.0]), "iscrowd": torch.tensor([0])}

torch.manual_seed(0)
source = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=96, max_size=96)
source.score_thresh = 0.0  # a network that knows nothing has the best hundred of its guesses judged
model = convert(randomize_norms(source, scale=0.3))
loader = torch.utils.data.DataLoader(Squares(), batch_size=1, collate_fn=utils.collate_fn)
cpu = torch.device("cpu")
norms = [module for module in model.modules() if isinstance(module, ILMNorm)]
stats = [list(engine.evaluate(m, loader, cpu).coco_eval["bbox"].stats) for m in (source, model)]
before = [norm.weight.detach().clone() for norm in norms]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
engine.train_one_epoch(model, optimizer, loader, cpu, 0, 1)
stats.append(list(engine.evaluate(model, loader, cpu).coco_eval["bbox"].stats))
moved = [not torch.equal(norm.weight, start) for norm, start in zip(norms, before)]
json.dump({"stats": stats, "moved": moved}, open("result.json", "w"))
"""


@pytest.mark.slow
def test_reference_scripts(tmp_path: Path) -> None:
    """train_one_epoch and evaluate of torchvision's references, as they are, with pycocotools."""
    pytest.importorskip("pycocotools", reason="pip install '.[integrations]'")
    references = os.environ.get("ILMCONVERT_TORCHVISION_REFERENCES")
    if not references:
        pytest.skip("ILMCONVERT_TORCHVISION_REFERENCES names no references/detection of a torchvision checkout")
    path = os.pathsep.join([str(Path(references).resolve()), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    source, converted, trained = result["stats"]
    assert max(source) > 0
    assert converted == pytest.approx(source, abs=1e-6)
    assert trained != converted
    assert len(result["moved"]) == 53
    assert all(result["moved"])
