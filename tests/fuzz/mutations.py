"""Changes of a valid checkpoint: of its bytes, of its header, and of the record in its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from tests.fuzz.header_mutations import HEADER, KEY
from tests.fuzz.record_mutations import RECORD


def mutate(data: bytes, r: Random) -> bytes:
    """One to three changes of one kind."""
    times = r.choice((1, 1, 1, 2, 3))
    kind = r.choice(("bytes", "header", "record", "record"))
    if kind == "bytes":
        for _ in range(times):
            data = r.choice(BYTES)(data, r)
        return data
    header, body = parse(data)
    record = json.loads(header["__metadata__"][KEY])
    # Where a change finds nothing that it understands, what the one before did will do.
    with suppress(AttributeError, IndexError, KeyError, TypeError, ValueError):
        for _ in range(times):
            if kind == "record":
                r.choice(RECORD)(record, r)
            else:
                body = r.choice(HEADER)(header, body, r)
    if kind == "record":
        header["__metadata__"][KEY] = json.dumps(record)
    return assemble(header, body)


def parse(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and the tensors' bytes."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def assemble(header: dict[str, Any], body: bytes) -> bytes:
    """The inverse of :func:`parse`."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _flip(data: bytes, r: Random) -> bytes:
    changed = bytearray(data)
    end = r.choice((16, 8 + int.from_bytes(data[:4], "little"), len(data)))
    for _ in range(r.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[r.randrange(min(max(end, 1), len(changed)))] ^= 1 << r.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, r: Random) -> bytes:
    return data[: r.randint(0, len(data))]


def _insert(data: bytes, r: Random) -> bytes:
    at = r.randint(0, len(data))
    return data[:at] + r.randbytes(r.choice((1, 8, 1000))) + data[at:]


def _delete(data: bytes, r: Random) -> bytes:
    at = r.randint(0, len(data))
    return data[:at] + data[at + r.choice((1, 8, 1000)) :]


def _repeat(data: bytes, r: Random) -> bytes:
    at, size = r.randint(0, len(data)), r.choice((8, 100, 10_000))
    return data[:at] + data[at : at + size] + data[at:]


def _blank(data: bytes, r: Random) -> bytes:
    at, size = r.randint(0, len(data)), r.choice((8, 100, 10_000))
    return data[:at] + bytes([r.choice((0, 0x20, 0xFF))]) * len(data[at : at + size]) + data[at + size :]


def _header_length(data: bytes, r: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    other = r.choice((0, 1, 2, length - 1, length + 1, len(data), len(data) - 8, 2**31, 2**40, 2**63, 2**64 - 1))
    return (other % 2**64).to_bytes(8, "little") + data[8:]


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_flip, _flip, _flip),
    *(_truncate, _insert, _delete, _repeat, _blank, _header_length),
)
