"""Checks in environments of their own: ``pip install nox uv``; ``nox -s matrix``, ``release``, ``types``, ``audit``.

``nox -s slow`` and ``nox -s integrations`` run what the usual tests leave out; CI does so once a week.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["matrix", "release", "types", "audit"]
nox.options.stop_on_first_error = False

OLD_TORCH = ("torch==2.6.0", "torchvision==0.21.0")
OLD_TIMM = "timm==1.0.28"
#: Python, how uv resolves the dependencies, and what is fixed beyond that.
COMBINATIONS = {
    "oldest": ("3.10", "lowest-direct", ()),
    "old torch, new timm": ("3.11", "highest", OLD_TORCH),
    "new torch, old timm": ("3.12", "highest", (OLD_TIMM,)),
    "newest": ("3.13", "highest", ()),
}
CHECKOUTS = {
    "timm": "https://github.com/huggingface/pytorch-image-models",
    "torchvision": "https://github.com/pytorch/vision",
}
TESTS = (
    "nn/test_layer",
    "surgery/test_convert",
    "checkpoint/test_checkpoint",
    "models/test_models",
    "cli/test_global_options",
)


@nox.session
@nox.parametrize(
    "combination",
    [nox.param(name, id=name.replace(", ", "-").replace(" ", "-")) for name in COMBINATIONS],
)
def matrix(session: nox.Session, combination: str) -> None:
    """A fixed part of the tests with the oldest and the newest supported versions, and a table of what came of it."""
    python, resolution, fixed = COMBINATIONS[combination]
    venv = Path(session.create_tmp()) / "venv"
    inside = str(venv / "bin" / "python")
    session.run("uv", "venv", "--clear", "--python", python, str(venv), external=True)
    packages = [".", *fixed, "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "setuptools>=75"]
    session.run("uv", "pip", "install", "--python", inside, "--resolution", resolution, *packages, external=True)
    results = venv / "results.xml"
    tests = [f"tests/{name}.py" for name in TESTS]
    command = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", *tests]
    session.run(*command, *session.posargs, external=True, success_codes=[0, 1])
    table = Path(session.cache_dir) / "matrix.md"
    session.run(inside, "-m", "scripts.matrix_row", combination, str(results), str(table), external=True)
    shutil.rmtree(venv)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that ``pytest`` leaves out because they take long."""
    session.install(".[test]")
    session.run("pytest", "-m", "slow and not gpu", *session.posargs)


@nox.session
def integrations(session: nox.Session) -> None:
    """The pages about other libraries, with these and with the scripts of timm and torchvision: none is skipped."""
    session.install(".[test,integrations,flower]")
    places = {name: _checkout(session, name, url) for name, url in CHECKOUTS.items()}
    environment = {
        "ILMCONVERT_TIMM_SCRIPTS": str(places["timm"]),
        "ILMCONVERT_TORCHVISION_REFERENCES": str(places["torchvision"] / "references" / "detection"),
    }
    session.run("pytest", "--no-skips", "-m", "not gpu", "tests/integrations", *session.posargs, env=environment)


def _checkout(session: nox.Session, package: str, url: str) -> Path:
    """The repository of an installed package, at that version."""
    code = f"from importlib.metadata import version; print(version({package!r}).partition('+')[0])"
    version = str(session.run("python", "-c", code, silent=True)).strip()
    place = Path(session.create_tmp()).resolve() / f"{package}-{version}"
    if not place.exists():
        session.run("git", "clone", "--quiet", "--depth=1", f"--branch=v{version}", url, str(place), external=True)
    return place


@nox.session
def release(session: nox.Session) -> None:
    """Wheel and sdist are built, looked into, installed and used, each in an empty environment."""
    session.install("build", "twine")
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.run("python", "-m", "scripts.check_release", str(dist))


@nox.session
def types(session: nox.Session) -> None:
    """Every public name has a full type."""
    session.install(".", "pyright")
    session.chdir(session.create_tmp())  # so that the installed package is looked at
    session.run("pyright", "--verifytypes", "ilmconvert", "--ignoreexternal", external=True)


@nox.session
def audit(session: nox.Session) -> None:
    """No installed dependency has a known vulnerability."""
    session.install(".[finetune,export,dp]", "pip-audit")
    session.run("pip-audit", "--skip-editable", "--progress-spinner", "off", *session.posargs)
