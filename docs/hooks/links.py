"""Links of pages: those of an included file as from the page, and those out of docs/ as text.

Files of the repository aren't part of the site, so that only a reader of the repository could follow the latter.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
_INCLUDED = re.compile(r'^--8<-- "([^":]+)(?::(\w+))?"$', re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """MkDocs' hook: the page with files and their sections included, and with links that lead somewhere in the site."""
    docs = Path(config.docs_dir).resolve()
    here = (docs / page.file.src_uri).parent
    # here and not by the snippets' extension, which runs when links are looked at no more
    markdown = _INCLUDED.sub(lambda match: _included(docs.parent / match[1], match[2], here), markdown)

    def replace(match: re.Match[str]) -> str:
        target = (here / match[2]).resolve()
        return match[1] if target.exists() and not target.is_relative_to(docs) else match[0]

    return _LINK.sub(replace, markdown)


def _included(file: Path, section: str | None, here: Path) -> str:
    """The text of a file or of a marked section, whose links are relative to the file.

    Raises:
        ValueError: the section isn't there.
    """
    text = file.read_text(encoding="utf-8")
    if section is not None:
        mark = rf"<!-- --8<-- \[{{}}:{section}\] -->\n"
        found = re.search(mark.format("start") + "(.*?)" + mark.format("end"), text, re.DOTALL)
        if found is None:
            raise ValueError(f"{file.name} has no section {section!r}")
        text = found[1]

    def moved(match: re.Match[str]) -> str:
        target = os.path.relpath(file.parent / match[2], here)
        return f"[{match[1]}]({Path(target).as_posix()}{match[3] or ''})"

    return _LINK.sub(moved, text)
