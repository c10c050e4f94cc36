"""Property tests draw the same examples every time; a failure found elsewhere is added as an explicit example."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a process a core already; more threads only wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")
