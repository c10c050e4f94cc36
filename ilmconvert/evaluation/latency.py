"""What one forward pass costs, before and after."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ilmconvert.surgery.module_state import evaluating

REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Parameters, and the time of one forward pass; times of one call compare with each other only.

    Attributes:
        source_parameters, converted_parameters: numbers of parameters.
        source_seconds, converted_seconds: medians over passes that alternate between the models.
        batch_size: images in a pass.
        device: such as "cpu, 2 threads".
    """

    source_parameters: int
    converted_parameters: int
    source_seconds: float
    converted_seconds: float
    batch_size: int
    device: str

    @property
    def time_ratio(self) -> float:
        """The converted model's time over the source's."""
        return self.converted_seconds / self.source_seconds

    @property
    def parameter_ratio(self) -> float:
        """The converted model's number of parameters over the source's (1 for models without any)."""
        return self.converted_parameters / self.source_parameters if self.source_parameters else 1.0


def forward_cost(
    source: nn.Module,
    converted: nn.Module,
    source_inputs: tuple[Any, ...],
    inputs: tuple[Any, ...],
    *,
    batch_size: int,
    repeats: int = REPEATS,
) -> Cost:
    """Time both models in turns, after one pass of each that isn't counted."""
    where = next((p.device for p in converted.parameters()), torch.device("cpu"))
    passes = {"source": (source, source_inputs), "converted": (converted, inputs)}
    times: dict[str, list[float]] = {name: [] for name in passes}
    with evaluating(source, converted), torch.inference_mode():
        for turn in range(repeats + 1):
            for name, (model, args) in passes.items():
                start = time.perf_counter()
                model(*args)
                if where.type != "cpu":
                    torch.accelerator.synchronize(where)
                if turn:
                    times[name].append(time.perf_counter() - start)
    threads = torch.get_num_threads()
    device = f"cpu, {threads} thread{'' if threads == 1 else 's'}" if where.type == "cpu" else str(where)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    before, after = (sum(p.numel() for p in model.parameters()) for model in (source, converted))
    return Cost(before, after, seconds["source"], seconds["converted"], batch_size, device)
