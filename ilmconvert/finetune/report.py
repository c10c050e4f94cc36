"""What is said of a run: before it, after each epoch, and in the end."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ilmconvert.evaluate import Evaluation

if TYPE_CHECKING:
    from ilmconvert.finetune.learner import Learner
    from ilmconvert.finetune.loop import Trainer
    from ilmconvert.finetune.state import Position


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
