"""A built wheel and sdist, looked into, installed and used: ``python -m scripts.check_release DIST``.

Each of them is installed into an empty environment with its dependencies, by uv, and has to tell its version, convert
a network and load the file again, outside of the source tree.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from ilmconvert import __version__

HOLDS = ("py.typed", "zoo_norms.csv", "cli/__init__.py")
SDIST_HOLDS = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "tests/cli/test_commands.py")
USE = """
import ilmconvert, torch
assert ilmconvert.__version__ == {version!r}
model = ilmconvert.load("test_resnet-ilm_gn.safetensors")
assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
print("loaded from", ilmconvert.__file__)
"""


def check_wheel(path: Path) -> None:
    """What the package needs at run time is in, nothing else is, and its metadata tell this version."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = f"ilmconvert-{__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    package = Path(__file__).parent.parent / "ilmconvert"
    sources = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    expected = {p.relative_to(package.parent).as_posix() for p in sources}
    _same("wheel", {name for name in names if not name.startswith(f"{info}/")}, expected)
    assert any(name.startswith("ilmconvert/report/templates/") for name in names), "no templates"
    assert {f"ilmconvert/{name}" for name in HOLDS} <= names, "a file that the package needs is missing"
    assert f"{info}/licenses/LICENSE" in names, "no licence"
    assert metadata["Version"] == __version__, f"{metadata['Version']} is not {__version__}"


def check_sdist(path: Path) -> None:
    """The sdist holds what tests and a rebuild need."""
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    missing = {*SDIST_HOLDS, *(f"ilmconvert/{name}" for name in HOLDS)} - names
    assert not missing, f"the sdist lacks {sorted(missing)}"


def use(archive: Path) -> None:
    """Install into an empty environment and convert a network there."""
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "venv" / "bin"
        _run(folder, "uv", "venv", "--quiet", "--python", sys.executable, "venv")
        _run(folder, "uv", "pip", "install", "--quiet", "--python", str(inside / "python"), str(archive.resolve()))
        program = str(inside / "ilmconvert")
        _run(folder, program, "--version")
        _run(folder, program, "test_resnet", "--weights", "none", "--quiet")
        _run(folder, program, "inspect", "test_resnet-ilm_gn.safetensors")
        _run(folder, str(inside / "python"), "-c", USE.format(version=__version__))


def _run(folder: str, *command: str) -> None:
    print("$", *command[:6], flush=True)
    subprocess.run(command, cwd=folder, check=True)


def _same(what: str, found: set[str], expected: set[str]) -> None:
    assert found == expected, f"{what}: missing {sorted(expected - found)}, too many {sorted(found - expected)}"


def main() -> None:
    (wheel,), (sdist,) = (list(Path(sys.argv[1]).glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    check_wheel(wheel)
    check_sdist(sdist)
    for archive in (wheel, sdist):
        use(archive)
    print(f"{wheel.name} and {sdist.name} are good")


if __name__ == "__main__":
    main()
