"""Conversions published in the layout of timm and the Hugging Face hub, and read from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ilmconvert.errors import HubError

if TYPE_CHECKING:
    from ilmconvert.export.hub.folder import save_pretrained
    from ilmconvert.export.hub.push import push_to_hub

__all__ = ["HubError", "push_to_hub", "save_pretrained"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: ``import ilmconvert`` needs the import hook beside this file, and no more.
    if name == "save_pretrained":
        from ilmconvert.export.hub.folder import save_pretrained

        return save_pretrained
    if name == "push_to_hub":
        from ilmconvert.export.hub.push import push_to_hub

        return push_to_hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
