"""A training step on an accelerator doesn't wait for it: nothing is read back, and copies go on beside the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ilmconvert.errors import FineTuneError
from ilmconvert.finetune import Recipe, trainer
from ilmconvert.finetune.devices import accelerator_for, on_device
from ilmconvert.finetune.meter import Meter
from ilmconvert.finetune.run_folder import RunFolder
from tests.finetune.finetune_jobs import bars, run

# Operations whose results Python needs, or whose shapes depend on values: on a GPU each of them waits for it.
WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "argwhere"}
READ = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")

STEPS = {
    "plain": {},
    "clipped, averaged, accumulated": {"clip_grad": 1.0, "ema_decay": 0.9, "grad_accum": 2},
    "mixed": {"mixup": 0.2, "cutmix": 0.2},
    "smoothed": {"smoothing": 0.1, "channels_last": True},
    "distilled": {"distill": 0.5},
    "annealed": {"recipe": "anneal"},
    "frozen at first": {"freeze_epochs": 0.5},
}
# Adam counts its steps in tensors on the CPU and reads them there, for which no GPU is waited.
STEPS_ON_A_GPU = {**STEPS, "AdamW": {"opt": "adamw", "lr": 0.001}}


class Waits(TorchDispatchMode):
    """Writes down what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        if name in WAIT or any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Reads of values, in Python and below it."""
    with Waits() as waits:
        for name in READ:
            original = getattr(torch.Tensor, name)

            def read(self: Any, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                waits.found.append(_name)
                return _original(self, *args, **kwargs)

            patch.setattr(torch.Tensor, name, read)
        yield waits.found


def steps_counted(patch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any]) -> list[list[str]]:
    """What each training step of a short run waits for, looks at the sums left out."""
    found: list[list[str]] = []
    original = trainer.Trainer._train_batch

    def watched(self: Any, *args: Any) -> None:
        with pytest.MonkeyPatch.context() as inner, counted(inner) as reads:
            original(self, *args)
        found.append(list(reads))

    patch.setattr(trainer.Trainer, "_train_batch", watched)
    run(tmp_path, **{"data": bars(16), "epochs": 1, "batch_size": 4, **settings})
    return found


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS)
def test_a_step_reads_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    found = steps_counted(monkeypatch, tmp_path, settings)
    assert len(found) == 4
    assert found[2:] == [[]] * 2, "the first steps may set things up"


def test_a_read_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: a loop that prints its loss every step waits every step."""
    original = Meter.add

    def printing(self: Any, loss: torch.Tensor, *rest: Any) -> None:
        if loss.item() > 0 and bool(loss.isfinite()):
            original(self, loss, *rest)

    monkeypatch.setattr(Meter, "add", printing)
    assert {"item", "__bool__"} <= set(steps_counted(monkeypatch, tmp_path, {})[-1])


def test_the_sums_are_read_every_tenth_batch(tmp_path: Path) -> None:
    with accelerator_for(Recipe(amp="no"), RunFolder(tmp_path), []) as accelerator:
        meter = Meter(accelerator)
        accelerator.state.device = torch.device("cuda")
        assert [batch for batch in range(1, 34) if meter.due(batch, last=batch == 33)] == [10, 20, 30, 33]
        accelerator.state.device = torch.device("cpu")


def test_copies_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loaders: pinned memory, where there is a GPU, and copies that don't wait."""
    from ilmconvert.finetune.loaders import loaders

    with accelerator_for(Recipe(amp="no"), RunFolder(tmp_path), []) as accelerator:
        assert accelerator.dataloader_config.non_blocking
        accelerator.state.device = torch.device("cuda")
        made = loaders(bars(8), Recipe(workers=1), accelerator)
        accelerator.state.device = torch.device("cpu")
        assert all(loader is not None and loader.pin_memory and loader.num_workers == 1 for loader in made)


def test_what_a_recipe_leaves_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Recipe().amp == "auto"
    assert on_device(Recipe(), "cpu").amp == on_device(Recipe(), "mps").amp == "no"
    for able, amp in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert on_device(Recipe(), "cuda").amp == amp
    assert on_device(Recipe(amp="no"), "cuda").amp == "no"
    assert on_device(Recipe(cuda_graphs=True), "cuda").cuda_graphs


def test_cuda_graphs_without_cuda(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match="CUDA graphs are for CUDA, and this run is on cpu; leave out cuda_graphs"):
        run(tmp_path / "run", cuda_graphs=True)
    assert not (tmp_path / "run").exists()


def test_the_run_writes_down_what_it_took(tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=1)
    assert "amp: 'no'" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("settings", STEPS_ON_A_GPU.values(), ids=STEPS_ON_A_GPU)
def test_a_step_on_a_gpu_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    original = trainer.Trainer._train_batch
    done = 0

    def strict(self: Any, *args: Any) -> None:
        nonlocal done
        done += 1
        torch.cuda.set_sync_debug_mode("error" if done > 2 else "default")
        try:
            original(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer.Trainer, "_train_batch", strict)
    run(tmp_path, **{"data": bars(16), "epochs": 2, "batch_size": 4, **settings})
    assert done == 8


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # the compiler's advice, and a matter of taste
def test_cuda_graphs_end_where_the_plain_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from tests.helpers import relative_error

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the convolutions' ten bits of mantissa
    settings: dict[str, Any] = {"data": bars(32), "epochs": 2, "batch_size": 8, "amp": "no"}
    states = [load_file(run(tmp_path / str(g), cuda_graphs=g, **settings).last) for g in (False, True)]
    assert max(relative_error(states[1][key], t) for key, t in states[0].items() if t.any()) < 1e-3
