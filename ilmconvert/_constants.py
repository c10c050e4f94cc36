"""What all packages share: a few names, and attributes that are imported when first asked for.

Imports nothing of the package or outside the standard library, so that the command line's help and the root stay quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

__version__ = "0.1.0"

#: The ``architecture`` in config.json: the package to import, for whoever meets it in timm's "Unknown model".
ENTRYPOINT = "ilmconvert_model"


class Target(NamedTuple):
    """A kind of layer that a norm can become.

    Attributes:
        title: what it is called in tables and model cards.
        config: the class of its settings, a :class:`ilmconvert.surgery.layer_config.LayerConfig`, as "module:Class".
        groups: "several" (at most ``num_groups``), "one", or "channels" (one per channel).
        starts: what ``init`` can be, the default first.
        options: the arguments of ``convert`` that are for such layers only.
    """

    title: str
    config: str
    groups: str
    starts: tuple[str, ...]
    options: tuple[str, ...] = ()


_ILM_NORM = Target(
    title="ILM-GN",
    config="ilmconvert.surgery.ilm_norm_target:ILMNormConfig",
    groups="several",
    starts=("identity", "moments"),
    options=("key_group_size", "reduction", "restore_bound"),
)
_GROUP_NORM = Target("GroupNorm", "ilmconvert.surgery.group_norm_target:GroupNormConfig", "several", ("moments",))

#: All targets, by what ``to`` and ``--to`` call them. A new one is a line here and the file with its class.
TARGETS = {
    "ilm_gn": _ILM_NORM,
    "ilm_ln": _ILM_NORM._replace(title="ILM-LN", groups="one"),
    "ilm_in": _ILM_NORM._replace(title="ILM-IN", groups="channels"),
    "gn": _GROUP_NORM,
    "ln": _GROUP_NORM._replace(groups="one"),
    "in": _GROUP_NORM._replace(groups="channels"),
}

#: The initial values: what the source computes, or the new layer alone, initialised from running statistics.
INITS = ("identity", "moments")


def exact_targets() -> tuple[str, ...]:
    """The targets that can compute exactly what their source computes.

    >>> exact_targets()
    ('ilm_gn', 'ilm_ln', 'ilm_in')
    """
    return tuple(name for name, target in TARGETS.items() if "identity" in target.starts)


def shown_by(place: str) -> Callable[[Any], str]:
    """A ``_repr_html_``, by which notebooks show an object: ``place`` is imported when one does.

    What makes tables stands above the rooms whose objects they show, so that it is named here, and not imported.

    Args:
        place: the function of the object that returns HTML, as "module:function".
    """

    def html(self: Any) -> str:
        module, _, name = place.partition(":")
        result: str = getattr(import_module(module), name)(self)
        return result

    return html


def lazy_attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose attributes are imported when first asked for.

    Args:
        package: its ``__name__``.
        homes: modules, relative to the package, and the names of theirs that it offers, separated by spaces.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *home_of})
