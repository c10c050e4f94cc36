"""Property tests draw the same examples every time; a failure found elsewhere is added as an explicit example.

``--no-skips``, for environments that hold everything: a test that is skipped there hides what it is for.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import settings

from ilmconvert.cli import _progress

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a process a core already; more threads only wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

_progress.PATIENCE = 3600.0  # on a busy machine, too, a test's command says nothing but its results

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if a test is skipped")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
