"""The plan: what would become of every norm in a model, and why. Reads, never writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ilmconvert._constants import shown_by
from ilmconvert.nn import ILMNorm
from ilmconvert.surgery import refuse_wrapped
from ilmconvert.surgery.plan_entry import ALREADY_CONVERTED, PlanEntry, decide, loose
from ilmconvert.surgery.settings import DEFAULT_NUM_GROUPS, Settings, as_patterns, default_init
from ilmconvert.surgery.sources import find_source, reason_to_skip
from ilmconvert.surgery.surroundings import Surroundings


@dataclass(frozen=True)
class Plan:
    """Entries in the model's own order; iterable. ``str(plan)`` is a table.

    >>> for entry in plan(nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64))):
    ...     print(entry.name, entry.target.num_groups)
    1 32
    """

    settings: Settings
    entries: tuple[PlanEntry, ...]
    unmatched: tuple[str, ...] = ()
    modules: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)

    _repr_html_ = shown_by("ilmconvert.report.notebook:plan")

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def converted(self) -> list[PlanEntry]:
        """Entries that are replaced."""
        return [e for e in self.entries if e.target is not None and e.error is None]

    @property
    def skipped(self) -> list[PlanEntry]:
        """Entries that stay, each with its reason."""
        return [e for e in self.entries if e.reason is not None]

    @property
    def errors(self) -> list[PlanEntry]:
        """Entries because of which the conversion is refused."""
        return [e for e in self.entries if e.error is not None]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {"settings": {**vars(self.settings)}, "entries": [e.to_dict() for e in self.entries]}

    def __str__(self) -> str:
        rows = [("name", "source", "channels", "becomes")]
        for e in self.entries:
            name = ", ".join((e.name or "(root)", *e.aliases))
            rows.append((name, e.source.rsplit(".", 1)[-1], str(e.num_channels or ""), describe_outcome(e)))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3])) for row in rows]
        counts = f"{len(self.converted)} to convert, {len(self.skipped)} skipped, {len(self.errors)} refused"
        return "\n".join([*lines, counts])


def describe_outcome(entry: PlanEntry) -> str:
    """One cell of the plan's table: the target's groups, or why there is none."""
    if entry.error is not None:
        return f"refused: {entry.error}"
    if entry.target is None:
        return f"stays: {entry.reason}"
    return f"{entry.target}; {entry.note}" if entry.note else str(entry.target)


def plan(
    model: nn.Module,
    to: str = "ilm_gn",
    *,
    init: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    num_groups: int = DEFAULT_NUM_GROUPS,
    key_group_size: int = 16,
    reduction: int = 16,
    restore_bound: float | None = None,
    first_only: bool = False,
) -> Plan:
    """What :func:`ilmconvert.convert` with the same arguments would do to ``model``, which isn't changed.

    Raises:
        ValueError: an argument is out of its range.
        ConversionError: the model is wrapped, compiled or scripted; the message names the cure.

    >>> print(plan(nn.Sequential(nn.BatchNorm2d(8), nn.LayerNorm(8)), "ilm_ln").skipped[0].reason)
    normalises over the channels at each position; ILM Norm pools over positions, so there is no equivalent
    """
    settings = Settings(
        to,
        init or default_init(to),
        as_patterns(include),
        as_patterns(exclude) or (),
        num_groups,
        key_group_size,
        reduction,
        restore_bound,
        first_only,
    )
    return make_plan(model, settings)


def make_plan(model: nn.Module, settings: Settings) -> Plan:
    """:func:`plan` for checked settings."""
    refuse_wrapped.refuse_wrapped(model)
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in norm_like(model):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    around = Surroundings(model, {module: names[key] for key, module in modules.items()})
    entries = [decide(names[key], module, settings, around) for key, module in modules.items()]
    entries += [loose(norm, settings) for norm in around.loose]
    modules.update((id(norm.module), norm.module) for norm in around.loose)
    if settings.first_only:
        entries = _first_alone(entries)
    paths = [path for entry in entries for path in (entry.name, *entry.aliases)]
    patterns = [*(settings.include or ()), *settings.exclude]
    unmatched = tuple(p for p in patterns if not any(fnmatchcase(path, p) for path in paths))
    return Plan(
        settings, tuple(entries), unmatched, {e.name: m for e, m in zip(entries, modules.values(), strict=True)}
    )


def _first_alone(entries: Sequence[PlanEntry]) -> list[PlanEntry]:
    """The entries with nothing to convert behind the first norm that can be converted, is refused or is an ILM Norm."""
    counts = (entry.target or entry.error or entry.reason == ALREADY_CONVERTED for entry in entries)
    first = next((i for i, found in enumerate(counts) if found), len(entries))
    return [*entries[: first + 1], *(_passed_over(entry) for entry in entries[first + 1 :])]


def _passed_over(entry: PlanEntry) -> PlanEntry:
    """The entry of a norm behind the first one: it stays, and nobody need hear of what it would have become."""
    stays = replace(entry, left_behind=False, never_trained=False, note=None)
    return stays if entry.reason is not None else replace(stays, target=None, error=None, reason="not the first norm")


def norm_like(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every path to every norm-like module, aliases included; what stands inside a norm isn't looked at."""
    if isinstance(module, ILMNorm) or find_source(module) is not None or reason_to_skip(module) is not None:
        yield name, module
        return
    for child_name, child in module._modules.items():
        if child is not None:
            yield from norm_like(child, f"{name}.{child_name}" if name else child_name)


def seen(entries: Iterable[PlanEntry]) -> str:
    """The skipped modules by type and reason, for messages."""
    counts = Counter((e.source.rsplit(".", 1)[-1], e.reason) for e in entries)
    return "; ".join(f"{n} {source} ({reason})" for (source, reason), n in counts.items()) or "no norm layer"
