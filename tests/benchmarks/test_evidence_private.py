"""The runs under differential privacy and the federated ones: the cut, the arms, what trains, that they resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from opacus import GradSampleModule
from torch import nn

from benchmarks.evidence import federated, private
from benchmarks.evidence.cut import Features, cut, out_of_place
from benchmarks.evidence.dp_sgd import DELTA, Scale, Settings, noise, pooled, train_privately
from benchmarks.evidence.fed_avg import FROZEN, TRAINED, averaged, divided
from benchmarks.evidence.images import Images, Splits
from benchmarks.evidence.private_arms import ARMS, HEAD, ChannelAffine, affine_gradients, build, head_of
from ilmconvert import convert
from ilmconvert.finetune.networks import replace_head
from ilmconvert.testing import randomize_norms
from tests.helpers import TOLERANCE, relative_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning"),
]
STAGE = 4  # the last of the small network


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("test_efficientnet", num_classes=7)
    return randomize_norms(network, scale=0.3).eval()


def small_splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    images = Images(torch.randint(256, (16, 3, 32, 32), generator=generator).byte(), torch.arange(16) % 3)
    return Splits(images, images, images, 3)


@pytest.fixture
def small_set(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A small network and a small set in the place of Lite0 and Fashion-MNIST."""
    monkeypatch.setattr("benchmarks.evidence.cut.load_lite0", small_network)
    monkeypatch.setattr("benchmarks.evidence.cut.load_splits", lambda *_: small_splits())
    return monkeypatch


def features(count: int = 8, size: int = 32) -> Features:
    with torch.no_grad():
        return Features(cut(small_network(), STAGE)[0](torch.randn(count, 3, size, size)), torch.arange(count) % 3)


@pytest.mark.parametrize("stage", [0, 2, STAGE])
def test_a_cut_network_is_the_network(stage: int) -> None:
    network, x = small_network(), torch.randn(2, 3, 64, 64)
    before, behind = cut(network, stage)
    with torch.no_grad():
        assert torch.equal(behind(before(x)), network(x))
        assert relative_error(cut(convert(network), stage)[1](before(x)), network(x)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_but_fix_starts_as_the_source(arm: str) -> None:
    source, x = small_network(), features().inputs
    replace_head(source, 3, seed=5)
    built = build(arm, small_network(), STAGE, 3, seed=5).train()
    with torch.no_grad():
        error = relative_error(built(x), cut(source, STAGE)[1](x))
        assert torch.allclose(built(x[:1]), built(x)[:1], atol=1e-5)  # no image sees another
    assert (error <= TOLERANCE[torch.float32]) == (arm != "fix")


def test_the_same_parameters_train_in_the_arms_of_norms() -> None:
    def counted(arm: str) -> int:
        return sum(p.numel() for p in build(arm, small_network(), STAGE, 3, 0).parameters() if p.requires_grad)

    head = counted(HEAD)
    channels = sum(m.num_features for m in cut(small_network(), STAGE)[1].modules() if isinstance(m, nn.BatchNorm2d))
    assert {arm: counted(arm) - head for arm in ("frozen-bn-affine", "ilm-norms", "fix")} == dict.fromkeys(
        ("frozen-bn-affine", "ilm-norms", "fix"), 2 * channels
    )
    assert counted("frozen-bn-conv") > head


def test_gradients_of_an_affine_layer_are_those_of_single_images() -> None:
    layer = ChannelAffine(torch.randn(4), torch.randn(4))
    x, wanted = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    found = affine_gradients(layer, [x], wanted)
    for i in range(3):
        single = torch.autograd.grad((layer(x[i : i + 1]) * wanted[i]).sum(), [layer.weight, layer.bias])
        torch.testing.assert_close((found[layer.weight][i], found[layer.bias][i]), single)
    wrapped = GradSampleModule(layer, loss_reduction="sum")
    (wrapped(x) * wanted).sum().backward()
    torch.testing.assert_close(layer.weight.grad_sample, found[layer.weight])


def test_the_head_alone_is_the_same_on_cached_inputs_and_after_a_conversion() -> None:
    """Frozen BatchNorm, the converted network and the classifier alone: one run, one result."""
    images, settings, scale = features(), Settings(0.5), Scale(8, 8, 8, 4)
    whole = build(HEAD, small_network(), STAGE, 3, seed=1)
    alone, inputs = pooled(build(HEAD, small_network(), STAGE, 3, seed=1), images)
    converted = build("ilm-norms", small_network(), STAGE, 3, seed=1).requires_grad_(False)
    head_of(converted).requires_grad_(True)
    start = head_of(whole).weight.detach().clone()
    for network, data in ((whole, images), (alone, inputs), (converted, images)):
        assert 0 < train_privately(network, data, settings, 8.0, scale, seed=3) <= 8.0
    assert not torch.allclose(head_of(whole).weight, start, atol=1e-2)
    for other in (alone, converted):
        torch.testing.assert_close(head_of(other).weight, head_of(whole).weight, rtol=1e-4, atol=1e-5)


def test_less_epsilon_is_more_noise() -> None:
    assert noise(1.0, 1.0, 5) > noise(8.0, 1.0, 5) > 0
    assert 1 / Scale().images > DELTA


def test_private_runs_resume_and_their_table_needs_no_training(
    tmp_path: Path, small_set: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--quick", "--epsilons", "8", "--from-stage", str(STAGE)]
    options += ["--arms", HEAD, "ilm-norms"]
    threads = torch.get_num_threads()
    private.main(options)
    torch.set_num_threads(threads)
    lines, printed = (tmp_path / "private.jsonl").read_text(), capsys.readouterr().out
    assert len(lines.splitlines()) == len(private.RATES) + 2 + len(private.SHARES) + 2
    assert all(ARMS[arm] in printed for arm in (HEAD, "ilm-norms"))
    small_set.setattr("benchmarks.evidence.cut.load_lite0", None)
    private.main([*options, "--table"])
    assert (tmp_path / "private.jsonl").read_text() == lines
    assert capsys.readouterr().out == printed


def test_clients_share_all_images_unevenly() -> None:
    labels = torch.arange(500) % 5
    shares = divided(labels, 10, 0.1, seed=0)
    assert sorted(torch.cat(shares).tolist()) == list(range(500))
    largest = [labels[own].bincount().max().item() / len(own) for own in shares if len(own)]
    assert sum(largest) / len(largest) > 0.5
    assert any(not torch.equal(a, b) for a, b in zip(shares, divided(labels, 10, 0.1, seed=1), strict=True))
    even = divided(labels, 10, 1e4, seed=0)
    assert max(map(len, even)) - min(map(len, even)) <= 10


def test_the_average_is_weighted() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 2.0])
    found = averaged([{"w": first, "n": torch.tensor(3)}, {"w": second, "n": torch.tensor(9)}], [3, 1])
    assert found["w"].tolist() == [2.0, 2.0]
    assert found["n"].item() == 3


@pytest.mark.parametrize("arm", federated.ARMS)
def test_what_a_round_changes(arm: str) -> None:
    behind = out_of_place(federated.ARMS[arm][1](cut(small_network(), STAGE)[1]))
    start = {name: value.clone() for name, value in behind.state_dict().items()}
    federated.train(arm, behind, features(16, size=64), rate=0.1, batch_size=2, rounds=1, seed=0)
    end = behind.state_dict()
    moved = {name for name in end if not torch.allclose(end[name], start[name], rtol=1e-6, atol=0)}
    assert any("conv" in name for name in moved)
    assert any("running_var" in name for name in moved) == (arm == TRAINED)
    assert not any(name.endswith(("ref_mean", "ref_std")) for name in moved)


def test_federated_runs_resume_and_their_table_needs_no_training(
    tmp_path: Path, small_set: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--quick", "--batch-sizes", "4", "--from-stage", str(STAGE)]
    threads = torch.get_num_threads()
    federated.main([*options, "--arms", FROZEN, "ilm-gn"])
    torch.set_num_threads(threads)
    lines, printed = (tmp_path / "federated.jsonl").read_text(), capsys.readouterr().out
    assert len(lines.splitlines()) == 2 * (len(federated.RATES) + 2)
    small_set.setattr("benchmarks.evidence.cut.load_lite0", None)
    federated.main([*options, "--table"])  # the other arms aren't there
    assert (tmp_path / "federated.jsonl").read_text() == lines
    assert capsys.readouterr().out == printed
