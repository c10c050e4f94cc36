"""The site builds and opens without a network; what the pages show runs, and what they quote is printed."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
import timm
from torch import nn

from tests.helpers import CHROMIUM, randomize_norms

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Pages whose blocks need neither images nor a hub.
RUN = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("index", "concepts", "faq"))]
RUN += sorted((DOCS / "guides").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


SLOW = {"export", "differential-privacy"}


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in SLOW else ()) for p in RUN]
)
@pytest.mark.filterwarnings("ignore::UserWarning:opacus", "ignore:Full backward hook:UserWarning")
def test_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but that pretrained weights are random ones with random statistics: there is no network here."""
    create = timm.create_model

    def without_download(*args: object, pretrained: bool = False, **settings: object) -> nn.Module:
        model: nn.Module = create(*args, **settings)
        return randomize_norms(model) if pretrained else model

    monkeypatch.setattr(timm, "create_model", without_download)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    text = page.read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    for block in blocks:
        above = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback names the page's own line
        exec(compile(above + block[1], str(page), "exec"), names)


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda program: program.stem)
def test_quoted_output_is_that_of_the_example(program: Path) -> None:
    command = rf"^    \$ python examples/{program.name}(?: .*)?\n((?:    .+\n)+)"
    (printed,) = re.findall(command, program.read_text(), re.MULTILINE)
    quoted = {text for page in PAGES for text in re.findall(command, page.read_text(), re.MULTILINE)}
    assert quoted == {printed}


class Loads(HTMLParser):
    """The addresses of everything that a page loads by itself; ``text`` is what a reader sees outside of code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self._hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self._hidden += tag in ("code", "script", "style")
        loaded = tag in ("script", "img", "iframe", "source") or (tag == "link" and values.get("rel") == "stylesheet")
        self.addresses += [values.get("src") or values.get("href") or ""] if loaded else []

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("code", "script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as the README's command builds it: warnings are errors, and none is hidden."""
    folder = tmp_path_factory.mktemp("site")
    (build,) = set(re.findall(r"&& (mkdocs build[^`\n]*)`", (ROOT / "README.md").read_text()))
    assert build == "mkdocs build --strict"  # --quiet would hide the warnings that --strict counts
    command = [sys.executable, "-m", *build.split(), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert "Documentation built" in done.stderr
    return folder


def test_links_lead_from_the_start_to_every_page(site: Path) -> None:
    seen: set[Path] = set()
    ahead = [site / "index.html"]
    while ahead:
        page = ahead.pop().resolve()
        if page not in seen:
            seen.add(page)
            ahead += [page.parent / link for link in re.findall(r'href="([^"#?:]+\.html)', page.read_text())]
    assert {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")} <= {
        page.relative_to(site.resolve()) for page in seen
    }


def test_links_of_every_page_lead_to_a_place_that_exists(site: Path) -> None:
    targets = {page.resolve(): set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in site.rglob("*.html")}
    for page in targets:
        if page.name == "404.html":  # its links are absolute
            continue
        for link in re.findall(r'<a [^>]*href="([^"]*)"', page.read_text()):
            address, _, anchor = html.unescape(link).partition("#")
            if re.match(r"\w+:", address):
                continue
            target = (page.parent / address).resolve() if address else page
            assert target.exists(), f"{page.name} links to {link}"
            if anchor and target in targets:
                assert unquote(anchor) in targets[target], f"{page.name} links to {link}"


def test_the_command_line_page_shows_options_as_they_are_typed(site: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "cli.html").read_text()))
    assert "--to [ilm_gn|ilm_ln|ilm_in|gn|ln|in]" in text
    assert "(default: 32; x>=1)" in text
    assert "\\" not in text


def test_pages_load_nothing_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        for address in Loads(page.read_text()).addresses:
            assert not re.match(r"\w+:|//", address), f"{page.name} loads {address}"
            if address and page.name != "404.html":
                assert (page.parent / address.partition("?")[0]).exists()


def test_formulas_and_references_are_rendered(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = Loads(page.read_text()).text
        assert not re.search(r":(class|func|meth|math|mod|attr):|\.\. math|\\\(|\\\[|>>> |\$\$", text), page.name
        assert "arithmatex" not in page.read_text()
    written = len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", (DOCS / "concepts.md").read_text(), re.DOTALL))
    assert Loads((site / "concepts.html").read_text()).tags.count("math") == written > 0
    assert "math" in Loads((site / "reference" / "nn.html").read_text()).tags


ROOMS = sorted(path.parent.name for path in (ROOT / "ilmconvert").glob("*/__init__.py"))


def test_every_room_has_a_page_of_the_reference() -> None:
    pages = {path.stem for path in (DOCS / "reference").glob("*.md")}
    assert {"nn", "surgery", "finetune"} <= set(ROOMS)
    assert pages == {*ROOMS, "ilmconvert", "errors"} - {"cli"}  # docs/cli.md is written by scripts.cli_reference


def test_reference_describes_every_public_name(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    # where a module and a function in it have one name, the function is meant
    assert all(f'id="ilmconvert.{name}"' in text for name in ("surgery.plan.plan", "calibration.calibrate.calibrate"))
    for name in ("", *(f".{room}" for room in ROOMS), ".export.hub"):
        for public in getattr(import_module(f"ilmconvert{name}"), "__all__", ()):
            assert re.search(rf'id="ilmconvert\.([\w.]*\.)?{public}"', text), f"ilmconvert{name}.{public}"
    for error in vars(import_module("ilmconvert.errors")).values():
        if isinstance(error, type):
            assert f'id="ilmconvert.errors.{error.__name__}"' in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_search_works_from_disk(site: Path, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom", "--enable-logging=stderr"]
    address = f"{(site / 'concepts.html').as_uri()}?q=restoring"
    done = subprocess.run([str(CHROMIUM), *options, address], capture_output=True, text=True, timeout=300, check=True)
    assert re.search(r"\d+ matching documents", done.stdout)
    assert not re.search(r"CONSOLE.*(error|refused)", done.stderr, re.IGNORECASE), done.stderr
