"""Measured numbers as lines of JSON, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

Key = Mapping[str, str | int | float]


class MissingLine(Exception):
    """A number has not been measured, and this run measures nothing."""


class Lines:
    """A file of numbers by key, which grows by whole lines; a line that was cut off is dropped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lines = Lines(Path(folder, "lines.jsonl"))
    ...     lines.value({"a": 1}, lambda: 0.5), Lines(lines.path).value({"a": 1}, lambda: 0.7)
    (0.5, 0.5)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        self._found = {_mark(entry["key"]): float(entry["value"]) for entry in map(json.loads, whole.splitlines())}

    def __contains__(self, key: Key) -> bool:
        return _mark(key) in self._found

    def known(self, key: Key) -> float:
        """The number of this key.

        Raises:
            MissingLine: it hasn't been measured.
        """
        if key not in self:
            raise MissingLine
        return self._found[_mark(key)]

    def value(self, key: Key, measure: Callable[[], float]) -> float:
        """The number of this key, measured and kept if there is none yet."""
        mark = _mark(key)
        if mark not in self._found:
            self._found[mark] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": dict(key), "value": self._found[mark]}) + "\n")
        return self._found[mark]


def _mark(key: Key) -> str:
    return json.dumps(dict(key), sort_keys=True)
