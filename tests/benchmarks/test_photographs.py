"""The photographs for evaluation: Qt's resource files, doubles, drawings, the split."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.photographs import Photograph, photographs, resource_files, split


def resource(files: dict[str, bytes]) -> bytes:
    """A resource file of version 1 with one folder, ``images``."""
    names, contents, nodes = b"", b"", []

    def add_name(text: str) -> int:
        nonlocal names
        at, names = len(names), names + struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    nodes.append(struct.pack(">IHII", add_name(""), 2, 1, 1))
    nodes.append(struct.pack(">IHII", add_name("images"), 2, len(files), 2))
    for name, content in files.items():
        nodes.append(struct.pack(">IHHHI", add_name(name), 0, 0, 1, len(contents)))
        contents += struct.pack(">I", len(content)) + content
    tree = b"".join(nodes)
    starts = (20, 20 + len(tree), 20 + len(tree) + len(contents))
    return b"qres" + struct.pack(">4I", 1, *starts) + tree + contents + names


def test_resource_files_are_read_by_name() -> None:
    files = {"a.webp": b"first", "b.webp": b"", "ü.webp": b"third"}
    assert dict(resource_files(resource(files))) == {f"/images/{name}": content for name, content in files.items()}


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="doesn't start with 'qres'"):
        list(resource_files(b"RIFF"))


def _noise(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((240, 240), Image.Resampling.BICUBIC)


def test_doubles_and_drawings_are_left_out(tmp_path: Path) -> None:
    stamps = tmp_path / "usr/share/tuxpaint/stamps/animals"
    stamps.mkdir(parents=True)
    _noise(0).save(stamps / "a.png")
    _noise(0).resize((200, 200)).save(stamps / "again.png")
    _noise(1).save(stamps / "b.png")
    Image.new("RGB", (240, 240), "red").save(stamps / "drawing.png")
    found = photographs(tmp_path)
    assert [p.name for p in found if p.origin == "tuxpaint"] == ["a", "b"]
    assert sum(p.origin == "samples" for p in found) == 12


def test_split_shares_nothing_and_repeats() -> None:
    image = Image.new("RGB", (8, 8))
    found = [Photograph("x", str(i), image, test_only=i < 3) for i in range(23)]
    parts = split(found)
    names = {part: [p.name for p in members] for part, members in parts.items()}
    assert sorted(names["calibration"] + names["test"], key=int) == [str(i) for i in range(23)]
    assert len(names["calibration"]) == 10
    assert {"0", "1", "2"} <= set(names["test"])
    assert {part: [p.name for p in members] for part, members in split(found).items()} == names
