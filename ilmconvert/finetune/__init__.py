"""Fine-tuning of converted networks: recipes, one device or many, and runs that survive a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ilmconvert._constants import lazy_attributes
from ilmconvert.errors import FineTuneError

if TYPE_CHECKING:
    from ilmconvert.finetune.batch_size import find_batch_size
    from ilmconvert.finetune.engine import finetune
    from ilmconvert.finetune.recipe import RECIPES, Recipe, get_recipe
    from ilmconvert.finetune.result import Progress, Result

__all__ = ["RECIPES", "FineTuneError", "Progress", "Recipe", "Result", "find_batch_size", "finetune", "get_recipe"]

# Imported when first asked for: recipes need no torch.
_get, __dir__ = lazy_attributes(
    __name__,
    {
        "batch_size": "find_batch_size",
        "engine": "finetune",
        "recipe": "RECIPES Recipe get_recipe",
        "result": "Progress Result",
    },
)
# What the extra of this name brings and a run can't do without.
_EXTRA = frozenset({"accelerate", "psutil", "torchmetrics"})


def __getattr__(name: str) -> Any:
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        message = f"fine-tuning needs {error.name}: pip install 'ilmconvert[finetune]'"
        raise FineTuneError(message) from error
