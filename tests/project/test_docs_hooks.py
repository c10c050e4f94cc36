"""What the hooks of the site make of docstrings and of links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import griffe
import pytest

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"

SOURCE = r'''
LIMIT = 3
#: What is known
#: of colours.
COLOURS = ("red",)

def first(a, b, c=LIMIT):
    r"""See :func:`second` and :math:`x^2`.

    .. math::
        y &= x \\
        z &= 1

    Args:
        a, b: both
            of them.
        c: the last.

    >>> first(1, 2)
    3

    The end.
    """

def second():
    """Nothing."""
'''
MARKDOWN = r"""See <autoref optional identifier="colours.second"><code>second</code></autoref> and $x^2$.

$$
\begin{align*}y &= x \\
z &= 1\end{align*}
$$

Args:
    a: both
        of them.
    b: both
        of them.
    c: the last.

```pycon
>>> first(1, 2)
3
```

The end."""


def program(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_become_markdown(tmp_path: Path) -> None:
    (tmp_path / "colours.py").write_text(SOURCE)
    hook = griffe.load_extensions(str(DOCS / "hooks" / "docstrings.py"))
    package = griffe.load("colours", search_paths=[tmp_path], extensions=hook)
    assert package["first"].docstring.value == MARKDOWN
    assert package["first"].parameters["c"].default == "3"
    assert package["COLOURS"].docstring.value == "What is known of colours."


def test_links_out_of_the_site_become_text() -> None:
    hook = program(DOCS / "hooks" / "links.py")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/export.md"))
    text = "[a](../../examples/dp_opacus.py), [b](../limits.md#x), [c](https://a.b/c), [d](../../nowhere.py)"
    found = hook.on_page_markdown(text, page=page, config=SimpleNamespace(docs_dir=str(DOCS)))
    assert found == text.replace("[a](../../examples/dp_opacus.py)", "a")


def test_links_of_an_included_file_are_relative_to_that_file(tmp_path: Path) -> None:
    hook = program(DOCS / "hooks" / "links.py")
    (tmp_path / "docs" / "guides").mkdir(parents=True)
    (tmp_path / "docs" / "trust.md").touch()
    (tmp_path / "NEWS.md").write_text("[a](docs/trust.md#files), [b](NEWS.md), [c](docs/nowhere.md)")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/news.md"))
    found = hook.on_page_markdown('--8<-- "NEWS.md"\n', page=page, config=SimpleNamespace(docs_dir=tmp_path / "docs"))
    assert found == "[a](../trust.md#files), b, [c](../nowhere.md)\n"


def test_a_section_is_included_with_its_links(tmp_path: Path) -> None:
    hook = program(DOCS / "hooks" / "links.py")
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    (tmp_path / "docs" / "assets" / "a.svg").touch()
    section = "![an\nimage](docs/assets/a.svg)\n"
    marked = f"<!-- --8<-- [start:front] -->\n{section}<!-- --8<-- [end:front] -->\n"
    (tmp_path / "README.md").write_text(f"before\n{marked}after\n")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    config = SimpleNamespace(docs_dir=tmp_path / "docs")
    found = hook.on_page_markdown('--8<-- "README.md:front"\n', page=page, config=config)
    assert found.strip() == "![an\nimage](assets/a.svg)"
    with pytest.raises(ValueError, match=r"README\.md has no section 'back'"):
        hook.on_page_markdown('--8<-- "README.md:back"\n', page=page, config=config)


def test_references_in_docstrings_name_something() -> None:
    """The site shows a reference that leads nowhere as text, since not everything has a place in it."""
    package = griffe.load("ilmconvert", search_paths=[DOCS.parent])
    found, lost = 0, []
    for owner in program(DOCS / "hooks" / "docstrings.py")._objects(package):
        text = owner.docstring.value if owner.docstring else ""
        for name in re.findall(r":(?:func|class|mod|meth|data|attr):`~?([^`]+)`", text):
            found += 1
            try:
                path = name if name.startswith("ilmconvert.") else owner.resolve(name)
                owner.modules_collection[path].canonical_path  # noqa: B018
            except (griffe.GriffeError, KeyError):
                lost += [] if name.startswith("torch.") else [f"{owner.path}: {name}"]
    assert found > 100
    assert lost == []
