"""Changes of a safetensors header, which says where each tensor is; in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.values import value

KEY = "ilmconvert"
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "F31", "")


def _tensor(header: dict[str, Any], r: Random) -> str:
    return r.choice([key for key in header if key != "__metadata__"] or [""])


def _set_dtype(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    header.setdefault(_tensor(header, r), {})["dtype"] = r.choice(DTYPES)
    return body


def _set_shape(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    entry = header.setdefault(_tensor(header, r), {})
    shape = entry.get("shape") or [1]
    shape = shape if isinstance(shape, list) else [1]
    others = ([0], [], [2**62], [0, 2**62], [-1], [1.5], [*shape, 1], shape[::-1], [2**32, 2**32], "x", value(r))
    entry["shape"] = r.choice(others)
    return body


def _set_offsets(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    entry = header.setdefault(_tensor(header, r), {})
    found = entry.get("data_offsets")
    first, last = found if isinstance(found, list) and len(found) == 2 else (0, 0)
    others = ([last, first], [0, 0], [first, 2**62], [-1, last], [last], [last, last + 1], None, value(r))
    entry["data_offsets"] = r.choice(others)
    return body


def _recast(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    """Another type of the same size, which makes a valid file."""
    sizes = {"F32": "I32", "I64": "F64", "F16": "BF16"}
    entry = header.get(_tensor(header, r), {})
    entry["dtype"] = sizes.get(str(entry.get("dtype")), "U8")
    return body


def _drop(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    header.pop(_tensor(header, r), None)
    return body


def _rename(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    header[r.choice(("x", "__metadata__", "conv1..weight", "a" * 10_000, ""))] = header.pop(_tensor(header, r), {})
    return body


def _add(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    size = r.choice((0, 1, 4))
    offsets = [len(body), len(body) + 4 * size]
    header[f"more{r.randrange(3)}"] = {"dtype": "F32", "shape": [size], "data_offsets": offsets}
    return body + bytes(4 * size)


def _many_empty(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    """A header that is much larger than what it describes."""
    if r.random() < 0.05:
        for i in range(r.choice((1_000, 20_000, 60_000))):
            header[str(i)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}
    return body


def _metadata(header: dict[str, Any], body: bytes, r: Random) -> bytes:
    metadata = header["__metadata__"] if isinstance(header.get("__metadata__"), dict) else {}
    kind = r.randrange(4)
    if kind == 0:
        header.pop("__metadata__", None)
    elif kind == 1:
        header["__metadata__"] = value(r)
    elif kind == 2:
        metadata[KEY] = r.choice((value(r), json.dumps(value(r)), "[" * 100_000, "{", "[" + "[]," * 10_000 + "[]]"))
    else:
        metadata[KEY] = '{"a":[' + "[]," * r.choice((1_000, 300_000)) + "[]]}" if r.random() < 0.05 else "9" * 5_000
    return body


HEADER: tuple[Callable[[dict[str, Any], bytes, Random], bytes], ...] = (
    *(_set_dtype, _set_shape, _set_offsets, _recast, _drop, _rename, _add, _many_empty, _metadata),
)
