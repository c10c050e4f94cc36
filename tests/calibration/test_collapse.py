"""An ILM network whose rescaling is constant becomes a plain one; one that adapts is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import ilmconvert
from ilmconvert.calibration.collapse import collapse
from ilmconvert.checkpoint.save_load import load, save
from ilmconvert.cli.collapse import collapse as command
from ilmconvert.errors import CollapseError
from ilmconvert.nn import ILMNorm
from tests.helpers import relative_error, source_network


def batches(count: int = 3, size: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, size, size, generator=generator) for _ in range(count)]


def network(name: str = "test_resnet", to: str = "ilm_gn", **options: object) -> nn.Module:
    return ilmconvert.convert(source_network(name), to, **options).eval()


def ilm_layers(model: nn.Module) -> list[ilmconvert.ILMNorm]:
    return [m for m in model.modules() if isinstance(m, ilmconvert.ILMNorm)]


@pytest.mark.parametrize("to", ["ilm_gn", "ilm_ln", "ilm_in"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_zero_decoders_need_no_batches(name: str, to: str, tmp_path: Path) -> None:
    model = network(name, to, init="moments")
    found = collapse(model)
    x = batches()[0]
    assert relative_error(found.model(x), model(x)) < 1e-5
    assert all(layer.exact and layer.deviation == 0 for layer in found.layers)
    assert not ilm_layers(found.model)
    assert len(found.layers) == len(ilm_layers(model)) > 0
    loaded = load(save(found.model, tmp_path / "x.safetensors"))
    assert torch.equal(loaded(x), found.model(x))
    kept = {"to": to.removeprefix("ilm_"), "init": "moments"}
    assert ilmconvert.info(loaded).settings == {**kept, "collapsed": True, "collapse_deviation": 0.0}


def test_an_annealed_path_of_zeros_is_exact() -> None:
    model = network()
    with torch.no_grad():
        for layer in ilm_layers(model):
            layer.restore_weight.zero_()
            layer.restore_bias.zero_()
    x = batches()[0]
    assert relative_error(collapse(model).model(x), model(x)) < 1e-5


def test_a_meta_network_that_is_constant_over_the_data_goes_into_weight_and_bias() -> None:
    model = network(init="moments")
    with torch.no_grad():
        for layer in ilm_layers(model):
            # saturated: sigmoid and tanh of something large are 1, whatever the instance
            layer.encoder.abs_()
            layer.weight_decoder.fill_(1e6)
            layer.bias_decoder.zero_()
    found = collapse(model, batches())
    x = batches()[0]
    assert found.score is not None
    assert found.score.agreement == 1
    assert relative_error(found.model(x), model(x)) < 1e-3
    assert found.deviation < 1e-4
    assert not any(layer.exact for layer in found.layers)
    for old, new in zip(
        ilm_layers(model), (m for m in found.model.modules() if isinstance(m, nn.GroupNorm)), strict=True
    ):
        torch.testing.assert_close(new.weight, old.weight + 0.5, atol=1e-3, rtol=1e-3)


def test_what_adapts_is_refused_with_its_figure_and_the_model_stays() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CollapseError, match="give batches to measure it"):
        collapse(model)
    with pytest.raises(CollapseError, match=r"adapts to the instance \(0\.\d+ of its output, more than 0.001\)"):
        collapse(model, batches())
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    forced = collapse(model, batches(), tolerance=10)
    assert forced.deviation > 1e-3
    assert forced.score is not None
    assert forced.score.error > 1e-3
    assert not ilm_layers(forced.model)


def test_unbiased_variances_are_measured() -> None:
    layer = ilmconvert.ILMNorm(32, 8, correction=1)
    with pytest.raises(CollapseError, match="give batches"):
        collapse(nn.Sequential(layer))
    x = torch.randn(8, 32, 3, 3)
    found = collapse(nn.Sequential(layer), [x])
    assert relative_error(found.model(x), layer(x)) < 1e-4
    assert found.model[0].weight.mean() < 0.99  # the factor between the two estimates


def test_there_has_to_be_something_to_collapse() -> None:
    with pytest.raises(CollapseError, match="holds no ILM Norm"):
        collapse(nn.Sequential(nn.GroupNorm(2, 4)))
    plain = collapse(nn.Sequential(ILMNorm(32, 8))).model
    with pytest.raises(CollapseError, match="are plain already"):
        collapse(plain)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        noise = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(i)) * 255).byte().numpy()
        Path("pics").mkdir(exist_ok=True)
        Image.fromarray(noise).save(f"pics/{i}.png")
    save_from = network(to="ilm_ln", init="moments")
    save(save_from, "x.safetensors")
    runner = CliRunner()
    done = runner.invoke(command, ["x.safetensors", "--data", "pics", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["output"] == "x-plain.safetensors"
    assert summary["largest_deviation"] == 0
    assert summary["agreement"] == 1
    x = batches()[0]
    assert relative_error(load(summary["output"])(x), save_from(x)) < 1e-5
    again = runner.invoke(command, ["x.safetensors"])
    assert again.exit_code == 2
    assert "--force" in again.output
    shown = runner.invoke(command, ["x.safetensors", "--force"])
    assert shown.exit_code == 0
    assert "Wrote x-plain.safetensors" in shown.stdout
