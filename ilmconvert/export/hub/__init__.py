"""Converted models in the layout of timm and the Hugging Face hub: written, published and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ilmconvert._constants import lazy_attributes
from ilmconvert.errors import HubError

if TYPE_CHECKING:
    from ilmconvert.export.hub.folder import save_pretrained
    from ilmconvert.export.hub.push import push_to_hub

__all__ = ["HubError", "push_to_hub", "save_pretrained"]


# Imported when first asked for: ``import ilmconvert`` needs the import hook beside this file, and no more.
__getattr__, __dir__ = lazy_attributes(__name__, {"folder": "save_pretrained", "push": "push_to_hub"})
