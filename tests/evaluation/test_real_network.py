"""EfficientNet-Lite0 with real ImageNet weights: the conversion on photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ilmconvert
from ilmconvert._constants import exact_targets
from ilmconvert.data.sample_photographs import Photograph, class_names, load_lite0, preprocess, sample_photographs
from ilmconvert.evaluation.demo import group_norm_baseline, logits_of
from tests.helpers import TOLERANCE, relative_error


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return load_lite0()


@pytest.fixture(scope="module")
def images() -> list[Photograph]:
    return sample_photographs()


@pytest.fixture(scope="module")
def batch(source: nn.Module, images: list[Photograph]) -> Tensor:
    return preprocess(source, images)


@pytest.fixture(scope="module")
def expected(source: nn.Module, batch: Tensor) -> Tensor:
    return logits_of(source, batch)


def agreement(logits: Tensor, expected: Tensor) -> float:
    return (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()


@pytest.mark.parametrize(
    ("image", "wanted"),
    [("cat", "cat"), ("coffee", "espresso"), ("motorcycle", "moped"), ("cameraman", "tripod")],
)
def test_source_recognises_what_is_in_the_photograph(
    image: str, wanted: str, images: list[Photograph], expected: Tensor
) -> None:
    seen = dict(zip((one.name for one in images), class_names(expected), strict=True))
    assert wanted in seen[image]


@pytest.mark.parametrize("to", exact_targets())
def test_identity_predicts_what_the_source_predicted_and_survives_a_checkpoint(
    to: str, source: nn.Module, batch: Tensor, expected: Tensor, tmp_path: Path
) -> None:
    converted = ilmconvert.convert(source, to)
    logits = logits_of(converted, batch)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    assert relative_error(logits, expected) <= TOLERANCE[torch.float32]

    path = tmp_path / "lite0.safetensors"
    ilmconvert.save(converted, path)
    few = batch[::12]
    assert torch.equal(logits_of(ilmconvert.load(path), few), logits_of(converted, few))


@pytest.mark.parametrize("to", exact_targets())
def test_a_conversion_is_undone(to: str, source: nn.Module, batch: Tensor, expected: Tensor) -> None:
    converted = ilmconvert.convert(source, to)
    plain = ilmconvert.undo(converted).eval()
    assert [type(m) for m in plain.modules()] == [type(m) for m in source.modules()]
    few = batch[::6]
    assert relative_error(logits_of(plain, few), expected[::6]) <= 10 * TOLERANCE[torch.float32]
    again = ilmconvert.undo(converted, source)
    assert all(torch.equal(t, source.state_dict()[name]) for name, t in again.state_dict().items())


def test_conversion_leaves_the_source_as_it_was(source: nn.Module, batch: Tensor, expected: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    converted = ilmconvert.convert(source, "ilm_gn")
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    after = source.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_every_batch_norm_is_converted(source: nn.Module) -> None:
    converted = ilmconvert.convert(source, "ilm_gn")
    norms = [module for module in source.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert sum(isinstance(module, ilmconvert.ILMNorm) for module in converted.modules()) == 49


def test_moments_start_nearer_the_source_than_copied_gamma_and_beta(
    source: nn.Module, batch: Tensor, expected: Tensor
) -> None:
    moments = logits_of(ilmconvert.convert(source, "ilm_ln", init="moments"), batch)
    copied = logits_of(group_norm_baseline(source, num_groups=1, copy_affine=True), batch)
    assert agreement(moments, expected) > agreement(copied, expected) + 0.2
