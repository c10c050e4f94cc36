"""What ``convert`` and ``plan`` can be asked for, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ilmconvert._constants import INITS, TARGETS, Target

DEFAULT_NUM_GROUPS = 32
DEFAULT_META_SIZE = 16
# The arguments that are for some targets only, with what they are where nothing was said.
_OPTIONS = {"key_group_size": DEFAULT_META_SIZE, "reduction": DEFAULT_META_SIZE, "restore_bound": None}


@dataclass(frozen=True)
class Settings:
    """What ``convert`` and ``plan`` were asked for; see :func:`ilmconvert.convert`."""

    to: str = "ilm_gn"
    init: str = "identity"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    num_groups: int = DEFAULT_NUM_GROUPS
    key_group_size: int = DEFAULT_META_SIZE
    reduction: int = DEFAULT_META_SIZE
    restore_bound: float | None = None
    first_only: bool = False

    def __post_init__(self) -> None:
        _one_of("to", self.to, tuple(TARGETS))
        _one_of("init", self.init, INITS)
        for name in ("num_groups", "key_group_size", "reduction"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer")
        if self.target.groups != "several" and self.num_groups != DEFAULT_NUM_GROUPS:
            several = " and ".join(repr(name) for name, target in TARGETS.items() if target.groups == "several")
            raise ValueError(f"num_groups={self.num_groups} only applies to {several}; {self.to!r} fixes the groups")
        self._check_target()
        if self.restore_bound is not None and not self.restore_bound > 0:
            raise ValueError(f"restore_bound={self.restore_bound} must be positive, or None for no bound")
        if self.restore_bound is not None and self.init != "identity":
            raise ValueError("restore_bound needs init='identity': other layers have no restoring path")

    @property
    def target(self) -> Target:
        """What is known of ``to``."""
        return TARGETS[self.to]

    @property
    def is_exact(self) -> bool:
        """Whether the conversion changes nothing that the network computes."""
        return self.init == "identity" and self.restore_bound is None

    def _check_target(self) -> None:
        """Whether the target has what is asked of it."""
        if self.init not in self.target.starts:
            starts = " or ".join(self.target.starts)
            exact = ", ".join(name for name, target in TARGETS.items() if self.init in target.starts)
            raise ValueError(f"init={self.init!r} is for {exact}: {self.to!r} starts from {starts} only")
        for name in _OPTIONS:
            if getattr(self, name) != _OPTIONS[name] and name not in self.target.options:
                others = ", ".join(to for to, target in TARGETS.items() if name in target.options)
                raise ValueError(
                    f"{name}={getattr(self, name)} is for {others}; the layer of {self.to!r} has no such part"
                )

    def names(self, names: Sequence[str]) -> bool:
        """Whether ``include`` gives one of these names in full, without a wildcard."""
        return any(name in (self.include or ()) for name in names)

    def reason_to_skip(self, names: Sequence[str]) -> str | None:
        """None if include and exclude let a module of these names through, else the reason why not."""
        for pattern in self.exclude:
            if any(fnmatchcase(name, pattern) for name in names):
                return f"excluded by {pattern!r}"
        if self.include is not None and not any(fnmatchcase(n, p) for n in names for p in self.include):
            return "not matched by include"
        return None


def default_init(to: str) -> str:
    """What ``init`` is where nothing was said: the exact start where there is one.

    >>> default_init("ilm_gn"), default_init("gn")
    ('identity', 'moments')
    """
    return TARGETS[to].starts[0] if to in TARGETS else INITS[0]


def as_patterns(patterns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """One pattern or several as a tuple."""
    if patterns is None:
        return None
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} isn't one of {', '.join(map(repr, allowed))}")
