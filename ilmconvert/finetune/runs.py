"""A run and its baselines, each in its folder."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ilmconvert.checkpoint.fingerprint import fingerprint
from ilmconvert.data.open_data import Data
from ilmconvert.finetune.devices import accelerator_for, process, track
from ilmconvert.finetune.learner import Job
from ilmconvert.finetune.networks import Start
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.result import Progress, Result
from ilmconvert.finetune.run_folder import FINISHED, RUNNING, RunFolder, versions
from ilmconvert.finetune.run_log import say_start
from ilmconvert.finetune.trainer import Trainer
from ilmconvert.models.head import number_of_classes
from ilmconvert.surgery.group_norm_baseline import baseline

if TYPE_CHECKING:
    from ilmconvert.finetune.state import Position


@dataclass(frozen=True)
class Run:
    """What is trained on what, and how; the arguments of :func:`ilmconvert.finetune.finetune`, checked and opened.

    Attributes:
        first: the networks at the start.
        data: with transforms.
        recipe: for the run and its baselines.
        config: what is written down, see :func:`ilmconvert.finetune.runs.describe`.
        progress, log_with: as in ``finetune``.
        run_file: what repeats the run, see :func:`ilmconvert.finetune.run_file.run_file`.
    """

    first: Start
    data: Data
    recipe: Recipe
    config: Mapping[str, Any]
    progress: Callable[[Progress], None] | None
    log_with: Sequence[str] | None
    run_file: str

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
        folder.write_config(self._config(name), None if name else self.run_file)
        before = folder.read_summary().get("before")
        resumed = trainer.resume()
        if trainer.accelerator.is_main_process:
            say_start(name, self.first.name, self.recipe, trainer.batches, trainer.position.step, trainer.accelerator)
        if before is None and not resumed:
            before = self._before(name, trainer)
        folder.write_summary({"status": RUNNING, "before": before})
        track(trainer.accelerator, self.recipe, trainer.position.step)
        place = Path(str(self.data.description.get("source", ""))).name  # not where it lies on this machine
        data = {**self.data.description, "source": place}
        if self.data.unreadable:
            data["unreadable"] = len(self.data.unreadable)  # names of files are nobody's business either
        provenance = {"recipe": self.recipe.to_dict(), "data": data, **({"baseline": name} if name else {})}
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
        """What the network is worth on the validation images, and its source or teacher, unless the head is new."""
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
            recipe = replace(recipe, anneal="none", anneal_to=0.0, freeze_batch_norm=name != "train-bn")
        teacher = copy.deepcopy(self.first.teacher)
        job = Job(network, recipe, self.first.head_replaced, teacher, self.first.compare_features)
        with accelerator_for(recipe, folder, log_with) as accelerator:
            yield Trainer(job, self.data, accelerator, folder, name=name, progress=self.progress)


def plan(trainer: Trainer) -> dict[str, Any]:
    """How long the run is, and which parameters train; for a dry run."""
    groups: dict[str, dict[str, Any]] = defaultdict(lambda: {"parameters": 0, "learning_rates": []})
    for group in trainer.learner.optimizer.param_groups:
        kind = groups[group["kind"]]
        kind["parameters"] += sum(p.numel() for p in group["params"])
        kind["learning_rates"].append(trainer.recipe.learning_rate * group["lr_scale"])
    for kind in groups.values():
        kind["learning_rates"] = sorted(set(kind["learning_rates"]))
    return {
        "device": str(trainer.accelerator.device),
        "processes": trainer.accelerator.num_processes,
        "batches_per_epoch": trainer.batches,
        "steps": trainer.steps,
        "parameters": sum(p.numel() for p in trainer.learner.network.parameters()),
        "trained": dict(groups),
    }


def outcome(position: Position, before: dict[str, Any] | None, epochs: int) -> dict[str, Any]:
    """Accuracy of the source, right after the conversion and in the end; the best and the last row."""
    best = next((r for r in position.rows if r["epoch"] == position.best_epoch), position.rows[-1])
    start = before or {}
    return {
        "accuracy": {
            "source": start.get("against_top1"),
            "converted": start.get("top1"),
            "fine_tuned": best["val_top1"],
        },
        "best": best,
        "last": position.rows[-1],
        "epochs": position.epoch,
        "steps": position.step,
        "stopped_early": position.epoch < epochs,
        "seconds": round(position.seconds, 3),
    }


def describe(first: Start, data: Data, recipe: Recipe, *, own_teacher: bool) -> dict[str, Any]:
    """Recipe, model and data as JSON values: what ``config.yaml`` holds, and a resumed run has to agree with."""
    model = {
        "name": first.name,
        "num_classes": number_of_classes(first.network),
        "head_replaced": first.head_replaced,
        "converted_here": first.source is not None,
        "fingerprint": fingerprint(first.source if first.source is not None else first.network),
        "teacher": fingerprint(first.teacher) if own_teacher and first.teacher is not None else None,
    }
    return {"recipe": recipe.to_dict(), "model": model, "data": dict(data.description)}
