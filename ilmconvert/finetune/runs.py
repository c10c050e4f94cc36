"""A run and its baselines, each in its folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ilmconvert.baselines import baseline
from ilmconvert.finetune.curves import plot_curves
from ilmconvert.finetune.data import Data
from ilmconvert.finetune.devices import accelerator_for, process, track
from ilmconvert.finetune.learner import Job
from ilmconvert.finetune.loop import Trainer
from ilmconvert.finetune.prepare import Start
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.report import outcome, plan
from ilmconvert.finetune.result import Progress, Result
from ilmconvert.finetune.run_folder import FINISHED, RUNNING, RunFolder, versions


@dataclass(frozen=True)
class Guide:
    """The teacher, and whether it is followed by features."""

    network: nn.Module | None = None
    compare_features: bool = False


@dataclass(frozen=True)
class Run:
    """What is trained on what, and how; the arguments of :func:`ilmconvert.finetune.finetune`, checked and opened.

    Attributes:
        first: the networks at the start.
        data: with transforms.
        recipe: for the run and its baselines.
        guide: for distillation.
        config: what is written down, see :func:`ilmconvert.finetune.identity.describe`.
        progress, log_with: as in ``finetune``.
    """

    first: Start
    data: Data
    recipe: Recipe
    guide: Guide
    config: Mapping[str, Any]
    progress: Callable[[Progress], None] | None
    log_with: Sequence[str] | None

    def dry(self, output: Path) -> Result:
        """Everything up to the first step, without writing."""
        folder = RunFolder(output, main=False)
        folder.check(self.config, resume=False)
        with self._trainer("", folder, []) as trainer:
            loss = trainer.try_batch()
            summary = {**self.config, **plan(trainer), "first_loss": loss}
        return Result(output, None, None, None, {}, summary)

    def all(self, output: Path, baselines: Sequence[str], resume: bool) -> Result:
        """The run and its baselines, each in its folder."""
        folders = {name: RunFolder(output / "baselines" / name, main=process().is_main_process) for name in baselines}
        folders = {"": RunFolder(output, main=process().is_main_process), **folders}
        for name, folder in folders.items():
            folder.check(self._config(name), resume=resume)
        process().wait_for_everyone()  # all have looked before one writes
        results = {name: self._one(name, folder) for name, folder in folders.items()}
        own = results.pop("")
        if results:
            summary = {**own.summary, "baselines": {name: result.summary["best"] for name, result in results.items()}}
            folders[""].write_summary(summary)
            own = replace(own, summary=summary)
            if folders[""].main:
                curves = {name: folders[name].metrics for name in results}
                plot_curves(folders[""].metrics, folders[""].curves, curves)
        return own

    def _one(self, name: str, folder: RunFolder) -> Result:
        summary = folder.read_summary()
        if summary.get("status") != FINISHED:
            with self._trainer(name, folder, self.log_with) as trainer, folder.alone():
                summary = self._train(name, folder, trainer)
        best = summary["best"]
        return Result(folder.path, folder.best, folder.last, best["epoch"], best, summary)

    def _train(self, name: str, folder: RunFolder, trainer: Trainer) -> dict[str, Any]:
        folder.clear()
        folder.write_config(self._config(name))
        before = folder.read_summary().get("before")
        resumed = trainer.resume()
        if before is None and not resumed:
            before = self._before(name, trainer)
        folder.write_summary({"status": RUNNING, "before": before})
        track(trainer.accelerator, self.recipe, trainer.position.step)
        place = Path(str(self.data.description.get("source", ""))).name  # not where it lies on this machine
        provenance = {"recipe": self.recipe.to_dict(), "data": {**self.data.description, "source": place}}
        trainer.run(provenance)
        summary = {
            "status": FINISHED,
            **outcome(trainer.position, before, self.recipe.epochs),
            "before": before,
            "model": self.first.name,
        }
        summary |= {"recipe": self.recipe.name, "data": dict(self.data.description), "versions": versions()}
        folder.write_summary(summary)
        return summary

    def _before(self, name: str, trainer: Trainer) -> dict[str, Any] | None:
        """What the network is worth on the validation pictures, and its source or teacher, unless the head is new."""
        if self.first.head_replaced or trainer.val_loader is None:
            return None
        others = {"source": None if name else self.first.source, "teacher": trainer.against}
        kind = next((kind for kind, network in others.items() if network is not None), None)
        found = trainer.evaluate(against=others.get(kind or ""))
        return None if found is None else {**found.to_dict(), "against": kind}

    def _config(self, name: str) -> dict[str, Any]:
        return {**self.config, "baseline": name} if name else dict(self.config)

    @contextmanager
    def _trainer(self, name: str, folder: RunFolder, log_with: Sequence[str] | None) -> Iterator[Trainer]:
        recipe, network = self.recipe, copy.deepcopy(self.first.network)
        if name:
            assert self.first.source is not None
            network = baseline(self.first.source, name)
            recipe = replace(recipe, anneal="none", freeze_batch_norm=name != "train-bn")
        teacher = copy.deepcopy(self.guide.network)
        job = Job(network, recipe, self.first.head_replaced, teacher, self.guide.compare_features)
        with accelerator_for(recipe, folder, log_with) as accelerator:
            yield Trainer(job, self.data, accelerator, folder, name=name, progress=self.progress)
