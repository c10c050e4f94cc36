"""Devices, precision, processes and trackers: all of them accelerate's."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    LoggerType,
    ProjectConfiguration,
    parse_flag_from_env,
)

from ilmconvert.errors import FineTuneError
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.run_folder import RunFolder

# Where the package isn't called as accelerate calls the tracker.
_TRACKER_PACKAGES = {"comet_ml": "comet-ml"}


def process() -> PartialState:
    """This process among those of the run, as the launcher says."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def on_device(recipe: Recipe, kind: str) -> Recipe:
    """The recipe with what it leaves to the device: ``amp="auto"`` is bf16 on a GPU that has it, and "no" elsewhere.

    Args:
        recipe: isn't changed.
        kind: the type of a ``torch.device``.

    Raises:
        FineTuneError: CUDA graphs without CUDA, or fp16 on a CPU.

    >>> on_device(Recipe(), "cpu").amp
    'no'
    """
    if recipe.cuda_graphs and kind != "cuda":
        raise FineTuneError(
            f"CUDA graphs are for CUDA, and this run is on {kind}; leave out cuda_graphs, or use compile"
        )
    if recipe.amp == "fp16" and kind == "cpu":
        raise FineTuneError("fp16 is for accelerators; on the CPU use amp bf16 or no")
    if recipe.amp != "auto":
        return recipe
    # Emulated, it would be slower than float32.
    has_bf16 = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return replace(recipe, amp="bf16" if has_bf16 else "no")


@contextmanager
def accelerator_for(recipe: Recipe, folder: RunFolder, log_with: Sequence[str] | None) -> Iterator[Accelerator]:
    """An accelerator of its own for one run; the caller's, if there is one, is as it was afterwards.

    Raises:
        FineTuneError: an average of weights or a tracker that can't be had here.
    """
    with _separate_state():
        accelerator = Accelerator(
            mixed_precision=recipe.amp,
            gradient_accumulation_steps=recipe.grad_accum,
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
            project_config=ProjectConfiguration(project_dir=str(folder.path), logging_dir=str(folder.logs)),
            log_with=trackers(log_with) or None,
        )
        if recipe.ema_decay is not None and accelerator.distributed_type == DistributedType.FSDP:
            raise FineTuneError("an average of the weights needs whole weights; leave out ema_decay with FSDP")
        try:
            yield accelerator
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
            if accelerator.device.type != "cpu":  # the next run needs the memory; collecting garbage takes a while
                accelerator.free_memory()


def track(accelerator: Accelerator, recipe: Recipe, step: int) -> None:
    """Start the trackers; from ``step`` on, what an earlier attempt logged is void."""
    settings = {key: value for key, value in recipe.to_dict().items() if isinstance(value, (bool, int, float, str))}
    accelerator.init_trackers("finetune", config=settings, init_kwargs={"tensorboard": {"purge_step": step + 1}})


def trackers(wanted: Sequence[str] | None) -> list[str]:
    """accelerate's names of trackers; by default TensorBoard where it is installed.

    >>> trackers([])
    []
    """
    if wanted is None:
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in wanted:
        if name not in available:
            raise FineTuneError(_no_tracker(name, available))
    return list(wanted)


def _no_tracker(name: str, available: Sequence[str]) -> str:
    """Install it, or write another name."""
    known = [str(kind.value) for kind in LoggerType if kind != LoggerType.ALL]
    if name in known:
        return f"the tracker {name} isn't installed; pip install {_TRACKER_PACKAGES.get(name, name)}"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"installed are {', '.join(available) or 'none'}"
    return f"unknown tracker {name!r}; {hint}"


@contextmanager
def _separate_state() -> Iterator[None]:
    """accelerate keeps precision and accumulation in one place a process: a second run may need others."""
    kept = [(cls, dict(cls._shared_state)) for cls in (AcceleratorState, GradientState)]
    for cls, _ in kept:
        cls._shared_state.clear()
    try:
        yield
    finally:
        for cls, state in kept:
            cls._shared_state.clear()
            cls._shared_state.update(state)
