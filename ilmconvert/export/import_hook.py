"""Tell other libraries of conversions: now if they are here, else as soon as they are imported.

``timm.create_model`` builds what is registered in timm, ``from_pretrained`` of transformers and diffusers changes
models as what is registered there says, Ultralytics builds networks anew, and MONAI copies values by name. Importing
them takes seconds that ``import ilmconvert`` must not. Until they come, one finder waits in ``sys.meta_path`` for their
modules' names; when all have come it is gone.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

#: Modules of other libraries, and what registers itself there when it is imported.
AWAITED = {
    "timm.models": "ilmconvert.export.hub.timm_entrypoint",
    "transformers.modeling_utils": "ilmconvert.export.transformers_quantizer",
    "diffusers.models.modeling_utils": "ilmconvert.export.diffusers_quantizer",
    "diffusers.training_utils": "ilmconvert.export.diffusers_ema",
    "monai.networks.utils": "ilmconvert.export.monai_state",
    "ultralytics.nn.tasks": "ilmconvert.export.ultralytics_network",
    "ultralytics.engine.model": "ilmconvert.export.ultralytics_training",
}


def register() -> None:
    """Register with the libraries that are here, and wait for the others; a second call does nothing."""
    awaited = AWAITED.keys() - sys.modules.keys()
    if awaited and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(awaited))
    for name in AWAITED.keys() - awaited:
        _tell(name)


def _tell(name: str) -> None:
    """Register with the library of module ``name``, which is complete."""
    try:
        import_module(AWAITED[name])
    except ImportError as error:  # the library is older than what is registered there
        import warnings

        library = name.partition(".")[0]
        warnings.warn(f"{library} can't be told of conversions ({error}); upgrade {library}", stacklevel=2)


# Both have no base class: importlib.abc alone would double the time of ``import ilmconvert``.
class _Finder:
    """Finds an awaited module as the other finders do, and hands it out with a loader that registers."""

    def __init__(self, awaited: set[str]) -> None:
        self._awaited = awaited

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._awaited:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(self, spec.loader)  # type: ignore[assignment]
        return spec

    def has_come(self, name: str) -> None:
        """Register with the library of module ``name``, and leave if it was the last."""
        self._awaited.discard(name)
        if not self._awaited and self in sys.meta_path:
            sys.meta_path.remove(self)
        _tell(name)


class _Loader:
    """The module's own loader, after which the finder is told."""

    def __init__(self, finder: _Finder, own: Loader) -> None:
        self._finder, self._own = finder, own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: pkgutil, inspect and importlib.resources ask that for files.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        self._finder.has_come(module.__name__)
