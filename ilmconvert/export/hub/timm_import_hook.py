"""Tell timm of the architecture of published conversions: now if timm is here, else as soon as it is imported.

``timm.create_model`` builds only what is registered, and importing timm takes seconds that ``import ilmconvert`` must
not. Until timm comes, one finder waits in ``sys.meta_path`` for one module's name; then it is gone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_AWAITED = "timm.models"


def register() -> None:
    """Register :data:`ilmconvert._constants.ENTRYPOINT` in timm.

    Nothing is imported that isn't here, and a second call does nothing.
    """
    if _AWAITED in sys.modules:
        _import_entrypoint()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _import_entrypoint() -> None:
    import ilmconvert.export.hub.timm_entrypoint  # noqa: F401  it registers itself


# Both have no base class: importlib.abc alone would double the time of ``import ilmconvert``.
class _Finder:
    """Finds the awaited module as the other finders do, and hands it out with a loader that registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(self, spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """The module's own loader, after which the entrypoint is registered and the finder leaves."""

    def __init__(self, finder: _Finder, own: Loader) -> None:
        self._finder, self._own = finder, own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: pkgutil, inspect and importlib.resources ask that for files.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _import_entrypoint()
