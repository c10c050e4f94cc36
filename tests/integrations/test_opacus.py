"""Opacus: PrivacyEngine, ModuleValidator, ghost clipping."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from opacus import GradSampleModule, PrivacyEngine
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from ilmconvert import convert
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha:UserWarning"),
]


@pytest.fixture(scope="module")
def names() -> dict:
    """What the page leaves behind, its norms randomised before it converts."""
    page = Page("opacus")
    randomize_norms(page.run_next()["source"], scale=0.5)
    torch.manual_seed(0)
    return page.run_rest()


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def single_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradients of each sample alone, by a pass for each."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    singles = zip(x.split(1), y.split(1), strict=True)
    rows = [torch.autograd.grad(losses(model, *single).sum(), list(trained.values())) for single in singles]
    return {name: torch.stack(list(grads)) for name, grads in zip(trained, zip(*rows, strict=True), strict=True)}


def test_page(names: dict) -> None:
    source = names["source"]
    x = torch.randn(2, 3, 64, 64)
    assert_same(evaluate(convert(source), x), evaluate(source, x))
    assert GradSampleModule.validate(source, strict=False)
    assert not ModuleValidator.validate(names["model"])
    for trained in ("model", "ghost"):
        assert_norms_learnt(names[trained], convert(source))


def test_ghost_clipping_has_the_norms_of_single_gradients(names: dict) -> None:
    model = names["without_inplace"](convert(names["source"]).double()).train()
    x, y = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 2, 3])
    expected = torch.stack([g.flatten(1).norm(dim=1) for g in single_gradients(model, x, y).values()]).norm(dim=0)
    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
    losses(wrapped, x, y).sum().backward()
    torch.testing.assert_close(wrapped.get_norm_sample(), expected, rtol=1e-9, atol=0)


RESNETS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("test_resnet", num_classes=10),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=10),
}


@pytest.mark.parametrize("library", ["timm", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_resnets_sum_out_of_place(names: dict, library: str) -> None:
    model = convert(randomize_norms(RESNETS[library](), scale=0.3)).double()
    model = names["without_inplace"](model).train()
    x, y = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.tensor([1, 2])
    expected = single_gradients(model, x, y)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        wrapped(x)
    for module in model.modules():  # what the pass that failed has left
        module.__dict__.pop("activations", None)
    for p in model.parameters():
        p._forward_counter = 0
    with names["SumsOutOfPlace"]():
        result = losses(wrapped, x, y)
    result.sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad_sample, expected[name], rtol=1e-8, atol=1e-10, msg=name)


def test_stock_group_norm_stops_at_the_same_sum(names: dict) -> None:
    fixed = names["without_inplace"](ModuleValidator.fix(torchvision.models.resnet18(num_classes=10)))
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        GradSampleModule(fixed.train())(torch.randn(2, 3, 64, 64))


def test_clipping_bounds_the_step(names: dict) -> None:
    """Without noise the mean of clipped gradients is no longer than what each is clipped to."""
    model = names["without_inplace"](convert(names["source"])).train()
    start = [p.detach().clone() for p in model.parameters()]
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.randn(2, 3, 64, 64), torch.tensor([1, 2])), batch_size=2
        ),
        noise_multiplier=0.0,
        max_grad_norm=0.1,
        poisson_sampling=False,
    )
    for x, y in loader:
        nn.functional.cross_entropy(private(x), y).backward()
        optimizer.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(start, model.parameters(), strict=True)]).norm()
    assert 0 < moved <= 0.1 + 1e-6


def test_empty_batch(names: dict) -> None:
    """Poisson sampling draws one now and then."""
    model = names["without_inplace"](convert(names["source"])).train()
    wrapped = GradSampleModule(model)
    wrapped(torch.randn(0, 3, 64, 64)).sum().backward()
    for p in model.parameters():
        if p.requires_grad:
            assert p.grad_sample.shape == (0, *p.shape)


def test_frozen_batch_norm_is_accepted_and_one_that_trains_is_not() -> None:
    source = timm.create_model("test_resnet", num_classes=4)
    assert ModuleValidator.validate(copy.deepcopy(source).train())
    assert not ModuleValidator.validate(freeze_batch_norm_2d(copy.deepcopy(source)).train())
    assert not ModuleValidator.validate(convert(randomize_norms(source)).train())
    stock = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).requires_grad_(False))
    assert not ModuleValidator.validate(stock.train())  # which still mixes the batch: the page warns of it
