"""Commands that read images: the same options in all of them, and messages that can be followed in each."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from ilmconvert.cli import COMMANDS
from tests.cli.commands import fails, options_of, run
from tests.finetune.finetune_jobs import image
from tests.helpers import ROOT, randomize_norms, save_trained

SMALL = "--input-size 32 --batch-size 4"
#: How each command is given images; DATA is the place.
READERS = {
    "convert": "test_resnet --weights trained.safetensors --robust --data DATA -o out.safetensors",
    "finetune": f"test_resnet --weights trained.safetensors --num-classes 2 -o out --data DATA {SMALL} --epochs 1 -j 0 "
    "--log-with none",
    "evaluate": f"two.safetensors --data DATA {SMALL}",
    "verify": f"two.safetensors --weights half.safetensors --data DATA {SMALL}",
    "calibrate": f"plain.safetensors --data DATA {SMALL} -o out.safetensors",
    "collapse": f"two.safetensors --data DATA {SMALL} --tolerance 1e9 -o out.safetensors",
    "robustness": "two.safetensors --data DATA --input-size 32 --severity 1 --limits -1 1 1",
}
LABELS = ("finetune", "evaluate", "verify")
SHARED = {"--data-dir", "--dataset-download", "--input-key", "--skip-corrupt"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and conversions of a network of two classes: exact, and plain."""
    place = tmp_path_factory.mktemp("networks")
    save_trained(place)
    torch.manual_seed(0)
    network = randomize_norms(timm.create_model("test_resnet", num_classes=2), scale=0.5)
    save_file(network.state_dict(), place / "half.safetensors")
    of_two = ["test_resnet", "--weights", str(place / "half.safetensors"), "--model-arg", "num_classes=2"]
    assert run(*of_two, "-o", str(place / "two.safetensors")).exit_code == 0
    assert run(*of_two, "--to", "gn", "-o", str(place / "plain.safetensors")).exit_code == 0
    return place


@pytest.fixture
def networks(made: Path, folder: Path) -> None:
    """These, in the current folder."""
    for path in made.iterdir():
        shutil.copy(path, folder)


@pytest.fixture
def data(folder: Path) -> Path:
    """Two class folders of four images each."""
    for label, name in enumerate(("ant", "bee")):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(4):
            image(label, number).save(folder / "data" / name / f"{number}.png")
    return Path("data")


def words(command: str, place: object = "data") -> list[str]:
    return [command, *shlex.split(READERS[command].replace("DATA", str(place)))]


def test_every_command_that_reads_images_has_the_same_options() -> None:
    assert {name for name in COMMANDS if "--data" in options_of(name)} == set(READERS)
    for name in READERS:
        assert options_of(name) >= SHARED
        assert ("--target-key" in options_of(name)) == (name in LABELS)
        assert ("--unlabelled" in options_of(name)) == (name in LABELS)


@pytest.mark.parametrize("command", READERS)
def test_skip_corrupt(command: str, networks: None, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "bee" / "2.png").write_bytes((data / "bee" / "2.png").read_bytes()[:100])
    message = fails(*words(command))
    assert "bee/2.png" in message
    assert "leave out such images with --skip-corrupt" in message
    result = run(*words(command), "--skip-corrupt", "--json")
    assert result.exit_code == 0, result.output
    assert "leaving out, of 8, 1 image that can't be read: bee/2.png" in result.stderr
    assert '"bee/2.png"' in result.stdout
    assert set(unreadable(json.loads(result.stdout))) == {"bee/2.png"}
    if command != "robustness":  # it takes a while, and prints the line of the others
        monkeypatch.setenv("COLUMNS", "250")
        again = [word.replace("out", "more") if word.startswith("out") else word for word in words(command)]
        assert "1 image that can't be read: bee/2.png" in run(*again, "--skip-corrupt").stdout


def unreadable(answer: Any) -> Iterator[str]:
    """What ``--json`` says that was left out, wherever it says so."""
    if isinstance(answer, dict):
        for key, value in answer.items():
            yield from value if key == "unreadable" else unreadable(value)


def test_a_run_names_what_it_left_out_and_its_next_command_works(networks: None, data: Path) -> None:
    (data / "bee" / "2.png").write_text("no image")
    result = run(*words("finetune"), "--skip-corrupt", "--val-split", "0.25")
    assert result.exit_code == 0, result.output
    assert "Left out: 1 image that can't be read: bee/2.png" in result.stdout
    following = result.stdout.splitlines()[-1].removeprefix("Next: ilmconvert ")
    assert run(*shlex.split(following)).exit_code == 0
    assert json.loads(Path("out/summary.json").read_text())["data"]["unreadable"] == ["bee/2.png"]
    assert "skip-corrupt: true" in Path("out/run.yaml").read_text()
    assert "bee/2.png" not in run("inspect", "out", "--json").stdout
    assert run("report", "out", "--html").exit_code == 0
    assert "bee/2.png" in Path("out/report.html").read_text()
    again = run("finetune", "--config", "out/run.yaml", "--resume", "--json")
    assert json.loads(again.stdout)["status"] == "finished"


def corrupt(data: Path) -> None:
    (data / "ant" / "0.png").write_text("no image")


def loose(data: Path) -> None:
    image(0, 0).save(data / "loose.png")


def empty(data: Path) -> None:
    (data / "cow").mkdir()


def one_class(data: Path) -> None:
    for path in (data / "bee").iterdir():
        path.unlink()
    (data / "bee").rmdir()


def flat_validation(data: Path) -> None:
    (data / "train").mkdir()
    for name in ("ant", "bee"):
        (data / name).rename(data / "train" / name)
    (data / "val").mkdir()
    image(0, 0).save(data / "val" / "0.png")


def no_images(data: Path) -> None:
    for path in list(data.rglob("*.png")):
        path.rename(path.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("spoil", "refusing"),
    [
        (corrupt, READERS),
        (no_images, READERS),
        *((each, LABELS) for each in (loose, empty, one_class, flat_validation)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_with_a_folder_is_said_in_options_of_the_command(
    spoil: Callable[[Path], None], refusing: Iterable[str], networks: None, data: Path
) -> None:
    spoil(data)
    for command in refusing:
        fails(*words(command))


@pytest.mark.parametrize("spoil", [one_class, flat_validation], ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_unlabelled_is_a_way_out_where_it_is_named(
    command: str, spoil: Callable[[Path], None], networks: None, data: Path
) -> None:
    spoil(data)
    assert "--unlabelled" in fails(*words(command))
    more = ["--against", "two.safetensors"] if command == "evaluate" else []
    assert run(*words(command), "--unlabelled", *more).exit_code == 0


@pytest.mark.parametrize(
    "name", ["nowhere", "torch/cifar1000", "torch/cifar10", "hfds/x:y:z", "wds/x", "two.safetensors"]
)
def test_data_that_are_not_there_are_said_in_options_of_the_command(name: str, networks: None) -> None:
    more = ["--data-dir", "nowhere"] if name.startswith("torch") else []
    for command in READERS:
        message = fails(*words(command, name), *more)
        assert name.partition(":")[0] in message
        assert ("--dataset-download" in message) == (name == "torch/cifar10")
        assert "download=True to" not in message


def test_a_named_dataset_lies_where_data_dir_says(networks: None, data: Path) -> None:
    (Path("place") / "all").mkdir(parents=True)
    (data / "ant").rename("place/all/ant")
    (data / "bee").rename("place/all/bee")
    torch_folder = "torch/image_folder"
    for command in READERS:
        assert run(*words(command, torch_folder), "--data-dir", "place/all", "--quiet").exit_code == 0, command
        for path in Path().glob("out*"):
            path.rename(f"{command}-{path}")


@pytest.mark.parametrize("command", ["convert", "verify", "collapse"])
def test_options_about_images_without_images_are_refused(command: str, networks: None) -> None:
    given = words(command)
    given = [word for word in given if word not in ("--data", "data")]
    assert "--skip-corrupt says how --data is read" in fails(*given, "--skip-corrupt")


#: Which commands print a message of the library, by file: those in which its options have to be.
WHERE = {
    "data/dataset.py": tuple(READERS),
    "data/folders.py --val-split": ("finetune",),
    "data/folders.py --unlabelled": LABELS,
    "data/folders.py": tuple(READERS),
    "data/open_data.py": ("finetune",),  # evaluate has its own
    "data/sample_photographs.py": (),  # of pip
    "evaluation/verify/inputs.py": ("verify",),
    "evaluation/verify/source_model.py --data": ("evaluate",),  # it names this command
    "evaluation/verify/source_model.py": ("verify", "calibrate", "apply", "export"),
    "finetune/": ("finetune",),
    "report/compare_runs.py": ("finetune",),  # it names this command
    "report/run_page.py": ("finetune",),  # a page on a run
    "export/formats.py": ("export",),
    "surgery/undo.py": ("undo",),
    "models/misfit.py": ("convert", "plan", "finetune", "evaluate", "verify", "calibrate", "apply", "export"),
    "models/weight_files.py": ("convert", "plan", "finetune", "evaluate"),
    "models/spec.py": ("convert", "plan", "finetune", "evaluate", "verify", "calibrate", "apply", "export"),
    "calibration/calibrate.py": ("calibrate",),
    "calibration/collapse.py": ("collapse",),
    "calibration/bound.py": ("convert",),
    "checkpoint/save_load.py": ("convert",),  # it names this command
}


def messages() -> Iterator[tuple[str, str]]:
    """Every option that the library names outside of the command line, with the file."""
    for path in sorted((ROOT / "ilmconvert").rglob("*.py")):
        place = path.relative_to(ROOT / "ilmconvert").as_posix()
        if place.startswith("cli/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+[a-z]", node.value):
                    yield place, option


def test_every_option_that_a_message_names_is_one_of_the_commands_that_print_it() -> None:
    found = set(messages())
    assert len(found) > 20
    for place, option in sorted(found):
        keys = [f"{place} {option}", place, place.partition("/")[0] + "/"]
        key = next((key for key in keys if key in WHERE), None)
        assert key is not None, f"say in WHERE which commands print what {place} says of {option}"
        for command in WHERE[key]:
            assert option in options_of(command) | {"--help"}, (place, option, command)
