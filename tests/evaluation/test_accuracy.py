"""Evaluation: its numbers against other libraries' and by hand, two processes, and the command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ilmconvert import convert, save
from ilmconvert.cli import main
from ilmconvert.errors import EvaluationError, ILMConvertError
from ilmconvert.evaluation.accuracy import Evaluation, evaluate
from ilmconvert.evaluation.metrics import ClassificationMetrics, paired_difference, wilson
from ilmconvert.models.create import create_model
from tests.helpers import randomize_norms

ROOT = Path(__file__).resolve().parent.parent.parent
CLASSES = 12


class Table(nn.Module):
    """A model whose images are numbers of rows of a table of logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[x]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(101, CLASSES, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def labels(logits: Tensor) -> Tensor:
    """Right for about half of the images."""
    random = torch.randint(CLASSES, (101,), generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(101) % 2 == 0, logits.argmax(1), random)


def items(labels: Tensor) -> TensorDataset:
    return TensorDataset(torch.arange(len(labels)), labels)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By the definition: 15 bins (low, high] of the confidence."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for low in np.linspace(0, 1, 16)[:-1]:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_numbers_are_those_of_other_libraries(logits: Tensor, labels: Tensor) -> None:
    result = evaluate(Table(logits), items(labels), batch_size=10)
    y, probabilities = labels.numpy(), logits.double().softmax(1).numpy()
    hits = int((logits.argmax(1) == labels).sum())
    assert (result.count, result.labelled, result.not_finite) == (101, 101, 0)
    assert result.top1 == pytest.approx(hits / 101)
    assert result.top5 == pytest.approx(top_k_accuracy_score(y, probabilities, k=5, labels=range(CLASSES)))
    assert result.loss == pytest.approx(log_loss(y, probabilities, labels=range(CLASSES)), rel=1e-6)
    assert result.calibration_error == pytest.approx(calibration_error(probabilities, y), rel=1e-5)
    assert result.top1_interval == pytest.approx(tuple(binomtest(hits, 101).proportion_ci(method="wilson")), rel=1e-9)
    assert result.images_per_second is not None
    assert result.images_per_second > 0
    assert result.agreement is None
    assert result.difference is None


def test_against_another_model(logits: Tensor, labels: Tensor) -> None:
    other = logits.clone()
    other[:30] = other[:30].roll(1, dims=1)
    result = evaluate(Table(logits), items(labels), against=Table(other), batch_size=7)
    mine, others = logits.argmax(1) == labels, other.argmax(1) == labels
    assert result.agreement == pytest.approx(71 / 101)
    assert result.agreement_interval == pytest.approx(wilson(71, 101))
    assert result.against_top1 == pytest.approx(others.float().mean().item())
    assert result.difference == pytest.approx((mine.float() - others.float()).mean().item(), abs=1e-6)
    gained, lost = int((mine & ~others).sum()), int((others & ~mine).sum())
    assert result.difference_interval == pytest.approx(paired_difference(gained, lost, 101))
    assert gained > 0
    same = evaluate(Table(other), items(labels), batch_size=101)
    assert (same.top1, same.loss) == (result.against_top1, pytest.approx(float(same.loss or 0)))


@pytest.mark.parametrize(("p_gain", "p_loss"), [(0.1, 0.1), (0.02, 0.1), (0.0, 0.05)])
def test_paired_interval_holds_the_truth_about_95_times_in_100(p_gain: float, p_loss: float) -> None:
    draws = np.random.default_rng(0).multinomial(200, [p_gain, p_loss, 1 - p_gain - p_loss], size=2000)
    intervals = [paired_difference(int(gained), int(lost), 200) for gained, lost, _ in draws]
    held = np.mean([low <= p_gain - p_loss <= high for low, high in intervals])
    assert 0.935 <= held <= 0.985


def test_images_without_labels(logits: Tensor, labels: Tensor) -> None:
    other = logits.roll(1, dims=1)
    none = evaluate(Table(logits), items(torch.full((101,), -1)), against=Table(other))
    assert (none.count, none.labelled, none.agreement) == (101, 0, 0.0)
    assert none.top1 is none.loss is none.calibration_error is none.difference is None
    some = torch.where(torch.arange(101) < 40, labels, -1)
    mixed = evaluate(Table(logits), items(some), batch_size=16)
    first = evaluate(Table(logits[:40]), items(labels[:40]))
    assert (mixed.count, mixed.labelled) == (101, 40)
    assert (mixed.top1, mixed.top5) == (first.top1, first.top5)
    assert mixed.loss == pytest.approx(first.loss)
    assert mixed.calibration_error == pytest.approx(first.calibration_error)


def test_logits_that_are_not_finite_are_wrong_and_agree_with_nothing(logits: Tensor) -> None:
    broken = logits.clone()
    broken[:10] = torch.nan
    broken[10:20, 3] = torch.inf
    result = evaluate(Table(broken), items(logits.argmax(1)), against=Table(broken))
    assert result.not_finite == 20
    assert result.top1 == result.agreement == pytest.approx(81 / 101)
    assert result.calibration_error is not None
    assert np.isfinite(result.calibration_error)
    assert result.loss is not None
    assert not np.isfinite(result.loss)
    gone = evaluate(Table(torch.full_like(logits, torch.nan)), items(logits.argmax(1)))
    assert (gone.top1, gone.top5, gone.calibration_error) == (0.0, 0.0, None)


def test_few_classes_have_no_top5() -> None:
    assert evaluate(Table(torch.eye(5)), items(torch.arange(5))).top5 is None
    assert evaluate(Table(torch.eye(6)), items(torch.arange(6))).top5 == 1.0


def test_model_is_left_as_it_was_and_runs_in_evaluation_mode() -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    model = nn.Sequential(Spy(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    evaluate(model, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))])
    assert seen == [(False, False)]
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_bf16_computes_in_bf16() -> None:
    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            types.append(result.dtype)
            return result

    types: list[torch.dtype] = []
    batch = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    result = evaluate(Spy(3, 2), [batch, batch], amp="bf16")
    assert types == [torch.bfloat16] * 2
    assert result.count == 8


def test_progress_tells_images_and_their_number(labels: Tensor, logits: Tensor) -> None:
    told: list[tuple[int, int | None]] = []
    evaluate(Table(logits), items(labels), batch_size=50, progress=lambda *state: told.append(state))
    assert told == [(50, 101), (100, 101), (101, 101)]
    told.clear()
    evaluate(Table(logits), [tuple(items(labels)[:50])], progress=lambda *state: told.append(state))
    assert told == [(50, None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": nn.Flatten(0)}, "not logits"),
        ({"model": nn.Linear(3, 1)}, "not logits"),
        ({"labels": torch.tensor([0, 3])}, "label 3 and the model classes 0 to 2"),
        ({"labels": torch.tensor([0, -2])}, "label -2"),
        ({"labels": torch.tensor([[0.5, 0.5, 0.0]] * 2)}, "one class number an image"),
        ({"against": nn.Linear(3, 4)}, "3 classes and the one to compare it with 4"),
        ({"amp": "fp16"}, "fp16 is for accelerators"),
        ({"amp": "int8"}, "unknown amp 'int8'; use one of no, bf16, fp16"),
        ({"data": []}, "no image"),
    ],
)
def test_refusals_say_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    labels = settings.pop("labels", torch.tensor([0, 1]))
    arguments = {"model": nn.Linear(3, 3), "data": [(torch.randn(2, 3), labels)], **settings}
    with pytest.raises(EvaluationError, match=message) as caught:
        evaluate(arguments.pop("model"), arguments.pop("data"), **arguments)
    assert "\n" not in str(caught.value)


def test_result_is_json(logits: Tensor, labels: Tensor) -> None:
    result = evaluate(Table(logits), items(labels), against=Table(logits))
    data = json.loads(json.dumps(result.to_dict()))
    assert data["top1_interval"] == list(result.top1_interval or ())
    assert data.keys() == Evaluation.__dataclass_fields__.keys()


TWO_PROCESSES = """
import json, sys, torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset
from ilmconvert.evaluation.accuracy import evaluate

logits, labels = torch.load(sys.argv[1])
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
assert accelerator.num_processes == 2
# each image is its own row of logits
loader = accelerator.prepare(DataLoader(TensorDataset(logits, labels), batch_size=8))
flipped = torch.nn.Flatten(), torch.nn.Linear(logits.shape[1], logits.shape[1], bias=False)
flipped[1].weight.data = torch.eye(logits.shape[1]).roll(1, 0)
result = evaluate(torch.nn.Identity(), loader, against=torch.nn.Sequential(*flipped), accelerator=accelerator)
print(json.dumps(result.to_dict()))
accelerator.end_training()
"""


def test_two_processes_count_every_image_once(logits: Tensor, labels: Tensor, tmp_path: Path) -> None:
    torch.save((logits, labels), tmp_path / "data.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "data.pt")],
            env={**os.environ, **common, "PYTHONPATH": str(ROOT), "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    results = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    expected = evaluate(Table(logits), items(labels), against=Table(logits.roll(1, 1))).to_dict()
    for result in results:
        for key in expected.keys() - {"images_per_second"}:
            assert result[key] == pytest.approx(expected[key], rel=1e-6), key
    assert results[0]["images_per_second"] == pytest.approx(results[1]["images_per_second"])


def test_metrics_does_not_depend_on_the_batches(logits: Tensor, labels: Tensor) -> None:
    whole, parts = ClassificationMetrics(), ClassificationMetrics()
    whole.add(logits, logits.flip(0), labels)
    for part in torch.arange(101).split(13):
        parts.add(logits[part], logits.flip(0)[part], labels[part])
    expected = whole.summary()
    assert parts.summary().keys() == expected.keys()
    for key, value in parts.summary().items():
        assert value == pytest.approx(expected[key], rel=1e-6), key


def test_missing_package_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.classification", None)
    batch = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ILMConvertError, match=r"pip install 'ilmconvert\[finetune\]'"):
        evaluate(nn.Identity(), [batch])


# The command


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise: train/ of 4, val/ of 10 images."""
    random = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 5)):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A converted network of two classes, and the weights of its source."""
    torch.manual_seed(0)
    source = randomize_norms(create_model("test_resnet", weights="none", num_classes=2))
    torch.save(source.state_dict(), tmp_path / "source.pth")
    return save(convert(source), tmp_path / "converted.safetensors")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, args), "--device", "cpu"])


def measured(*args: str | Path) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_command_compares_with_the_source(checkpoint: Path, images: Path) -> None:
    source = ("--against", "test_resnet", "--against-weights", checkpoint.parent / "source.pth")
    options = (*source, "--model-arg", "num_classes=2", "--input-size", "64", "--batch-size", "4")
    data = measured(checkpoint, "--data", images, *options)
    assert (data["count"], data["images"], data["agreement"], data["difference"]) == (10, "validation images", 1, 0)
    assert data["loss"] > 0
    table = run(checkpoint, "--data", images, *options)
    assert "same class as test_resnet" in " ".join(table.stdout.split())
    assert "100.00 %" in table.stdout


def test_command_measures_what_the_library_does(checkpoint: Path, images: Path) -> None:
    from timm.data import create_transform, resolve_model_data_config
    from torchvision.datasets import ImageFolder

    from ilmconvert import load

    model = load(checkpoint)
    config = {**resolve_model_data_config(model), "input_size": (3, 64, 64)}
    dataset = ImageFolder(str(images / "val"), create_transform(**config, is_training=False))
    expected = evaluate(model, DataLoader(dataset, 3))
    data = measured(checkpoint, "--data", images, "--input-size", "64")
    assert data["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert data["top1"] == expected.top1


def test_command_takes_a_run_folder_and_a_name(checkpoint: Path, images: Path) -> None:
    (checkpoint.parent / "run").mkdir()
    checkpoint.rename(checkpoint.parent / "run" / "best.safetensors")
    weights = ("--weights", checkpoint.parent / "source.pth", "--model-arg", "num_classes=2")
    data = measured("test_resnet", "--data", images, *weights, "--input-size", "64")
    run_folder = measured(checkpoint.parent / "run", "--data", images, "--input-size", "64")
    assert run_folder["loss"] == pytest.approx(data["loss"], rel=1e-4)


def test_command_on_one_folder_takes_all_images_or_a_share(checkpoint: Path, images: Path) -> None:
    data = measured(checkpoint, "--data", images / "val", "--input-size", "64")
    assert (data["count"], data["images"]) == (10, "all images")
    data = measured(checkpoint, "--data", images / "val", "--val-split", "0.4", "--input-size", "64")
    assert (data["count"], data["images"]) == (4, "validation images")


def test_command_on_unlabelled_images(checkpoint: Path, images: Path) -> None:
    flat = images / "val" / "a"
    data = measured(checkpoint, "--data", flat, "--against", checkpoint, "--input-size", "64")
    assert (data["count"], data["labelled"], data["agreement"], data["top1"]) == (5, 0, 1.0, None)
    result = run(checkpoint, "--data", flat)
    assert result.exit_code == 2
    assert "add --against" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["images", "--data", "images"], "images is a folder that holds no checkpoint"),
        (["none.safetensors", "--data", "images"], "none.safetensors doesn't exist"),
        (["converted.safetensors", "--data", "nowhere"], "nowhere"),
        (["test_resnet", "--weights", "none", "--model-arg", "num_classes=1", "--data", "images"], "not logits"),
        (["converted.safetensors"], "--data"),
    ],
)
def test_command_refuses_in_one_line(
    args: list[str], message: str, checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    result = run(*args)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1
    assert message in lines[0]
