"""Ultralytics: a converted network goes through its training, files, folding and export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ilmconvert import ILMNorm, ModelError, convert, info
from tests.helpers import randomize_norms
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, evaluate, norms

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)


@pytest.fixture(scope="module", autouse=True)
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package, which writes its settings, looks for updates and installs what it misses unless told not to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        for name, value in {"OFFLINE": "true", "AUTOINSTALL": "false", "VERBOSE": "false"}.items():
            patch.setenv(f"YOLO_{name}", value)
        yield pytest.importorskip("ultralytics", reason="pip install '.[integrations]'")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a data set of four images."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "shapes").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"shapes/{i}.png")
        (tmp_path / f"shapes/{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.2 0.2 0.2 0.2\n")
    (tmp_path / "shapes.yaml").write_text(f"path: {tmp_path}\ntrain: shapes\nval: shapes\nnames: [round, square]\n")
    return tmp_path


SETTINGS: dict[str, Any] = {
    "data": "shapes.yaml",
    "imgsz": 64,
    "batch": 2,
    "workers": 0,
    "device": "cpu",
    "plots": False,
    "project": "runs",
}


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The boxes in pixels and the classes' scores of a detector, or the outputs of another network."""
    found = evaluate(model, x)
    first = found[0] if isinstance(found, (tuple, list)) else found
    parts = first if isinstance(first, (tuple, list)) else [first]
    return [part for t in parts for part in ((t[:, :4], t[:, 4:]) if t.dim() == 3 else (t,))]


def network(name: str) -> nn.Module:
    from ultralytics import YOLO

    torch.manual_seed(0)
    return randomize_norms(YOLO(name).model, scale=0.3)


def test_page(data: Path) -> None:
    torch.manual_seed(0)
    page = Page("ultralytics")
    source = randomize_norms(page.run_next()["source"], scale=0.3)
    x = torch.rand(2, 3, 64, 64)
    start = page.run_next()["yolo"].model
    assert_same(outputs(start, x), outputs(source, x))
    names = page.run_next()
    trained, again = names["yolo"].model, page.run_rest()["again"].model
    # The head's coarsest grid sees no object to draw a box around.
    assert_norms_learnt(names["yolo"].trainer.model.model[:-1], convert(source).model[:-1])
    for new, old in zip(norms(trained), norms(convert(source)), strict=True):
        for name in ("ref_mean", "ref_std"):  # the files hold float16
            torch.testing.assert_close(getattr(new, name), getattr(old, name), rtol=2**-10, atol=1e-6)
    assert len(info(again).layers) == len(info(start).layers) == 57
    assert_same(outputs(torch.jit.load(names["file"]), x[:1]), outputs(again, x[:1]))
    assert names["results"][0].boxes is not None


def test_training_begins_with_the_converted_network(data: Path) -> None:
    from ultralytics import YOLO

    yolo, seen = YOLO("yolov8n.yaml"), {}
    yolo.model = convert(network("yolov8n.yaml"), include="model.[0-9].*")

    def look(trainer: Any) -> None:
        seen["model"], seen["optimizer"] = copy.deepcopy(trainer.model), trainer.optimizer
        seen["names"] = {id(t): name for name, t in trainer.model.named_parameters()}

    start = copy.deepcopy(yolo.model)
    yolo.add_callback("on_train_start", look)
    yolo.train(**SETTINGS, epochs=1, optimizer="SGD")
    for name, module in start.named_modules():
        if isinstance(module, (ILMNorm, nn.BatchNorm2d)) and not name.startswith("model.22.cv3"):
            taken = seen["model"].get_submodule(name)
            assert type(taken) is type(module)
            assert all(map(torch.equal, taken.state_dict().values(), module.state_dict().values()))
    layers = {layer.name for layer in info(start).layers}
    assert layers == {layer.name for layer in info(seen["model"]).layers}
    groups = {
        seen["names"][id(t)]: (group["param_group"], group["weight_decay"])
        for group in seen["optimizer"].param_groups
        for t in group["params"]
    }
    assert set(groups) == set(seen["names"].values())
    ours = {name: group for name, group in groups.items() if name.rpartition(".")[0] in layers}
    assert ours
    assert all(group == ("bias" if name.endswith(".bias") else "bn", 0) for name, group in ours.items())


@pytest.mark.slow
def test_resume(data: Path) -> None:
    from ultralytics import YOLO

    yolo = YOLO("yolov8n.yaml")
    yolo.model = convert(network("yolov8n.yaml"))

    def interrupt(trainer: Any) -> None:
        raise KeyboardInterrupt

    yolo.add_callback("on_model_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(**SETTINGS, epochs=2)
    again = YOLO(yolo.trainer.last)
    again.train(resume=True)
    assert again.trainer.start_epoch == 1
    assert len(info(again.model).layers) == 57


def test_networks_without_the_conversion_are_refused(data: Path) -> None:
    from ultralytics import YOLO

    yolo = YOLO("yolov8n.yaml")
    yolo.save("stock.pt")
    yolo.model = convert(network("yolov8n.yaml"))
    for pretrained in (False, "stock.pt"):
        with pytest.raises(ModelError, match="leave out pretrained="):
            yolo.train(**SETTINGS, epochs=1, pretrained=pretrained)
        assert list(norms(yolo.model))
    assert not list(data.rglob("last.pt"))


def test_load() -> None:
    from ultralytics import YOLO

    x, source = torch.rand(1, 3, 64, 64), network("yolov8n.yaml")
    converted = convert(source)
    assert_same(outputs(YOLO("yolov8n.yaml").load(converted).model, x), outputs(source, x))
    assert_same(outputs(YOLO("yolov8n.yaml").load({"model": converted}).model, x), outputs(source, x))
    with pytest.raises(ModelError, match="in the weights it isn't"):
        converted.load(source)
    with pytest.raises(ModelError, match="other sizes"):
        YOLO("yolov8s.yaml").load(converted)


@pytest.mark.parametrize(
    "name",
    [
        "yolov8n.yaml",
        "yolov10n.yaml",
        "yolo11n-cls.yaml",
        pytest.param("yolov6n.yaml", marks=pytest.mark.slow),
        pytest.param("yolov9t.yaml", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("include", ["*", "model.[0-4].*"])
def test_fuse(name: str, include: str) -> None:
    x, source = torch.rand(1, 3, 64, 64), network(name)
    expected = outputs(copy.deepcopy(source).fuse(verbose=False), x)
    converted = convert(source, include=include)
    fused = copy.deepcopy(converted).fuse(verbose=False)
    assert_same(outputs(fused, x), expected)
    assert_same(outputs(fused.fuse(verbose=False), x), expected)
    assert list(norms(fused))
    whole = sum(isinstance(m, nn.BatchNorm2d) for m in converted.modules())
    left = sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert left == 0 if include == "*" else left < whole / 4


def test_fuse_takes_what_the_version_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fuse`` and ``info`` were given the size of the images in the course of 8.4."""
    from ilmconvert.export import ultralytics_network

    calls: list[Any] = []

    def older(self: nn.Module, verbose: bool = True) -> nn.Module:
        calls.append(verbose)
        return self

    monkeypatch.setattr(ultralytics_network, "_fuse", older)
    source = network("yolov8n.yaml")
    monkeypatch.setattr(type(source), "info", lambda self, verbose=True: calls.append(("info", verbose)))
    converted = convert(source)
    assert source.fuse() is source
    assert converted.fuse(verbose=False) is converted
    assert converted.fuse() is converted
    assert calls == [True, False, ("info", False), False, ("info", True)]
