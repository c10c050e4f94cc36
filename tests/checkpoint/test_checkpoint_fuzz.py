"""A damaged or hostile checkpoint ends in a model or in one line, cheaply, and touches nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ilmconvert.checkpoint.build_budget import Budget, build_within_budget
from ilmconvert.checkpoint.safetensors_io import Entry
from ilmconvert.models.create import ModelSpec, create_model
from ilmconvert.models.norm_counts import stored_counts
from ilmconvert.surgery.module_state import copy_of
from tests.fuzz.__main__ import run, warm
from tests.fuzz.cases import Valid, try_case, try_file
from tests.fuzz.watch import watching

pytestmark = pytest.mark.filterwarnings("ignore")  # what constructors say of odd arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def valid(folder: Path) -> list[Valid]:
    return warm(folder)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64), which=st.integers(0, 3))
@example(seed=339, which=3)  # 60,000 tensors of no elements in the header
@example(seed=554, which=2)  # no spec at all
@example(seed=2092, which=0)  # a line break in the name of an argument
def test_damaged_files_end_in_a_model_or_in_one_line(valid: list[Valid], folder: Path, seed: int, which: int) -> None:
    assert try_case(valid[which], seed, folder).kind in ("loaded", "refused")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_at_all(valid: list[Valid], folder: Path, data: st.DataObject) -> None:
    path = folder / "bytes.safetensors"
    text = data.draw(st.binary(max_size=200))
    path.write_bytes(data.draw(st.sampled_from((text, len(text).to_bytes(8, "little") + text))))
    assert try_file(path, None).kind == "refused"


@pytest.mark.slow
def test_twenty_thousand(tmp_path: Path) -> None:
    found = run(range(20_000), tmp_path, tmp_path / "broken.safetensors")
    assert found["cases"] == 20_000
    assert min(found["loaded"], found["refused"]) > 1000  # type: ignore[type-var]


def test_the_watch_sees(tmp_path: Path) -> None:
    """What the other tests rely on: it notes and refuses what it should, and measures memory."""
    with watching(tmp_path) as watch:
        for forbidden in (Path("/etc/hostname").read_text, lambda: socket.socket(), lambda: (tmp_path / "x").mkdir()):
            with pytest.raises(PermissionError):
                forbidden()
        block = bytearray(50 << 20)
    assert [text.partition(" ")[0] for text in watch.touched] == ["open", "socket.__new__", "os.mkdir"]
    assert watch.memory >= len(block)


@pytest.mark.slow
def test_every_model_of_the_zoos_is_within_the_budget_of_its_own_file() -> None:
    refused = {}
    for name in (name for name, count in stored_counts().items() if count):
        spec = ModelSpec(*_library(name))
        model = build_within_budget(spec, Budget(10**9, 10**9, 1 << 50, 10**9))
        # A conversion to plain layers leaves the fewest tensors: weight and bias of a BatchNorm's five.
        entries = {
            key: Entry(tuple(t.shape), t.dtype)
            for key, t in model.state_dict().items()
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        }
        try:
            build_within_budget(spec, Budget.of(entries))
        except Exception as error:
            refused[name] = str(error)
    assert refused == {}


def _library(name: str) -> tuple[str, str]:
    library, slash, bare = name.partition("/")
    return (library, bare) if slash else ("timm", name)


def test_a_build_within_budget_has_the_shapes_and_types_of_the_model() -> None:
    for name in ("test_resnet", "test_vit", "torchvision/regnet_y_400mf"):
        built = copy_of(create_model(name, weights="none"), values=False).state_dict()
        spec = ModelSpec(*_library(name))
        bounded = build_within_budget(
            spec, Budget.of({k: Entry(tuple(t.shape), t.dtype) for k, t in built.items()})
        ).state_dict()
        assert {k: (t.shape, t.dtype) for k, t in bounded.items()} == {k: (t.shape, t.dtype) for k, t in built.items()}
