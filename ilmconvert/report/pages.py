"""Pages from templates: one file each, with nothing that is fetched from elsewhere."""

from __future__ import annotations

import base64
import io
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from ilmconvert._constants import __version__
from ilmconvert.checkpoint.atomic_write import write_atomically
from ilmconvert.report import text

JPEG_QUALITY = 82


def write_page(template: str, path: str | Path, **values: Any) -> Path:
    """Fill a template and write it.

    Raises:
        CheckpointError: the file can't be written.
    """
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    page = _environment().get_template(template).render(now=now, version=__version__, **values)

    def write(temporary: Path) -> None:
        temporary.write_text(page, encoding="utf-8")

    return write_atomically(path, write)


def image_url(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """A normalised image (1 or 3, H, W) as a JPEG inside a URL.

    >>> import torch
    >>> image_url(torch.zeros(3, 4, 4), (0.5,) * 3, (0.5,) * 3)[:23]
    'data:image/jpeg;base64,'
    """
    from torchvision.transforms.functional import to_pil_image

    channels = len(image)
    shift, scale = (image.new_tensor(values[:channels]).view(-1, 1, 1) for values in (mean, std))
    pil = to_pil_image((image * scale + shift).nan_to_num().clamp(0, 1))
    stream = io.BytesIO()
    pil.save(stream, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("ilmconvert.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(share=text.share, decibels=text.decibels, duration=text.duration, small=text.small)
    made.globals["none_mark"] = text.NONE
    return made
