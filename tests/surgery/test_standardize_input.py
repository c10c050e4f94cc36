"""A standardisation of each image in the network: what it computes, where it goes, and that nothing loses it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import ilmconvert
from ilmconvert import ConversionError, convert, info, load, save, standardize_input, undo
from ilmconvert.models.create import create_model
from ilmconvert.surgery.input_standardization import InputStandardization, input_standardization, standardize
from tests.cli.commands import run
from tests.helpers import randomize_norms

X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str = "test_efficientnet") -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(create_model(name, weights="none", num_classes=4)).eval()


def equal(a: nn.Module, b: nn.Module, x: Tensor = X) -> bool:
    with torch.no_grad():
        return torch.equal(a(x), b(x))


def test_standardised_images_are_those_of_the_definition() -> None:
    images = 5 * X.double() - 2
    found = standardize(images, 0.7)
    wanted = [(image - image.mean()) / image.std(correction=0) * 0.7 for image in images]
    torch.testing.assert_close(found, torch.stack(wanted))
    assert not standardize(torch.full((1, 3, 4, 4), 7.0), 0.7).any()
    assert standardize(X.half() * 1000, 0.7).dtype == torch.float16  # whose square is beyond the type
    torch.testing.assert_close(standardize(X.half() * 1000, 0.7).float(), standardize(X, 0.7), atol=2e-3, rtol=0)


@pytest.mark.parametrize("to", [None, "ilm_gn", "gn"])
def test_the_network_computes_what_it_does_with_standardised_images(to: str | None) -> None:
    source = network()
    plain = source if to is None else convert(source, to)
    own = copy.deepcopy(plain)
    assert standardize_input(own, [X, 2 * X]).layer == "conv_stem"
    std = float((1.5 * X.double().std((1, 2, 3), correction=0)).mean())
    assert input_standardization(own) == InputStandardization("conv_stem", pytest.approx(std))
    with torch.no_grad():
        assert torch.equal(own(X), plain(standardize(X, std)))
        torch.testing.assert_close(own(0.1 * X + 3), own(X), atol=1e-4, rtol=1e-4)
        features = [model.forward_features(x) for model, x in ((own, X), (plain, standardize(X, std)))]  # type: ignore[operator]
        assert torch.equal(*features)
    assert own.state_dict().keys() == plain.state_dict().keys()


def test_a_conversion_keeps_it() -> None:
    source = network()
    made = standardize_input(source, [X])
    for result in (convert(source), convert(copy.deepcopy(source), inplace=True), undo(convert(source))):
        assert input_standardization(result) == made
        with torch.no_grad():
            torch.testing.assert_close(result(X), source(X), atol=1e-4, rtol=1e-4)


def test_nothing_that_keeps_a_network_loses_it(tmp_path: Path) -> None:
    own = convert(network())
    made = standardize_input(own, [X], std=0.6)
    assert equal(copy.deepcopy(own), own)
    assert equal(pickle.loads(pickle.dumps(own)), own)
    loaded = load(save(own, tmp_path / "own.safetensors"))
    assert equal(loaded, own)
    assert info(loaded).standardized_input == made
    assert "each image standardised to 0.6 before conv_stem" in str(info(loaded))
    assert equal(load(ilmconvert.save_pretrained(own, tmp_path / "folder")), own)
    assert equal(timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval(), own)
    file = ilmconvert.save_delta(own, tmp_path / "delta.safetensors", base=network())
    assert equal(ilmconvert.apply_delta(network(), file), own)


def test_a_network_without_a_conversion_is_kept_for_it(tmp_path: Path) -> None:
    own = network()
    standardize_input(own, [X], std=0.6)
    assert equal(load(save(own, tmp_path / "own.safetensors")), own)
    ilmconvert.save_pretrained(own, tmp_path / "folder")
    assert equal(timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval(), own)
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "images standardised" in card
    assert "before `conv_stem`, to mean 0 and a standard\ndeviation of 0.6" in card
    assert "It standardises its images, so it computes something else than its source." in card
    assert "norm layers replaced" not in card


def test_a_feature_extractor_of_a_published_folder_has_it(tmp_path: Path) -> None:
    own = convert(network("test_resnet"))
    standardize_input(own, [X], std=0.6)
    ilmconvert.save_pretrained(own, tmp_path / "folder")
    extractor = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True, features_only=True).eval()
    with torch.no_grad():
        found, wanted = extractor(X), own.forward_intermediates(X, intermediates_only=True)  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(found[1:], wanted[1:], strict=True))


def test_loading_into_a_network_gives_it_what_the_file_has(tmp_path: Path) -> None:
    source = randomize_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).eval()
    plain, own = convert(source), convert(source)
    standardize_input(own, [X], std=0.6)
    files = [save(model, tmp_path / f"{i}.safetensors") for i, model in enumerate((plain, own))]
    target = copy.deepcopy(source)
    for file, model in (*zip(files, (plain, own), strict=True), (files[0], plain)):
        assert equal(load(file, into=target), model)


def test_it_is_replaced_and_a_failure_leaves_what_there_was() -> None:
    model = network()
    standardize_input(model, [X], std=0.6)
    made = standardize_input(model, [X], std=0.5)
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 1
    wrong = [([], None), ([X], 0.0), ([X], float("nan")), ([torch.ones_like(X)], None), ([X[:, :2]], None)]
    for batches, std in wrong:
        with pytest.raises(ConversionError):
            standardize_input(model, batches, std=std)
        assert input_standardization(model) == made


class Siamese(nn.Module):
    """Two layers read the images."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


class Residual(nn.Module):
    """The images are read by a layer and by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Random(nn.Module):
    """Gives other outputs each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x * next(_numbers)


_numbers = iter(range(1, 1000))


@pytest.mark.parametrize(("model", "place"), [(Siamese(), ""), (Residual(), ""), (nn.Sequential(Siamese()), "0")])
def test_the_place_is_the_block_that_holds_all_that_reads_the_images(model: nn.Module, place: str) -> None:
    plain = copy.deepcopy(model)
    assert standardize_input(model, [X], std=0.6).layer == place
    with torch.no_grad():
        assert torch.equal(model(X), plain(standardize(X, 0.6)))


def test_a_network_with_a_branched_stem_is_standardised_before_the_stem() -> None:
    model = timm.create_model("mobileone_s0").eval()
    assert standardize_input(model, [X], std=0.6).layer == "stem"


def test_a_network_that_does_something_else_each_time_is_refused() -> None:
    model = Random()
    with pytest.raises(ConversionError, match="other outputs for the same images each time"):
        standardize_input(model, [X])
    assert input_standardization(model) is None


def test_a_network_that_changes_its_images_first_is_standardised_as_a_whole() -> None:
    torch.manual_seed(0)
    model = torchvision.models.googlenet(weights=None, init_weights=False, transform_input=True, aux_logits=False)
    plain = copy.deepcopy(model.eval())
    assert standardize_input(model, [X], std=0.6) == InputStandardization("", 0.6)
    with torch.no_grad():
        assert torch.equal(model(X), plain(standardize(X, 0.6)))


def test_a_shared_first_block_is_followed_down_to_its_layer() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())), nn.Flatten())
    assert standardize_input(model, [X]).layer == "0.0.0"


def test_the_commands_show_it_and_undo_says_what_its_file_lacks(tmp_path: Path) -> None:
    own = convert(network())
    standardize_input(own, [X], std=0.6)
    file = save(own, tmp_path / "own.safetensors")
    assert "each image standardised to 0.6 before conv_stem" in run("inspect", str(file)).output
    result = run("undo", str(file))
    assert result.exit_code == 0
    assert "Warning: the network had each image standardised to 0.6 before conv_stem" in result.stderr
    result = run("undo", str(save(convert(network()), tmp_path / "plain.safetensors")))
    assert "standardised" not in result.output
