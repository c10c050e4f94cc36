"""Calibration brings a network closer to its source, keeps the better values, and fails without a trace."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import ilmconvert
from ilmconvert.calibration import CalibrationError, calibrate
from ilmconvert.calibration.calibrate import SHARED
from ilmconvert.calibration.fit import fit_constants, fit_meta, match_constants, rescaling, respread, sample_weights
from ilmconvert.calibration.layers import pairs_of
from ilmconvert.calibration.score import Score
from ilmconvert.calibration.statistics import grouped, moments, source_moments, statistics
from ilmconvert.calibration.walk import walk
from ilmconvert.checkpoint.save_load import load, save
from ilmconvert.cli.calibrate import calibrate as command
from ilmconvert.surgery.sources import describe_batch_norm, describe_group_norm
from tests.helpers import randomize_norms, relative_error, source_network


def network(name: str = "test_resnet", **args: Any) -> nn.Module:
    return source_network(name, scale=0.7, **args)


def images(count: int = 6, size: int = 48, seed: int = 0) -> list[Tensor]:
    """Smooth random fields of various contrast, as instances differ in images."""
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(count * 4, 3, 6, 6, generator=generator)
    contrast = torch.rand(count * 4, 1, 1, 1, generator=generator) + 0.5
    return list((F.interpolate(fields, size, mode="bicubic") * contrast).split(4))


def error(model: nn.Module, source: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        a, b = (torch.cat([m(x) for x in batches]) for m in (model, source))
    return ((a - b).norm() / (b - b.mean(0)).norm()).item()


def test_moments_follow_the_source_through_its_affine_formula() -> None:
    x = torch.randn(3, 12, 5, 4, dtype=torch.float64).float() * 2 + 1
    batch_norm = randomize_norms(nn.BatchNorm2d(12)).eval()
    group_norm = randomize_norms(nn.GroupNorm(3, 12))
    for norm, describe in ((batch_norm, describe_batch_norm), (group_norm, describe_group_norm)):
        expected, found = moments(norm(x)), source_moments(describe(norm), moments(x))
        torch.testing.assert_close(found.mean, expected.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.var, expected.var, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 8, 5, 5), (4, 8, 7), (4, 8)])
@pytest.mark.parametrize("correction", [0, 1])
def test_the_ideal_coefficients_give_the_target_its_moments(shape: tuple[int, ...], correction: int) -> None:
    x = torch.randn(shape)
    norm = randomize_norms(nn.BatchNorm1d(8)).eval()
    target = source_moments(describe_batch_norm(norm), moments(x))
    s = statistics(
        moments(x), target, norm.weight.detach().sign().double(), num_groups=2, eps=1e-5, correction=correction
    )
    assert s.error(s.omega, s.beta).abs().max() == 0
    mean, var = (t.repeat_interleave(4, 1) for t in grouped(moments(x), 2, correction))
    expand = (..., *[None] * (x.dim() - 2))
    h = (x.double() - mean[expand]) / (var + 1e-5).sqrt()[expand]
    y = s.omega[expand] * h + s.beta[expand]
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).double().unsqueeze(1)
    expected = gain * (flat.double() - norm.running_mean.double().unsqueeze(1)) + norm.bias.double().unsqueeze(1)
    torch.testing.assert_close(y.reshape(expected.shape), expected, atol=1e-5, rtol=1e-4)


def test_constants_are_the_least_squares_solution() -> None:
    x = torch.randn(6, 8, 5, 5) * torch.rand(6, 1, 1, 1) + torch.randn(6, 8, 1, 1)
    norm = randomize_norms(nn.BatchNorm2d(8)).eval()
    target = source_moments(describe_batch_norm(norm), moments(x))
    s = statistics(moments(x), target, norm.weight.detach().sign().double(), num_groups=2, eps=1e-5)
    weight, bias = fit_constants(s, torch.ones(8), torch.zeros(8), ridge=0.0)
    # the same by a general solver on the values themselves
    h = F.group_norm(x.double(), 2).movedim(1, 0).flatten(2)
    t = (s.omega[..., None, None] * F.group_norm(x.double(), 2) + s.beta[..., None, None]).movedim(1, 0).flatten(2)
    w = sample_weights(s).sqrt().unsqueeze(0)
    for c in range(8):
        a = torch.stack([(w * h)[c].flatten(), w.expand(-1, -1, 25)[0].flatten()], 1)
        solution = torch.linalg.lstsq(a, (w * t)[c].flatten().unsqueeze(1)).solution.flatten()
        torch.testing.assert_close(torch.stack([weight[c], bias[c]]), solution, atol=1e-6, rtol=1e-5)
    near_start, _ = fit_constants(s, torch.ones(8), torch.zeros(8), ridge=1e6)
    assert (near_start - 1).abs().max() < 1e-3


def test_matched_values_give_the_channels_their_mean_and_variance() -> None:
    x = torch.randn(6, 32, 5, 5) * (torch.rand(6, 1, 1, 1) + 0.5) + torch.randn(6, 32, 1, 1)
    norm = randomize_norms(nn.BatchNorm2d(32)).eval()
    target = source_moments(describe_batch_norm(norm), moments(x))
    s = statistics(moments(x), target, norm.weight.detach().sign().double(), num_groups=1, eps=1e-5)
    w = (sample_weights(s) / 6)[..., None]
    torch.manual_seed(0)
    layer = ilmconvert.ILMNorm(32, 1, key_group_size=8)
    values = {name: getattr(layer, name).detach().double() for name in ("encoder", "weight_decoder", "bias_decoder")}
    start = norm.weight.detach().double()
    weight, bias = match_constants(s, start, torch.zeros(32))
    plain = {**values, "weight": weight, "bias": bias}
    values["weight_decoder"] = values["bias_decoder"] = 0.1 * torch.randn(4, 2, dtype=torch.float64)
    adaptive = respread(s, {**values, "weight": start, "bias": bias}, correction=0)
    h = F.group_norm(x.double(), 1, eps=1e-5).flatten(2)
    t = s.omega[..., None] * h + s.beta[..., None]
    for found in (plain, adaptive):
        omega, beta = rescaling(found, *grouped(moments(x), 4))
        y = omega[..., None] * h + beta[..., None]
        for a, b in ((y, t), (y.square(), t.square())):
            torch.testing.assert_close((w * a).sum(0).mean(1), (w * b).sum(0).mean(1), atol=1e-5, rtol=1e-5)
    assert (adaptive["weight"] != start).all()


def test_the_meta_network_recovers_one() -> None:
    torch.manual_seed(0)
    layer = ilmconvert.ILMNorm(32, 1, key_group_size=8)
    x = torch.randn(40, 32, 4, 4) * (torch.rand(40, 4).repeat_interleave(8, 1)[..., None, None] + 0.5)
    start = {name: getattr(layer, name) for name in ("weight", "bias", "encoder", "weight_decoder", "bias_decoder")}
    wanted = {name: t.detach().double() + 0.5 * torch.randn_like(t).double() for name, t in start.items()}
    wanted["encoder"] = start["encoder"].detach().double()
    key_mean, key_var = grouped(moments(x), 4)
    s = statistics(moments(x), moments(x), torch.ones(32).double(), num_groups=1, eps=1e-5)
    omega, beta = rescaling(wanted, key_mean, key_var)
    s = s._replace(omega=omega, beta=beta)
    before = s.error(*rescaling({k: t.detach().double() for k, t in start.items()}, key_mean, key_var)).mean()
    weight, bias = fit_constants(s, layer.weight.detach(), layer.bias.detach(), 0.0)
    constant = s.error(weight, bias).mean()
    fitted = fit_meta(s, start, correction=0, decay=0.0)
    assert s.error(*rescaling(fitted, key_mean, key_var)).mean() < 0.1 * constant < 0.1 * before
    with torch.no_grad():
        for name, t in fitted.items():
            getattr(layer, name).copy_(t)
        y = layer(x)
    h = F.group_norm(x, 1)
    omega, beta = rescaling(fitted, key_mean, key_var)
    assert relative_error(y, (omega[..., None, None] * h + beta[..., None, None]).float()) < 1e-4


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("test_resnet", "ilm_ln"),
        ("test_efficientnet", "ln"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("test_resnet", "gn"), ("test_efficientnet", "ilm_gn"))
        ),
    ],
)
def test_it_comes_nearer_to_the_source_on_other_images(name: str, to: str) -> None:
    source = network(name)
    model = ilmconvert.convert(source, to, init="moments")
    others = images(seed=1)
    before, flags = error(model, source, others), [m.training for m in model.modules()]
    found = calibrate(model, images(), source=source)
    assert found.kept != "start"
    assert error(model, source, others) < 0.95 * before
    assert found.scores[found.kept].better_than(found.scores["start"])
    assert len(found.layers) + len(found.skipped) == sum(isinstance(m, nn.BatchNorm2d) for m in source.modules())
    assert sum(layer.after < layer.before for layer in found.layers) > 0.7 * len(found.layers)
    assert (found.fitted_on, found.held_out) == (16, 8)
    assert ("meta-network" in found.scores) == to.startswith("ilm")
    assert [m.training for m in model.modules()] == flags
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "norm_layer", "to", "settings"),
    [
        ("test_resnet", "groupnorm1", "ilm_gn", {"num_groups": 8}),
        ("resnet18", "groupnorm", "ilm_ln", {}),  # GroupNorm(32)
        ("resnet18", "groupnorm", "ln", {}),
    ],
)
def test_regrouping_of_a_group_norm_network(name: str, norm_layer: str, to: str, settings: dict[str, Any]) -> None:
    source = randomize_norms(timm.create_model(name, norm_layer=norm_layer).eval(), scale=0.7)
    model = ilmconvert.convert(source, to, init="moments", **settings)
    others = images(seed=1)
    before = error(model, source, others)
    found = calibrate(model, images(), source=source, meta=False)
    assert found.kept != "start"
    assert error(model, source, others) < 0.9 * before


def test_half_of_the_way_lies_half_way() -> None:
    x = torch.randn(6, 8, 5, 5) + torch.randn(6, 8, 1, 1)
    norm = randomize_norms(nn.BatchNorm2d(8)).eval()
    target = source_moments(describe_batch_norm(norm), moments(x))
    s = statistics(moments(x), target, norm.weight.detach().sign().double(), num_groups=2, eps=1e-5)
    start = norm.weight.detach().double()
    whole, _ = match_constants(s, start, torch.zeros(8))
    half, bias = match_constants(s, start, torch.zeros(8), damping=0.5)
    torch.testing.assert_close(half, (whole + start) / 2)
    # the mean over all samples is the target's, whatever the weight
    w = sample_weights(s) / 6
    torch.testing.assert_close((w * (half * s.mean_h + bias)).sum(0), (w * s.target_mean).sum(0))


@pytest.mark.parametrize("to", ["gn", "ilm_ln"])
def test_what_is_kept_is_never_further_away_on_the_held_out_images(to: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        source = randomize_norms(timm.create_model("test_efficientnet").eval(), scale=0.7)
        model = ilmconvert.convert(source, to, init="moments")
        found = calibrate(model, images(4, seed=seed), source=source, meta=False)
        kept, start = found.scores[found.kept], found.scores["start"]
        assert kept.agreement >= start.agreement  # type: ignore[operator]
        assert kept.kl <= start.kl  # type: ignore[operator]
        assert ilmconvert.info(model).settings.get("calibrated", "start") == found.kept


def test_it_never_ends_below_the_start() -> None:
    source = network()
    # the model is its source's equal already, so that nothing can be better
    plain = ilmconvert.convert(source, "ln")
    model = copy.deepcopy(plain)
    before = copy.deepcopy(model.state_dict())
    found = calibrate(model, images(), source=plain)
    assert found.kept == "start"
    assert found.layers == ()
    assert found.scores["start"].agreement == 1
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_what_is_better() -> None:
    nan = float("nan")
    assert Score(None, None, 0.2).better_than(Score(None, None, 0.3))
    assert Score(0.6, 1.0, 0.9).better_than(Score(0.5, 1.1, 0.1))
    assert not Score(0.4, 1.0, 0.1).better_than(Score(0.5, 1.1, 0.1))  # fewer of the same classes
    assert not Score(0.6, 1.2, 0.1).better_than(Score(0.5, 1.1, 0.1))  # more, but by chance: further away
    assert not Score(1.0, nan, nan).better_than(Score(0.0, 9.0, 9.0))
    assert not Score(1.0, 0.0, nan).better_than(Score(0.0, 9.0, 9.0))
    assert Score(0.0, 1.0, 1.0).better_than(Score(0.0, nan, nan))
    assert not Score(0.5, 0.3, 0.3).better_than(Score(0.5, 0.3, 0.3))


class Breaks(nn.Module):
    """Fails on its n-th call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("broken")
        return x


@pytest.mark.parametrize("at", [1, 7, 10, 14])
def test_a_failure_leaves_everything_as_it_was(at: int) -> None:
    source = network()
    model = ilmconvert.convert(source, "ln")
    model.layer3.register_module("breaks", Breaks(at))
    model.layer3.register_forward_hook(lambda module, args, y: module.breaks(y))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="broken"):
        calibrate(model, images(), source=source)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in [*model.modules(), *source.modules()])


def test_shared_layers_stay() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    source = randomize_norms(
        nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 8, 3), norm, nn.BatchNorm2d(8)).eval()
    )
    model = ilmconvert.convert(source, "ln")
    before = model[1].weight.detach().clone()
    found = calibrate(model, images(), source=source)
    assert found.skipped == {"1": SHARED}
    assert torch.equal(model[1].weight, before)
    assert found.layers[0].name == "4"


def test_what_cannot_be_calibrated_is_refused() -> None:
    source = network()
    with pytest.raises(CalibrationError, match="has a restoring path"):
        calibrate(ilmconvert.convert(source), images(), source=source)
    with pytest.raises(CalibrationError, match="no layer that a conversion made"):
        calibrate(source, images(), source=source)
    model = ilmconvert.convert(source, "ln")
    with pytest.raises(CalibrationError, match="the source holds no norm layer"):
        calibrate(model, images(), source=nn.Identity())
    with pytest.raises(CalibrationError, match="no batches"):
        calibrate(model, [], source=source)
    with pytest.raises(CalibrationError, match="too few to hold some out"):
        calibrate(model, [images()[0][:1]], source=source)
    with pytest.raises(ValueError, match="holdout"):
        calibrate(model, images(), source=source, holdout=1.0)
    with pytest.raises(ilmconvert.ConversionError, match=r"convert model\.module"):
        calibrate(nn.DataParallel(model), images(), source=source)


def test_labels_are_ignored_and_one_batch_is_divided() -> None:
    source = network()
    one = torch.cat(images())
    models = [ilmconvert.convert(source, "ln") for _ in range(2)]
    first = calibrate(models[0], [one], source=source)
    second = calibrate(models[1], [(one, torch.zeros(len(one)))], source=source)
    assert (first.fitted_on, first.held_out) == (18, 6)
    assert first == second


def test_a_walk_visits_each_layer_once_with_every_batch() -> None:
    source = network()
    model = ilmconvert.convert(source, "ln")
    pairs, _ = pairs_of(model, source)
    visits: list[tuple[str, list[int]]] = []
    batches = [(x,) for x in images(2)]
    walk(model, {n: p.layer for n, p in pairs.items()}, batches, lambda n, xs: visits.append((n, [len(x) for x in xs])))
    assert [n for n, _ in visits] == list(pairs)
    assert {tuple(sizes) for _, sizes in visits} == {(4, 4)}


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    for i, x in enumerate(torch.cat(images(4, size=64))):
        Image.fromarray(((x.clamp(-2, 2) + 2) * 63).byte().movedim(0, 2).numpy()).save(f"pics/{i:02d}.png")
    source = network()
    save_file(source.state_dict(), "w.safetensors")
    model = ilmconvert.convert(source, "ilm_ln", init="moments")
    save(model, "x.safetensors")
    arguments = ["x.safetensors", "--data", "pics", "--source", "test_resnet", "--weights", "w.safetensors"]
    runner = CliRunner()
    done = runner.invoke(command, [*arguments, "--batch-size", "4", "--input-size", "64", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["output"] == "x-calibrated.safetensors"
    assert (summary["fitted_on"], summary["held_out"]) == (12, 4)
    assert summary["kept"] in summary["scores"]
    kept, start = summary["scores"][summary["kept"]], summary["scores"]["start"]
    assert kept["agreement"] >= start["agreement"]
    loaded = load(summary["output"])
    changed = [n for n, p in loaded.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert bool(changed) == (summary["kept"] != "start")
    assert all(".weight" in n or ".bias" in n or "coder" in n for n in changed)
    shown = runner.invoke(command, [*arguments, "--constants-only", "--force", "--batch-size", "4"])
    assert shown.exit_code == 0, shown.output
    assert "kept" in shown.stdout
    assert "meta-network" not in shown.stdout


def benchmark(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The tables of a quick run."""
    command = [sys.executable, "-m", "benchmarks.calibration", "--quick", "--out", str(folder), *options]
    root = Path(__file__).resolve().parent.parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "calibration.md").read_text()
    tables: list[dict[str, Any]] = json.loads((folder / "calibration.json").read_text())["tables"]
    for table in tables:
        assert all(0 <= row["agreement"] <= 1 and row["error"] > 0 for row in table["rows"])
    return tables


@pytest.mark.slow
def test_the_benchmark_prints_a_target_before_and_after(tmp_path: Path) -> None:
    before, tried = benchmark(tmp_path, "--targets", "gn", "--epochs", "0")
    assert [row["layer"] for row in before["rows"]] == ["gn", "gn"]
    assert before["rows"][0]["values"] == "start"
    kept = [row["values"] for row in tried["rows"] if row[""] == "kept"]
    assert before["rows"][1]["values"] == f"calibrated: {kept[0]}"
    assert len(kept) == 1


@pytest.mark.slow
def test_the_benchmark_fits_meta_networks_and_distils(tmp_path: Path) -> None:
    before, tried, distilled = benchmark(tmp_path, "--targets", "ilm_ln", "ln", "--epochs", "1")
    assert [row["layer"] for row in before["rows"]] == ["ilm_ln", "ilm_ln", "ln", "ln"]
    assert [row["values"] for row in tried["rows"]][:4] == ["start", "constants", "damped constants", "meta-network"]
    assert [row["values"] for row in distilled["rows"]] == ["then distilled: norms", "then distilled: all"]
