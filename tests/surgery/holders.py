"""Networks that hold a norm in more places than torch registers it in, and call it by one of them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

CHANNELS = 16


class Pair(NamedTuple):
    norm: nn.Module
    scale: float


@dataclass(frozen=True)
class Settings:
    norm: nn.Module


class Slotted:
    __slots__ = ("norm",)

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm


class Holding(nn.Module):
    """A norm that is registered once, and called through another place that holds it.

    Args:
        hold: makes what holds the norm, from the norm.
        take: gives the norm back, from that.
    """

    def __init__(self, hold: Callable[[nn.Module], Any], take: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.block = nn.Sequential(nn.ReLU())
        self.block.__dict__["held"] = hold(self.norm)
        self.__dict__["take"] = take

    @property
    def held(self) -> nn.Module:
        return self.take(self.block.held)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.held(self.conv(x))


#: By name, what makes the holder, what takes the norm out of it, and the path by which messages name it.
HOLDERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], nn.Module], str]] = {
    "attribute": (lambda norm: norm, lambda held: held, "block.held"),
    "list": (lambda norm: [norm], lambda held: held[0], "block.held[0]"),
    "dict": (lambda norm: {"n": norm}, lambda held: held["n"], "block.held['n']"),
    "tuple": (lambda norm: (1, norm), lambda held: held[1], "block.held[1]"),
    "named tuple": (lambda norm: Pair(norm, 1.0), lambda held: held.norm, "block.held[0]"),
    "nested": (lambda norm: [{"a": ([norm], 2)}], lambda held: held[0]["a"][0][0], "block.held[0]['a'][0][0]"),
    "nested tuples": (lambda norm: ((norm,), [1]), lambda held: held[0][0], "block.held[0][0]"),
    "deque": (lambda norm: deque([None, norm]), lambda held: held[1], "block.held[1]"),
    "set": (lambda norm: {norm}, lambda held: next(iter(held)), "block.held (an element)"),
    "key of a dict": (lambda norm: {norm: 1}, lambda held: next(iter(held)), "block.held (the key BatchNorm2d)"),
    "partial": (lambda norm: partial(_call, norm), lambda held: held.args[0], "block.held (a functools.partial)"),
    "object": (Settings, lambda held: held.norm, "block.held.norm"),
    "object with slots": (Slotted, lambda held: held.norm, "block.held.norm"),
    "iterator": (lambda norm: iter([norm] * 99), next, "block.held (an iterator)[0]"),
    "attribute of an empty dict": (
        lambda norm: _with_attribute(OrderedDict(), norm),
        lambda held: held.norm,
        "block.held.norm",
    ),
    "unregistered module": (lambda norm: [nn.Sequential(norm)], lambda held: held[0][0], "block.held[0].0"),
}


def _call(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return norm(x)


def _with_attribute(holder: Any, norm: nn.Module) -> Any:
    holder.norm = norm
    return holder


def holding(name: str) -> Holding:
    """One of ``HOLDERS`` in evaluation mode."""
    hold, take, _ = HOLDERS[name]
    torch.manual_seed(0)
    return Holding(hold, take).eval()


def closing_over(norm: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that holds the norm where nothing can be written."""
    return lambda x: norm(x)
