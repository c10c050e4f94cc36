"""What an index would show and offer: metadata, extras, the lines that install and run, the rehearsal on TestPyPI."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def description() -> str:
    """The README as hatch-fancy-pypi-readme makes it the description of the package."""
    settings = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (fragment,) = settings["fragments"]
    text = (ROOT / fragment["path"]).read_text(encoding="utf-8")
    for change in settings["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text


def test_the_description_leads_nowhere_that_an_index_does_not_have() -> None:
    text = description()
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
    assert "![" not in text
    assert "<!--" not in text
    assert "](https://arxiv.org/" in text
    assert "| your case | take | measured |" in text


def test_metadata_name_the_versions_of_python_that_are_tested() -> None:
    project = PROJECT["project"]
    named = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert f">={min(named, key=lambda v: int(v[2:]))}" == project["requires-python"]
    text = (ROOT / "noxfile.py").read_text() + (ROOT / ".github/workflows/ci.yml").read_text()
    assert named == set(re.findall(r'"(3\.\d+)"', text))
    assert {"readme", "version"} == set(project["dynamic"])


def test_extras_have_one_name_on_pages_and_exist() -> None:
    extras = PROJECT["project"]["optional-dependencies"].keys()
    used = {extra for page in PAGES for extra in re.findall(r"'\.\[(.+?)\]'", page.read_text(encoding="utf-8"))}
    assert {"demo", "dp", "export", "finetune", "test"} <= used
    assert {name for names in used for name in names.split(",")} <= extras
    published = {
        page.name for page in PAGES if re.search(r"pip install '?ilmconvert", page.read_text(encoding="utf-8"))
    }
    assert published == set(), "nothing is published: pip install '.[extra]'"


def test_messages_name_extras_of_the_installed_package() -> None:
    """pip takes them from the metadata that are there, wherever it is called, and asks no index for the package."""
    found = [
        name
        for path in (ROOT / "ilmconvert").rglob("*.py")
        for name in re.findall(r"pip install ([^\"`]*ilmconvert\[.*?\]'?)", path.read_text(encoding="utf-8"))
    ]
    extras = PROJECT["project"]["optional-dependencies"].keys()
    assert len(found) >= 5
    for command in found:
        name = re.fullmatch(r"'ilmconvert\[(\w+)\]'", command)
        assert name is not None, command
        assert name[1] in extras


def test_lines_without_a_clone_are_said_to_work_later() -> None:
    for page in (ROOT / "README.md", ROOT / "docs/index.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        later = text.partition("Nothing is published yet; once it is, ")[2]
        assert re.match(r"`uvx (--from 'ilmconvert\[demo\]' )?ilmconvert \w+[ \w]*` will do it without a clone", later)
        assert re.search(r"`uvx --from ('\.\[demo\]'|\.) ilmconvert [\w ]+`, or `pipx run --spec", text)


def test_the_rehearsal_publishes_the_same_files_to_testpypi_and_uses_them() -> None:
    jobs, real = (
        yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"] for name in ("testpypi", "release")
    )
    builds = [[step["run"] for step in j["build"]["steps"] if "nox" in step.get("run", "")] for j in (jobs, real)]
    assert builds[0] == builds[1]
    upload = jobs["publish"]["steps"][-1]
    assert upload["uses"] == real["publish"]["steps"][-1]["uses"]
    assert upload["with"] == {"repository-url": "https://test.pypi.org/legacy/"}
    assert jobs["publish"]["environment"]["name"] == "testpypi"
    assert jobs["publish"]["permissions"] == real["publish"]["permissions"] == {"id-token": "write"}
    assert {"build", "publish"} == set(jobs["use"]["needs"])


def test_the_rehearsal_gives_the_package_a_version_of_its_own() -> None:
    workflow = (ROOT / ".github/workflows/testpypi.yml").read_text()
    pattern = re.search(r"s/(\^__version__.*?\$)/", workflow)
    assert pattern is not None
    sed = pattern[1].replace(r"\"", '"').replace(r"\(", "(").replace(r"\)", ")")
    assert len(re.findall(sed, Path(ROOT, "ilmconvert/_constants.py").read_text(), re.MULTILINE)) == 1
