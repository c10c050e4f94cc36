"""Checks of the project's own files: workflows, citation, sessions, table of rooms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import ilmconvert

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_there_are_workflows() -> None:
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "release.yml"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_to_commits_and_start_without_permissions(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    assert all("permissions" in job for job in workflow["jobs"].values())


def test_only_publishing_may_write_and_only_a_token_of_its_own() -> None:
    granted = [job["permissions"] for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    assert [grant for grant in granted if grant != {"contents": "read"}] == 2 * [{"id-token": "write"}]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ilmconvert.__version__
    assert citation["preferred-citation"]["title"] == "Instance-Level Meta Normalization"


def test_every_session_of_nox_is_run_by_the_workflow() -> None:
    sessions = set(re.findall(r"^def ([a-z]\w*)\(session", (ROOT / "noxfile.py").read_text(), flags=re.MULTILINE))
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    called = [name for job in jobs.values() for name in job["strategy"]["matrix"].get("session", [])]
    assert {name.partition("(")[0] for name in called} == sessions
    assert len(called) == len(set(called))


def test_contributing_names_every_room_and_files_that_exist() -> None:
    package = ROOT / "ilmconvert"
    rows = re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    rooms = {place: text for place, text in rows if (package / place).is_dir()}
    assert rooms.keys() >= {path.parent.name for path in package.glob("*/__init__.py")}
    for place, text in rooms.items():
        named = [name.replace("*", "launch") for name in re.findall(r"`([\w*]+\.py)`", text)]
        assert [name for name in named if not (package / place / name).is_file()] == [], place
