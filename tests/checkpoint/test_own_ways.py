"""Models with a way of their own of keeping state: whatever is written is read back, and a refusal changes nothing."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ilmconvert import CheckpointError, apply_delta, convert, load, load_weights, save, save_delta
from ilmconvert.checkpoint.save_load import read_header
from tests.helpers import randomize_norms

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A backbone with a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).relu())


class OwnLoading(Net):
    """As demucs does it: no ``assign``."""

    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        return super().load_state_dict(state, strict=strict)


class HeadOnly(Net):
    """Its backbone comes from elsewhere, and isn't stored."""

    def state_dict(self) -> Any:
        return {key: value for key, value in super().state_dict().items() if key.startswith("head.")}


class WithSettings(Net):
    """As neuraloperator does it: constructor arguments among the tensors."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        state["_metadata"] = {"modes": (16, 16), "_name": "Net"}
        return state

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        state = {key: value for key, value in state.items() if key != "_metadata"}
        return super().load_state_dict(state, strict=strict, assign=assign)


class Outer(nn.Module):
    """Holds a part that stores itself in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.part = HeadOnlyPart()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.part(x))


class HeadOnlyPart(Net):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        for key in [key for key in state if ".backbone." in f".{key}"]:
            del state[key]
        return state


class Counts(nn.Module):
    """Extra state that is no tensor."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state


def counting(value: Any = None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Counts(value))


def weight_normed(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(model.head)
    return model


def spectral_normed() -> nn.Module:
    model = Net()
    torch.nn.utils.spectral_norm(model.head)
    return model


def parametrized() -> nn.Module:
    model = Net()
    torch.nn.utils.parametrizations.weight_norm(model.head)
    return model


def complex_filter() -> nn.Module:
    model = Net()
    model.register_buffer("filter", torch.randn(3, dtype=torch.complex64))
    return model


MODELS = {
    "own loading": OwnLoading,
    "head only": HeadOnly,
    "settings among tensors": WithSettings,
    "a part of its own way": Outer,
    "weight_norm": weight_normed,
    "spectral_norm": spectral_normed,
    "parametrized": parametrized,
    "complex": complex_filter,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("converted_before", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, converted_before: bool) -> None:
    model = convert(randomize_norms(MODELS[name]()), inplace=True).eval()
    with torch.no_grad():
        expected = model(X)
    path = save(model, tmp_path / "m.safetensors")
    tensors = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    assert load_file(path).keys() == tensors
    into = randomize_norms(MODELS[name](), seed=7)
    if converted_before:
        into = convert(into, inplace=True)
    loaded = load(path, into=into)
    assert loaded is into
    with torch.no_grad():
        assert torch.equal(loaded(X), expected)
        assert loaded(X[:0]).shape == (0, *expected.shape[1:])
    assert save(loaded, tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_deltas_of_them(tmp_path: Path, name: str) -> None:
    base = randomize_norms(MODELS[name]()).eval()
    base(X)  # older spectral_norm works its weight out when it is called
    twin = MODELS[name]()
    load_state = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    nn.Module.load_state_dict(twin, load_state)
    model = convert(twin.eval(), inplace=True)
    path = save_delta(model, tmp_path / "d.safetensors", base=base)
    with torch.no_grad():
        assert torch.equal(apply_delta(base, path)(X), model(X))


@pytest.mark.parametrize(
    "value", [None, 3, "text", [1, 2.5, None], {"steps": 4, "seen": ["a"], "more": {"x": True}}, torch.tensor([1, 2])]
)
def test_extra_state_comes_back(tmp_path: Path, value: Any) -> None:
    model = convert(randomize_norms(counting(value)))
    path = save(model, tmp_path / "m.safetensors")
    loaded = load(path, into=counting(torch.zeros(2, dtype=torch.int64) if isinstance(value, Tensor) else "other"))
    found = loaded[2].value
    assert type(found) is type(value)
    assert torch.equal(found, value) if isinstance(value, Tensor) else found == value
    assert ("extra" in read_header(path)) != isinstance(value, Tensor)


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"a": {3}}, float("nan"), b"bytes", nn.ReLU])
def test_extra_state_that_json_cannot_hold(tmp_path: Path, value: Any) -> None:
    model = convert(randomize_norms(counting(value)))
    message = (
        r"2\._extra_state is a \w+ that JSON can't hold; let get_extra_state of Counts return a tensor, or None, n"
    )
    with pytest.raises(CheckpointError, match=message):
        save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    # the advice
    model[2].get_extra_state = lambda: {"value": str(value)}
    assert read_header(save(model, tmp_path / "m.safetensors"))["extra"] == {"2._extra_state": {"value": str(value)}}


def test_extra_state_of_another_model(tmp_path: Path) -> None:
    path = save(convert(randomize_norms(counting(3))), tmp_path / "m.safetensors")
    other = nn.Sequential(*counting()[:2], nn.ReLU())
    with pytest.raises(CheckpointError, match=r"entries aren't the model's: 1 left over, first '2\._extra_state'"):
        load(path, into=other)
    path = save(convert(randomize_norms(other)), tmp_path / "n.safetensors")
    with pytest.raises(CheckpointError, match=r"entries aren't the model's: 1 missing, first '2\._extra_state'"):
        load(path, into=counting())


class Stubborn(nn.Module):
    """Raises where it is to load."""

    what: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        if self.what is not None:
            raise self.what("no, thanks")
        super()._load_from_state_dict(state, prefix, *args)


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (TypeError, CheckpointError, "Sequential refuses its state: no, thanks"),
        (KeyError, CheckpointError, "Sequential refuses its state: 'no, thanks'"),
        (KeyboardInterrupt, KeyboardInterrupt, "no, thanks"),
    ],
)
@pytest.mark.parametrize("converted_before", [False, True])
def test_into_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Any, error: Any, message: str, converted_before: bool
) -> None:
    def network() -> nn.Sequential:
        return randomize_norms(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Stubborn(), nn.Conv2d(16, 2, 1)))

    path = save(convert(network()), tmp_path / "m.safetensors")
    into = convert(network()) if converted_before else network()
    modules, state = dict(into.named_modules()), {k: (t, t.clone()) for k, t in into.state_dict(keep_vars=True).items()}
    expected = into.eval()(X)
    monkeypatch.setattr(Stubborn, "what", what)
    with pytest.raises(error, match=message):
        load(path, into=into)
    assert dict(into.named_modules()) == modules
    assert into.state_dict(keep_vars=True).keys() == state.keys()
    assert all(into.state_dict(keep_vars=True)[k] is t and torch.equal(t, before) for k, (t, before) in state.items())
    assert torch.equal(into(X), expected)


class Copies(nn.BatchNorm1d):
    """Fills its tensors in place, which does nothing on the meta device."""

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        with torch.no_grad():
            for name, t in (*self.named_parameters(), *self.named_buffers()):
                t.copy_(state[prefix + name])


def test_no_tensor_stays_without_values(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), Copies(16 * 36))
    path = save(convert(randomize_norms(model), exclude="3"), tmp_path / "m.safetensors")
    with torch.device("meta"):
        into = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), Copies(16 * 36))
    with pytest.raises(CheckpointError, match=r"3\.weight of Sequential takes no values by assignment"):
        load(path, into=into)
    assert isinstance(into[1], nn.BatchNorm2d)


def test_weights_into_a_model_that_hides_its_backbone(tmp_path: Path) -> None:
    source = randomize_norms(Net())
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = HeadOnly()
    load_weights(model, tmp_path / "w.pth")
    assert torch.equal(model.eval()(X), source.eval()(X))


def test_adapters_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    base = convert(randomize_norms(Net())).eval()
    settings = peft.LoraConfig(r=2, target_modules=["head"], modules_to_save=["backbone.1"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(base), settings)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.add_(torch.randn_like(p) / 10)
    model.save_pretrained(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(again.eval()(X), model.eval()(X))
        assert not torch.equal(model(X), base(X))
        merged = model.merge_and_unload()
        path = save(merged, tmp_path / "m.safetensors")
        assert torch.equal(load(path, into=Net())(X), merged.eval()(X))
