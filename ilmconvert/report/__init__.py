"""Reports as single HTML files that open from disk: of a verification, and of a fine-tuning run."""

from __future__ import annotations

from ilmconvert.errors import ReportError
from ilmconvert.report.compare_runs import RunComparison, compare_runs
from ilmconvert.report.run import Run, read_run
from ilmconvert.report.run_page import write_run
from ilmconvert.report.verification_page import write_verification

__all__ = [
    "ReportError",
    "Run",
    "RunComparison",
    "compare_runs",
    "read_run",
    "write_run",
    "write_verification",
]
