"""Fine-tuning of converted networks: recipes, one device or many, and runs that survive a crash."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ilmconvert.errors import FineTuneError

if TYPE_CHECKING:
    from ilmconvert.finetune.batch_size import find_batch_size
    from ilmconvert.finetune.engine import finetune
    from ilmconvert.finetune.recipe import RECIPES, Recipe, get_recipe
    from ilmconvert.finetune.result import Progress, Result

__all__ = ["RECIPES", "FineTuneError", "Progress", "Recipe", "Result", "find_batch_size", "finetune", "get_recipe"]

# Imported when first asked for: recipes need no torch.
_HOMES = {
    "finetune": "engine",
    "find_batch_size": "batch_size",
    **dict.fromkeys(("RECIPES", "Recipe", "get_recipe"), "recipe"),
    **dict.fromkeys(("Progress", "Result"), "result"),
}
# What the extra of this name brings and a run can't do without.
_EXTRA = frozenset({"accelerate", "psutil", "torchmetrics"})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        message = f"fine-tuning needs {error.name}: pip install 'ilmconvert[finetune]'"
        raise FineTuneError(message) from error
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
