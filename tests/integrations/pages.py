"""The pages of docs/integrations, run block by block as a reader would paste them, and the assertions that they share.

The first block of a page builds ``source``. A test randomises its norms before it goes on, since a fresh network would
hide a wrong conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilmconvert import ILMNorm
from tests.helpers import TOLERANCE, relative_error

PAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "integrations"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks in one language, each after empty lines, so that a traceback has the page's line numbers."""
    text = (PAGES / f"{page}.md").read_text()
    found = [m for m in _BLOCK.finditer(text) if m[1] == language]
    assert found, f"{page}.md holds no {language}"
    return ["\n" * text.count("\n", 0, m.start(2)) + m[2] for m in found]


class Page:
    """A page whose Python blocks share their names.

    Args:
        name: the page, without ``.md``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.names: dict[str, Any] = {"__name__": name}
        self._left = iter(blocks(name, "python"))

    def run_next(self) -> dict[str, Any]:
        """Run one block; the names that all blocks so far have left."""
        return self._run(next(self._left))

    def run_rest(self) -> dict[str, Any]:
        """Run all blocks that are left."""
        for block in self._left:
            self._run(block)
        return self.names

    def _run(self, block: str) -> dict[str, Any]:
        exec(compile(block, f"{self.name}.md", "exec"), self.names)
        return self.names


def assert_same(got: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> None:
    """The outputs are equal up to the rounding of float32."""
    assert relative_error(got, expected) <= TOLERANCE[torch.float32]


def evaluate(model: nn.Module, *inputs: Any) -> Any:
    """What ``model`` computes in evaluation mode; the mode it was in comes back."""
    training = model.training
    with torch.no_grad():
        result = model.eval()(*inputs)
    model.train(training)
    return result


def norms(model: nn.Module) -> Iterator[ILMNorm]:
    """The ILM Norms of ``model``."""
    return (module for module in model.modules() if isinstance(module, ILMNorm))


def assert_norms_learnt(trained: nn.Module, start: nn.Module) -> None:
    """Every ILM Norm of ``trained`` has a gain and a shift that differ from those in ``start``."""
    pairs = list(zip(norms(trained), norms(start), strict=True))
    assert pairs
    for new, old in pairs:
        for name in ("weight", "bias"):
            assert not torch.equal(getattr(new, name).detach().cpu(), getattr(old, name).detach()), name
        for name in ("ref_mean", "ref_std"):
            if getattr(new, name) is not None:
                assert torch.equal(getattr(new, name).detach().cpu(), getattr(old, name).detach()), name
