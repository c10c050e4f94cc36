"""The run of one network: epochs, validation, and what is written when."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator, skip_first_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ilmconvert.data.open_data import Data
from ilmconvert.evaluation.accuracy import Evaluation, evaluate
from ilmconvert.finetune.learner import Job, Learner
from ilmconvert.finetune.loaders import loaders
from ilmconvert.finetune.meter import Meter, means
from ilmconvert.finetune.recipe import Recipe
from ilmconvert.finetune.result import Progress
from ilmconvert.finetune.run_folder import RunFolder
from ilmconvert.finetune.run_log import EpochLog
from ilmconvert.finetune.state import Position, StateFolder


class Trainer:
    """A run on this process, from wherever it stands to its end.

    Args:
        job: what is trained.
        data: with transforms.
        accelerator: of this run alone.
        folder: where the run goes.
        name: "" for the run itself, else that of the baseline.
        progress: called after every batch, on the main process.
    """

    recipe: Recipe
    accelerator: Accelerator
    folder: RunFolder
    batches: int
    learner: Learner
    steps: int
    states: StateFolder
    position: Position
    meter: Meter

    def __init__(
        self,
        job: Job,
        data: Data,
        accelerator: Accelerator,
        folder: RunFolder,
        *,
        name: str = "",
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.recipe, self.accelerator, self.folder = job.recipe, accelerator, folder
        self._name, self._progress = name, progress
        train, val = loaders(data, job.recipe, accelerator)
        self.train_loader: DataLoader[Any] = accelerator.prepare(train)
        self.val_loader: DataLoader[Any] | None = None if val is None else accelerator.prepare(val)
        self.batches = len(self.train_loader)
        self.learner = Learner(job, accelerator, math.ceil(self.batches / job.recipe.grad_accum))
        self.steps = self.learner.steps_per_epoch * job.recipe.epochs
        self.states = StateFolder(folder.states, accelerator)
        self.position = Position()
        self.meter = Meter(accelerator)
        self._updated = False
        # without labels the teacher is what the network is held against
        self.against = None if data.labelled or job.compare_features else self.learner.teacher

    def resume(self) -> bool:
        """Go back to the latest complete state; False where there is none."""
        self.states.clear()
        position = self.states.load_latest(self.learner.ema)
        if position is not None:
            self.position = position
            self.meter.restore(position.sums)
        return position is not None

    def run(self, provenance: Mapping[str, Any]) -> None:
        """Train to the last epoch, or until the patience is at its end.

        Raises:
            FineTuneError: the loss isn't finite any more, or something can't be written.
        """
        self.folder.write_metrics(self.position.rows)
        log = EpochLog(self._name, self.position.epoch, self.recipe.epochs)
        while self.position.epoch < self.recipe.epochs and not self._out_of_patience():
            self._train_epoch()
            best = self._finish_epoch(provenance)
            if self.accelerator.is_main_process:
                log.say(self.position.rows[-1], best=best and self.val_loader is not None)
                log.warn_of_death(self.learner.below_head)

    def evaluate(self, against: nn.Module | None = None, model: nn.Module | None = None) -> Evaluation | None:
        """``model`` (by default the network as it would be kept) on the validation images; None without any."""
        if self.val_loader is None:
            return None
        model = self.learner.evaluated if model is None else model
        return evaluate(model, self.val_loader, against=against, amp=self.recipe.amp, accelerator=self.accelerator)

    def try_batch(self) -> float:
        """Forward and backward of the first batch, without a step; the loss."""
        self.learner.train()
        x, target = next(iter(self.train_loader))
        return self.learner.backward(x, target, batch=0)[0].item()

    def _train_epoch(self) -> None:
        position, loader = self.position, self.train_loader
        loader.set_epoch(position.epoch)  # type: ignore[attr-defined]
        self.learner.train()
        self.meter.start(position.seconds)
        for x, target in skip_first_batches(loader, position.batch) if position.batch else loader:
            self._train_batch(x, target)
            position.seconds = self.meter.tick(len(x))
            self._report()
            self._save_within_epoch()

    def _train_batch(self, x: Tensor, target: Tensor) -> None:
        position = self.position
        loss, logits, updated = self.learner.learn(x, target, batch=position.seen, step=position.step)
        self._updated = updated
        position.batch += 1
        position.seen += 1
        position.step += updated
        self.meter.add(loss, logits, target)

    def _report(self) -> None:
        batch = self.position.batch
        if not self.accelerator.is_main_process or not self.meter.due(batch, last=batch == self.batches):
            return
        loss, top1 = means(self.meter.local(), self.position.step)
        if self._progress is None:
            return
        speed = self.meter.speed
        left = self.recipe.epochs * self.batches - self.position.seen
        self._progress(
            Progress(
                run=self._name,
                epoch=self.position.epoch + 1,
                epochs=self.recipe.epochs,
                step=self.position.step,
                steps=self.steps,
                loss=loss,
                top1=None if self._mixes else top1,
                lr=self.learner.lr,
                images_per_second=speed,
                eta=left * self.recipe.batch_size / speed if speed else None,
            )
        )

    def _save_within_epoch(self) -> None:
        every, position = self.recipe.save_every, self.position
        if every and self._updated and position.step % every == 0 and position.batch < self.batches:
            position.sums = self.meter.gathered()
            self.states.save(position, self.learner.ema)

    def _finish_epoch(self, provenance: Mapping[str, Any]) -> bool:
        """Validate, write down, keep the checkpoints, and save the state; in this order, so that all can be redone.

        Returns whether this epoch is the best so far.
        """
        position = self.position
        loss, top1 = means(self.meter.gathered(), position.step)
        position.epoch, position.batch, position.sums = position.epoch + 1, 0, []
        last = position.epoch == self.recipe.epochs
        evaluated = self.evaluate(self.against) if last or position.epoch % self.recipe.eval_every == 0 else None
        best = self._judge(evaluated)
        train = loss, None if self._mixes else top1
        position.rows.append({**row(position, self.learner, train, evaluated), "images_per_second": self.meter.speed})
        network = self.learner.kept_network(position.step)
        self.folder.write_checkpoints(
            network, {**provenance, "epoch": position.epoch, "step": position.step}, best=best
        )
        self.folder.write_metrics(position.rows)
        self.accelerator.log({k: v for k, v in position.rows[-1].items() if v is not None}, step=position.step)
        self.meter.reset()
        self.states.save(position, self.learner.ema)
        return best

    def _judge(self, evaluated: Evaluation | None) -> bool:
        """Whether this is the best so far: never before a path that is to go is gone, always without validation."""
        position = self.position
        if not self.learner.annealing.keeps(position.step):
            return False
        if self.val_loader is None:
            position.best_epoch = position.epoch
            return True
        if evaluated is None:
            return False
        value = _value(evaluated)
        if position.best is not None and not _is_better(value, evaluated.loss, position.best, position.best_loss):
            position.stale += 1
            return False
        position.best, position.best_loss = value, evaluated.loss
        position.best_epoch, position.stale = position.epoch, 0
        return True

    def _out_of_patience(self) -> bool:
        return self.recipe.patience is not None and self.position.stale >= self.recipe.patience

    @property
    def _mixes(self) -> bool:
        return bool(self.recipe.mixup or self.recipe.cutmix)


def _value(evaluated: Evaluation) -> float:
    """What decides which epoch is the best: accuracy, or without labels the agreement with the teacher."""
    for value in (evaluated.top1, evaluated.agreement):
        if value is not None:
            return value
    return 0.0


def _is_better(value: float, loss: float | None, best: float, best_loss: float | None) -> bool:
    """Whether a value is more than the best, or as much with a lower validation loss."""
    if value != best or loss is None or best_loss is None:
        return value > best
    return loss < best_loss


def row(
    position: Position, learner: Learner, train: tuple[float, float | None], found: Evaluation | None
) -> dict[str, Any]:
    """A line of ``metrics.csv``, without the speed; ``train`` holds the mean loss and the accuracy."""
    values = found.to_dict() if found else {}
    annealing = learner.annealing
    return {
        "epoch": position.epoch,
        "step": position.step,
        "lr": learner.lr,
        "restore": annealing.strength(position.step) if annealing else None,
        "train_loss": train[0],
        "train_top1": train[1],
        **{f"val_{key}": values.get(key) for key in ("loss", "top1", "top5", "agreement")},
        "seconds": round(position.seconds, 3),
    }
