"""Where commands write if nothing is said, and that nothing which is there goes without a word."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.commands import fails, run


@pytest.fixture
def exact(trained: Path) -> Path:
    """A conversion, in a file, in the folder of a run and in one of ``save_pretrained``."""
    assert run("test_resnet", "--weights", str(trained), "-o", "exact.safetensors").exit_code == 0
    Path("run").mkdir()
    shutil.copy("exact.safetensors", "run/best.safetensors")
    assert run("export", "exact.safetensors", "--format", "hub", "-o", "card").exit_code == 0
    return Path("exact.safetensors")


COMMANDS = {
    "undo": (["undo"], "-source.safetensors"),
    "collapse": (["collapse", "--data", "images", "--input-size", "32", "--tolerance", "1e9"], "-plain.safetensors"),
    "pt2": (["export", "--format", "pt2", "--static", "--size", "32"], ".pt2"),
    "delta": (["export", "--format", "delta"], ".delta.safetensors"),
    "hub": (["export", "--format", "hub"], ""),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_made_of_a_folder_has_a_place_and_is_not_written_over(name: str, exact: Path) -> None:
    from PIL import Image

    Path("images").mkdir()
    Image.new("RGB", (40, 40), (200, 10, 30)).save("images/0.png")
    (command, *options), ending = COMMANDS[name]
    # beside a file; in the folder of a run, beside its checkpoint; beside a folder that is published as a whole
    places = {"exact.safetensors": f"exact{ending}", "run": f"run/best{ending}", "card": f"card{ending}"}
    if name == "hub":
        assert "card exists already" in fails(command, "card", *options)
        del places["card"]
    for given, output in places.items():
        before = sorted(path.name for path in Path("card").iterdir())
        result = run(command, given, *options)
        assert result.exit_code == 0, result.output
        assert f"Wrote {Path(output)}" in result.stdout
        assert Path(output).exists()
        assert sorted(path.name for path in Path("card").iterdir()) == before
        assert "exists already" in fails(command, given, *options)


def test_a_page_replaces_a_page_only(exact: Path) -> None:
    fast = ["--input-size", "48", "--random-batches", "1", "--batch-size", "2"]
    before = exact.read_bytes()
    assert "is no page" in fails("verify", "exact.safetensors", "--html", "exact.safetensors", *fast)
    assert exact.read_bytes() == before
    for _ in range(2):
        assert run("verify", "exact.safetensors", "--html", "page.html", *fast).exit_code == 0
    assert "there is no folder nowhere" in fails("verify", "exact.safetensors", "--html", "nowhere/page.html", *fast)


def test_what_cant_be_written_is_said_before_the_slow_work(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: object, **kwargs: object) -> None:
        raise AssertionError("too late")

    for name in ("export.formats.export", "checkpoint.save_load.load"):
        monkeypatch.setattr(f"ilmconvert.{name}", slow)
    assert "there is no folder nowhere" in fails("export", "exact.safetensors", "-o", "nowhere/exact.onnx")
    for plot in ("plot.xyz", "exact.safetensors"):
        message = fails("robustness", "exact.safetensors", "--data", ".", "--plot", plot)
        assert "end its name in .png, .svg or .pdf" in message
