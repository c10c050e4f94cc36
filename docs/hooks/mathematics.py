"""Formulas as MathML, written when the site is built: browsers show it without a script or a network."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves of $...$ and $$...$$ in pages and in docstrings.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
_WORD = re.compile(r"<mo>([a-z]{2,})</mo>")  # a function's name, not an operator with space around it


def on_page_content(content: str, **_: object) -> str:
    """MkDocs' hook: the page's HTML with its formulas."""
    content = _BLOCK.sub(lambda match: _mathml(match, "block"), content)
    return _INLINE.sub(lambda match: _mathml(match, "inline"), content)


def _mathml(match: re.Match[str], display: str) -> str:
    formula = _WORD.sub(r"<mi>\1</mi>", convert(html.unescape(match[1]).strip(), display=display))
    return f'<div class="formula">{formula}</div>' if display == "block" else formula
