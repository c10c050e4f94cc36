"""Other libraries learn of conversions in whichever order they and this package are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ilmconvert.export.import_hook import AWAITED

CHECK = (
    "assert timm.is_model('ilmconvert_model'); "
    "print([sorted(f._awaited) for f in sys.meta_path if hasattr(f, '_awaited')])"
)


def run(code: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import ilmconvert, timm; from timm.models import resnet; ilmconvert.export.import_hook.register()",
        pytest.param("import timm, ilmconvert; ilmconvert.export.import_hook.register()", marks=pytest.mark.slow),
    ],
)
def test_either_order(imports: str) -> None:
    left = sorted(AWAITED.keys() - {"timm.models"})
    assert run(f"import sys; {imports}; {CHECK}") == f"[{left}]"


def test_the_import_is_cheap_and_leaves_timm_alone() -> None:
    code = (
        "import sys, ilmconvert\n"
        "ilmconvert.export.import_hook.register()\n"
        "print(sum('ilmconvert' in type(f).__module__ for f in sys.meta_path), {'torch', 'timm'} & set(sys.modules))\n"
        "import timm, importlib.resources, inspect\n"
        "print(type(timm.models.__loader__).__name__, type(timm.models.__spec__.loader).__name__)\n"
        "print(importlib.resources.files('timm.models').joinpath('resnet.py').is_file())\n"
        "print('register_model' in inspect.getsource(timm.models))"
    )
    assert run(code).splitlines() == ["1 set()", "SourceFileLoader SourceFileLoader", "True", "True"]


@pytest.mark.slow
def test_an_import_that_fails_is_tried_again() -> None:
    code = (
        "import sys, ilmconvert\n"
        "sys.modules['torch'] = None\n"
        "try: import timm\n"
        "except ImportError: print('failed')\n"
        "del sys.modules['torch']\n"
        f"import timm; {CHECK}"
    )
    assert run(code).splitlines()[0] == "failed"


def test_without_timm() -> None:
    code = (
        "import sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] == 'timm': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "import ilmconvert\n"
        "try: import timm.models\n"
        "except ModuleNotFoundError as e: print(e)"
    )
    assert run(code) == "timm"
