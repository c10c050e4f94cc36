"""Conversions published in the layout of timm and the Hugging Face hub, and read from there."""

from ilmconvert.hub.folder import save_pretrained
from ilmconvert.hub.push import HubError, push_to_hub

__all__ = ["HubError", "push_to_hub", "save_pretrained"]
