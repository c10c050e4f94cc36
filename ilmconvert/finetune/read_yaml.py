"""YAML files as people write them: a key that is there twice is an error, where YAML silently takes the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: str | Path) -> Any:
    """What ``yaml.safe_load`` makes of a file.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it can't be read, is no YAML, or has a key twice.
    """
    return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                where = f"line {key_node.start_mark.line + 1}"
                raise yaml.YAMLError(f"{key_node.value} is there twice ({where}); leave one of them out")
            seen.add(key_node.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found
