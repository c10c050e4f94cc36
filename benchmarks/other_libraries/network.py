"""What is known of one network: how it is built with random weights, small, and what it takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        library: the distribution that it comes from.
        path: ``module:name`` of what builds it.
        args, kwargs: of the call. A ``path`` of transformers is called with the configuration ``kwargs``.
        shapes: of the inputs, one tensor each.
        wrap: changes the random tensors to the call's arguments, if they aren't just these.
        config: ``module:name`` of the configuration that ``kwargs`` are for, if there is one.
    """

    library: str
    path: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 64, 64),)
    wrap: Callable[..., tuple[Any, ...]] | None = None
    config: str | None = None

    def build(self) -> nn.Module:
        """The network in evaluation mode, with random weights."""
        kwargs = {name: value() if callable(value) else value for name, value in self.kwargs.items()}
        if self.config is not None:
            made = load(self.path)(load(self.config)(**kwargs))
        else:
            made = load(self.path)(*self.args, **kwargs)
        model: nn.Module = made
        return model.eval()

    def run(self, model: nn.Module, dtype: torch.dtype) -> Any:
        """What ``model`` makes of random inputs, drawn from torch's own generator."""
        tensors = [torch.randn(shape).to(dtype) for shape in self.shapes]
        return model(*(self.wrap(*tensors) if self.wrap else tensors))


def load(path: str) -> Any:
    """What ``module:name.name`` names."""
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


NETWORKS: dict[str, Network] = {}


def add(library: str, path: str, *args: Any, called: str | None = None, **more: Any) -> None:
    """Put one network into :data:`NETWORKS`, under the library's and its own name."""
    shapes, wrap, config = more.pop("shapes", ((2, 3, 64, 64),)), more.pop("wrap", None), more.pop("config", None)
    name = called or path.rpartition(":")[2].rpartition(".")[2]
    NETWORKS[f"{library}/{name}"] = Network(library, path, args, more, shapes, wrap, config)
