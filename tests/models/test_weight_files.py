"""Weights from files: which entry, under which prefix, and the right words for what is no file of weights."""

from __future__ import annotations

import argparse
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import ilmconvert
from ilmconvert.errors import ModelError
from ilmconvert.models.create import create_model
from ilmconvert.models.load_weights import load_weights
from ilmconvert.models.weight_files import read_state_dict
from tests.cli.commands import fails, run
from tests.models import training_files
from tests.models.training_files import halved, prefixed, tiny


def tiny_weights(**args: Any) -> dict[str, Tensor]:
    return tiny(**args).state_dict()


def holds(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether every tensor of the model is the one of this name."""
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- what training scripts write ---


@pytest.mark.parametrize(
    ("file", "nested", "prefix"),
    [
        ("w.safetensors", None, ""),
        ("w.pth", None, ""),
        ("W.PTH", None, ""),
        ("weights", None, ""),
        ("weights.backup", "model", ""),
        ("w.bin", "state_dict", "module."),
        ("w.pt", "model", "_orig_mod."),
        ("w.pth", "model_ema", "module._orig_mod."),
        ("w.pth", "ema", ""),
        ("w.pth", "network_weights", "module."),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weight_files(tmp_path: Path, file: str, nested: str | None, prefix: str, zipped: bool) -> None:
    state = prefixed(prefix, tiny_weights())
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        content = {nested: state, "epoch": 3} if nested else state
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = create_model("test_resnet", weights=path)
    assert holds(model, tiny_weights())
    assert ilmconvert.info(model).provenance["weights"] == file
    assert len(ilmconvert.info(model).provenance["sha256"]) == 64
    assert ilmconvert.info(model).provenance.get("epoch") == (3 if nested else None)


@pytest.mark.parametrize(
    ("write", "args", "expected", "said"),
    [
        (
            training_files.with_timm,
            {},
            lambda: halved(tiny_weights()),
            r"read state_dict_ema \(averaged weights\) of .*last.pth.tar, epoch 12; it also holds state_dict \(",
        ),
        (
            training_files.with_torchvision,
            {},
            lambda: halved(tiny_weights()),
            r"read model_ema \(averaged weights\) of .*checkpoint.pth, epoch 7; it also holds model \(.*'module\.'",
        ),
        (
            training_files.with_lightning,
            {},
            tiny_weights,
            r"read state_dict of .*epoch=4.ckpt, epoch 4; without the prefix 'net\.'.*left out: 1 .*\(loss.weight\)$",
        ),
        (
            training_files.with_mmengine,
            {"num_classes": 0},
            lambda: tiny_weights(num_classes=0),
            r"epoch 2; without the prefix 'backbone\.'.*\(head.fc.weight\); left unread: objects of .*HistoryBuffer$",
        ),
        (
            training_files.with_detectron2,
            {"num_classes": 0},
            lambda: tiny_weights(num_classes=0),
            r"read model of .*, iteration 8999; without the prefix 'backbone\.bottom_up\.'.*left out: 2 tensors",
        ),
    ],
)
def test_checkpoints_of_training_scripts(tmp_path: Path, write: Any, args: Any, expected: Any, said: str) -> None:
    path = write(tmp_path)
    with pytest.warns(UserWarning, match=said) as caught:
        model = create_model("test_resnet", weights=path, **args)
    assert caught[0].filename == __file__
    assert holds(model, expected())


def test_wrappers_are_taken_off_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"state_dict": prefixed("module._orig_mod.", tiny_weights()), "epoch": 5}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, "ilmconvert"):
        create_model("test_resnet", weights=tmp_path / "w.pth")
    assert caplog.messages == [
        f"read state_dict of {tmp_path / 'w.pth'}, epoch 5; without the prefix 'module._orig_mod.' of its names"
    ]


def test_a_prefix_of_several_wrappers(tmp_path: Path) -> None:
    model = create_model("test_resnet", weights=training_files.with_compiled_lightning(tmp_path))
    assert holds(model, tiny_weights())
    assert ilmconvert.info(model).provenance["prefix"] == "model.module._orig_mod."


def test_averaged_weights_win_and_the_others_can_be_named(tmp_path: Path) -> None:
    path = training_files.with_timm(tmp_path)
    with pytest.warns(UserWarning, match="state_dict_ema") as caught:
        assert holds(create_model("test_resnet", weights=path), halved(tiny_weights()))
    named = re.search(r"\((\S+::\S+)\)", str(caught[0].message))
    assert named is not None
    model = create_model("test_resnet", weights=named[1])
    assert holds(model, tiny_weights())
    assert ilmconvert.info(model).provenance["entry"] == "state_dict"
    timms = timm.create_model("test_resnet")
    timm.models.load_checkpoint(timms, str(path), weights_only=False)
    assert holds(timms, halved(tiny_weights()))


@pytest.mark.parametrize("write", [training_files.with_moco, training_files.with_dino])
def test_two_networks_that_fit_have_to_be_told_apart(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    with pytest.raises(ModelError, match="fits the model in more than one way; name one: ") as caught:
        create_model("test_resnet", weights=path, num_classes=0)
    first, second = str(caught.value).partition("name one: ")[2].split(" or ")
    for place, state in ((first, tiny_weights(num_classes=0)), (second, halved(tiny_weights(num_classes=0)))):
        with pytest.warns(UserWarning, match="left out"):
            model = create_model("test_resnet", weights=place, num_classes=0)
        assert holds(model, state)


def test_reading_without_a_model(tmp_path: Path) -> None:
    assert read_state_dict(training_files.with_timm(tmp_path)).keys() == tiny_weights().keys()
    path = training_files.with_dino(tmp_path)
    with pytest.raises(ModelError, match=r"several state dicts; name one: .*::student or .*::teacher"):
        read_state_dict(path)
    assert len(read_state_dict(f"{path}::teacher")) == len(tiny_weights(num_classes=0)) + 1
    with pytest.raises(ModelError, match=r"no weights under nothing; it does under student, teacher"):
        read_state_dict(f"{path}::nothing")


@pytest.mark.parametrize(
    "content",
    [
        lambda s: {"state_dict": None, "model": s},
        lambda s: {"state_dict": {}, "model": s},
        lambda s: {"state_dict_ema": None, "state_dict": {**s, "note": None, "lr": 0.1, "names": {"a": "b"}}},
        lambda s: {"model": Unsafe(), "epoch": torch.tensor(3), "weights": s},
        lambda s: {"state_dict": s, "other": {1: torch.ones(1)}},
        lambda s: {"state_dict": {key: value.numpy() for key, value in s.items()}},
        lambda s: {"ema": {"module": s, "updates": 300}, "model": halved(s)},
        lambda s: EasyDict(state_dict=s, epoch=3),
    ],
)
def test_one_odd_entry_does_not_stop_the_search(tmp_path: Path, content: Any) -> None:
    torch.save(content(tiny_weights()), tmp_path / "w.pth")
    with quiet():
        assert holds(create_model("test_resnet", weights=tmp_path / "w.pth"), tiny_weights())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (np.int64(3), 3),
        (np.array(3), 3),
        (torch.tensor(3), 3),
        (3.0, 3),
        (np.float32(2.5), None),
        ("three", None),
        (float("nan"), None),
        (np.str_("three"), None),
        (np.array([1, None], dtype=object), None),
    ],
)
def test_epochs(tmp_path: Path, written: Any, read: int | None) -> None:
    torch.save({"model": tiny_weights(), "epoch": written}, tmp_path / "w.pth")
    model = create_model("test_resnet", weights=tmp_path / "w.pth")
    assert ilmconvert.info(model).provenance.get("epoch") == read


@pytest.mark.parametrize("order", ["C", "F", ">f4"])
def test_arrays_of_numpy_are_what_they_were(tmp_path: Path, order: str) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array = np.asfortranarray(array) if order == "F" else array.astype(order) if order != "C" else array
    torch.save({"model": {"w": array, "b": np.ones((), np.float64)}}, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert torch.equal(found["w"], torch.arange(24.0).reshape(2, 3, 4))
    assert found["b"].shape == ()


# --- nothing runs ---


class Unsafe:
    """Stands for any class in a pickle."""


class EasyDict(dict[str, Any]):
    """A dict whose items are attributes, as scripts use one for their settings."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


RAN: list[int] = []


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return self.function, (f"__import__('sys').modules[{__name__!r}].RAN.append(1)",)


@pytest.mark.parametrize("function", [eval, exec])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_runs(tmp_path: Path, function: Any, zipped: bool) -> None:
    content = {"model": tiny_weights(), "extra": Runs(function)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with quiet():
        assert holds(create_model("test_resnet", weights=tmp_path / "w.pth"), tiny_weights())
    assert RAN == []


def test_the_operating_system_is_refused(tmp_path: Path) -> None:
    import os

    torch.save({"model": tiny_weights(), "extra": Runs(os.system)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="can't be read without running code"):
        create_model("test_resnet", weights=tmp_path / "w.pth")


def test_what_the_caller_allows_stays_allowed(tmp_path: Path) -> None:
    allowed = [np.dtype, argparse.Namespace]
    path = training_files.with_timm(tmp_path)
    with torch.serialization.safe_globals(allowed):
        read_state_dict(path)
        assert set(torch.serialization.get_safe_globals()) >= set(allowed)
    assert not set(torch.serialization.get_safe_globals()) & set(allowed)


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    path, found = training_files.with_timm(tmp_path), list[int]()
    threads = [threading.Thread(target=lambda: found.append(len(read_state_dict(path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [len(tiny_weights())] * 4


# --- the right words, and the advice followed ---


def damaged_files(folder: Path) -> dict[str, Path]:
    torch.save(tiny_weights(), folder / "whole.pth")
    save_file(tiny_weights(), folder / "whole.safetensors")
    torch.save([torch.ones(2)], folder / "list.pth")
    torch.save({"epoch": 3}, folder / "none.pth")
    save_file({"a": torch.ones(1)}, folder / "converted.safetensors", metadata={"ilmconvert": "{}"})
    np.savez(folder / "array.npz", a=np.ones(2))
    (folder / "empty.pth").touch()
    (folder / "text.pth").write_text("hello")
    (folder / "text.safetensors").write_text("hello, hello, hello")
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "page.pth").write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>")
    (folder / "index.bin").write_text('{"weight_map": {}}')
    (folder / "packed.pth").write_bytes(b"\x1f\x8b\x08\x00")
    (folder / "folder.pth").mkdir()
    for suffix in (".pth", ".safetensors"):
        (folder / f"cut{suffix}").write_bytes((folder / f"whole{suffix}").read_bytes()[:9999])
    return {path.name: path for path in folder.iterdir()} | {"missing.pth": folder / "missing.pth"}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.pth", "there is no file"),
        ("folder.pth", "is not a file"),
        ("array.npz", "a zip archive of numpy arrays"),
        ("empty.pth", "is empty; copy or download it again"),
        ("cut.pth", "cut short or damaged; copy or download it again"),
        ("cut.safetensors", "cut short or damaged; copy or download it again"),
        ("text.pth", "neither a .safetensors file nor one that torch.save wrote"),
        ("text.safetensors", "neither a .safetensors file nor one that torch.save wrote"),
        ("list.pth", r"no state dict \(it holds: list\)"),
        ("none.pth", r"no state dict \(it holds: epoch\)"),
        ("converted.safetensors", "ilmconvert.load"),
        ("pointer.pth", "is a pointer of Git LFS, .*git lfs pull"),
        ("page.pth", "is a web page"),
        ("index.bin", "is a text of JSON"),
        ("packed.pth", "is compressed by gzip; unpack it"),
    ],
)
def test_unusable_files(tmp_path: Path, file: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        create_model("test_resnet", weights=damaged_files(tmp_path)[file])
    assert "\n" not in str(caught.value)


def follow(message: str) -> None:
    """Run the line of Python that the message gives."""
    code = re.search(r"torch\.save\(.*, 'weights\.pth'\)", message)
    assert code is not None, message
    exec("import pickle, torch\n" + code[0])


@pytest.mark.parametrize("file", ["script.pt", "program.pt2", "whole.pth", "nested.pth", "plain.pkl", "protocol.pth"])
def test_the_way_out_of_files_that_hold_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny().eval()
    if file == "script.pt":
        with quiet():
            torch.jit.trace(model, torch.randn(1, 3, 32, 32)).save(file)
    elif file == "program.pt2":
        torch.export.save(torch.export.export(model, (torch.randn(1, 3, 32, 32),)), file)
    elif file == "plain.pkl":
        import pickle

        Path(file).write_bytes(pickle.dumps({"model": model.state_dict()}))
    elif file == "protocol.pth":
        with quiet():
            torch.save({"model": model.state_dict()}, file, pickle_protocol=4)
    else:
        torch.save(model if file == "whole.pth" else {"model": model, "ema": None}, file)
    with quiet(), pytest.raises(ModelError, match=r"weights\.pth") as caught:
        create_model("test_resnet", weights=file)
    assert "\n" not in str(caught.value)
    with quiet():
        follow(str(caught.value))
    assert holds(create_model("test_resnet", weights="weights.pth"), model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.bn1.weight"), r"1 missing \(layer1.0.bn1.weight\)$"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)$"),
        (lambda s: s.update({"conv1.1.bias": torch.ones(3)}), r"conv1.1.bias \(3,\) instead of \(\d+,\)\)$"),
    ],
)
def test_weights_of_something_else(tmp_path: Path, change: Any, message: str) -> None:
    state = tiny_weights()
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=message):
        create_model("test_resnet", weights=tmp_path / "w.safetensors")


def test_weights_without_one_name_of_the_model(tmp_path: Path) -> None:
    """EfficientNet-Lite0's file of its first authors, for one, whose names begin with an underscore."""
    state = {f"_{key.replace('.', '._')}": t for key, t in tiny_weights().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match="they are another model's, or have other names: name that model, or rename them"
    ):
        create_model("test_resnet", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("test_resnet", {"num_classes": 10}, {}),
        ("test_resnet", {"num_classes": 0}, {}),
        ("test_resnet", {}, {"num_classes": 0}),
        ("test_resnet", {}, {"in_chans": 1}),
        ("test_resnet", {"in_chans": 1}, {}),
        ("test_resnet", {"num_classes": 7, "in_chans": 1}, {"num_classes": 4, "in_chans": 5}),
        ("test_resnet", {"num_classes": 0, "in_chans": 1}, {}),
        ("levit_128s", {"num_classes": 10}, {}),
        ("torchvision/mobilenet_v3_small", {"num_classes": 10}, {}),
    ],
)
def test_arguments_that_make_a_file_fit(tmp_path: Path, name: str, theirs: Any, ours: Any) -> None:
    """The message's options, given as they stand there, on the command line and in Python."""
    path = tmp_path / "w.pth"
    state = create_model(name, weights="none", **theirs).state_dict()
    torch.save(state, path)
    line = fails("convert", name, "--weights", str(path), *(f"--model-arg={k}={v}" for k, v in ours.items()))
    options = re.search(r"\((--model-arg .*)\)", line)
    assert options is not None, line
    given = {**ours, **{k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", options[1])}}
    assert given.items() >= theirs.items()
    assert holds(create_model(name, weights=path, **given), state)
    command = ["plan", name, "--weights", str(path), *(f"--model-arg={k}={v}" for k, v in ours.items())]
    assert run(*command, *options[1].split()).exit_code == 0


def test_no_argument_is_named_that_would_not_help(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    state["conv1.weight"] = torch.ones(64, 1, 7, 7)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"conv1.weight \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)\)$"):
        create_model("torchvision/resnet18", weights=tmp_path / "w.pth")


def test_adapters_are_no_weights(tmp_path: Path) -> None:
    """What PEFT saves: two small tensors a layer, under the names of its wrapper."""
    save_file(prefixed("base_model.model.fc.lora_", {"A.weight": torch.ones(2, 8)}), tmp_path / "adapter.safetensors")
    with pytest.raises(ModelError, match=r"doesn't fit the model: \d+ missing .*; 1 unexpected \(base_model"):
        create_model("test_resnet", weights=tmp_path / "adapter.safetensors")


def test_complex_tensors_are_read(tmp_path: Path) -> None:
    state = {"filter": torch.randn(3, 2, dtype=torch.complex64), "weight": torch.ones(1)}
    save_file(state, tmp_path / "w.safetensors")
    found = read_state_dict(tmp_path / "w.safetensors")
    assert torch.equal(found["filter"], state["filter"])


def test_original_weights_that_timm_translates(tmp_path: Path) -> None:
    state = timm.create_model("convnext_atto").state_dict()
    renames = {
        "stem.": "downsample_layers.0.",
        ".conv_dw.": ".dwconv.",
        ".mlp.fc1.": ".pwconv1.",
        ".mlp.fc2.": ".pwconv2.",
    }
    original = {}
    for key, value in state.items():
        # the naming of ConvNeXt's authors
        if key.startswith("stages."):
            _, stage, kind, *rest = key.split(".")
            tail = ".".join(rest)
            key = f"stages.{stage}.{tail}" if kind == "blocks" else f"downsample_layers.{stage}.{tail}"
        key = key.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        for ours, theirs in renames.items():
            key = key.replace(ours, theirs)
        original[key] = value
    torch.save({"model": original}, tmp_path / "original.pth")
    model = create_model("convnext_atto", weights=tmp_path / "original.pth")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert "state_dict" not in model.pretrained_cfg


# --- into one's own model ---


class Wrapped(nn.Module):
    """A network inside of somebody's module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("test_resnet")


def test_into_a_model_whose_names_are_longer(tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("module.", tiny_weights()), "epoch": 1}, tmp_path / "w.pth")
    model = Wrapped()
    found = load_weights(model, tmp_path / "w.pth")
    assert holds(model.net, tiny_weights())
    assert (found.entry, found.progress, found.prefix) == ("state_dict", {"epoch": 1}, "module.")


def test_a_model_stays_as_it_was(tmp_path: Path) -> None:
    state = tiny_weights()
    state["layer1.0.bn1.bias"] = torch.ones(3)
    torch.save(state, tmp_path / "w.pth")
    model = timm.create_model("test_resnet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"layer1\.0\.bn1\.bias"):
        load_weights(model, tmp_path / "w.pth")
    assert holds(model, before)


# --- on the command line ---


def test_the_command_line_says_what_was_read(tmp_path: Path) -> None:
    path = training_files.with_timm(tmp_path)
    said = f"read state_dict_ema (averaged weights) of {path}, epoch 12; it also holds state_dict ({path}::state_dict)"
    result = run("plan", "test_resnet", "--weights", str(path))
    assert said in result.stderr
    result = run("plan", "test_resnet", "--weights", f"{path}::state_dict")
    assert f"\nread state_dict of {path}, epoch 12" in f"\n{result.stderr}"
    assert result.stderr.count("epoch 12") == 1
    assert run("--quiet", "plan", "test_resnet", "--weights", f"{path}::state_dict").stderr == ""


@pytest.mark.parametrize("entry", ["", "::state_dict"])
def test_verify_finds_the_entry_that_was_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.chdir(tmp_path)
    training_files.with_timm(tmp_path)
    assert run("convert", "test_resnet", "--weights", f"last.pth.tar{entry}", "-o", "m.safetensors").exit_code == 0
    result = run("verify", "m.safetensors")
    assert result.exit_code == 0, result.output
    assert "rebuilt" in result.output or "last.pth.tar" in result.output
