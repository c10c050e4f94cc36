"""Names that several packages share. Imports nothing, so that the command line's help and the root stay quick."""

from __future__ import annotations

__version__ = "0.1.0"

#: The ``architecture`` in config.json: the package to import, for whoever meets it in timm's "Unknown model".
ENTRYPOINT = "ilmconvert_model"
