"""The library's docstrings as the site's Markdown: references, formulas, examples, and several names on one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import griffe

# Docstrings that are put together when the module is imported, which no reader of the source can see.
_PUT_TOGETHER = frozenset({"ilmconvert.finetune.recipe.Recipe"})

_HEADING = re.compile(r"\n+ +\*[^*\n]+\*\n+")  # between the fields, which Google's sections don't know
_ROLE = re.compile(r":(?P<role>\w+):`(?P<short>~?)(?P<text>[^`]+)`")
_MATH_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1 +\S.*\n|\s*\n)+)", re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)>>> (?:.*\n?)(?:\1\S.*\n?)*", re.MULTILINE)
# "weight, bias: (C,)" with the lines that are indented further
_NAMES = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes):\n((?: +\S.*\n?|\n(?= ))+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded, when names can be resolved."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A recipe's fields have their default inside a call, with their description."""
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "setting":
            attr.value = value.arguments[0]

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for owner in _objects(pkg):
            if isinstance(owner, griffe.Attribute) and owner.docstring is None:
                text = _comment_above(owner)
                owner.docstring = griffe.Docstring(text, parent=owner) if text else None
            if isinstance(owner, griffe.Function):
                _name_no_constants(owner)
            if owner.docstring is not None:
                owner.docstring.value = rewritten(owner)


def rewritten(owner: griffe.Object) -> str:
    """The docstring of an object in Markdown, with Google's sections."""
    assert owner.docstring is not None
    text = owner.docstring.value
    if owner.path in _PUT_TOGETHER:
        module, _, name = owner.path.rpartition(".")
        text = _HEADING.sub("\n", griffe.Docstring(getattr(import_module(module), name).__doc__).value)
    text = _SECTION.sub(lambda m: f"{m[1]}:\n{_NAMES.sub(_one_line_each, m[2])}", text)
    text = _MATH_BLOCK.sub(_formula, text + "\n")
    text = _EXAMPLE.sub(_fenced, text)
    return _ROLE.sub(lambda match: _reference(match, owner), text).rstrip()


def _objects(owner: griffe.Object) -> Iterator[griffe.Object]:
    yield owner
    for member in owner.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _comment_above(attribute: griffe.Attribute) -> str:
    """The lines of ``#:`` right above an attribute, this library's way to describe a constant."""
    if attribute.lineno is None or not isinstance(attribute.filepath, Path):
        return ""
    above = attribute.lines_collection[attribute.filepath][: attribute.lineno - 1]
    lines = takewhile(lambda line: line.startswith("#:"), reversed(above))
    return " ".join(line[2:].strip() for line in reversed(list(lines)))


def _name_no_constants(function: griffe.Function) -> None:
    """Shows a default that is a constant's name as the constant's value, where that is a number or a string."""
    for parameter in function.parameters:
        if isinstance(parameter.default, griffe.ExprName):
            with suppress(griffe.AliasResolutionError, KeyError):  # a name of another package
                constant = function.modules_collection[parameter.default.canonical_path]
                if constant.is_attribute and isinstance(constant.value, str):
                    parameter.default = constant.value


def _one_line_each(match: re.Match[str]) -> str:
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))


def _formula(match: re.Match[str]) -> str:
    indent, body = match[1], match[2].strip()
    if "&" in body:
        body = rf"\begin{{align*}}{body}\end{{align*}}"
    lines = "\n".join(indent + line.strip() for line in body.splitlines())
    return f"{indent}$$\n{lines}\n{indent}$$\n\n"


def _fenced(match: re.Match[str]) -> str:
    indent = match[1]
    return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"


def _reference(match: re.Match[str], owner: griffe.Object) -> str:
    text = match["text"]
    if match["role"] == "math":
        return f"${text}$"
    shown = text.rpartition(".")[2] if match["short"] or text.startswith("ilmconvert.") else text
    # optional: what the site doesn't describe is shown as it is
    return f'<autoref optional identifier="{_path(text, owner)}"><code>{shown}</code></autoref>'


def _path(text: str, owner: griffe.Object) -> str:
    """The full path of what a docstring calls ``text``."""
    try:
        path = text if text.startswith("ilmconvert.") else owner.resolve(text)
        return str(owner.modules_collection[path].canonical_path)
    except (griffe.NameResolutionError, griffe.AliasResolutionError, KeyError):
        return text
