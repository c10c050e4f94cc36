"""The table of other libraries' networks: every check can fail, and a run can be continued."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.other_libraries import check
from benchmarks.other_libraries.__main__ import main
from benchmarks.other_libraries.networks import NETWORKS, QUICK, Network
from benchmarks.other_libraries.table import RESULTS, markdown, read
from tests.helpers import ROOT


@pytest.mark.slow
def test_a_quick_run_passes_every_check_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr(sys, "argv", ["other_libraries", "--quick", "--out", str(out)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the process that checks the networks
    main()
    shown = capsys.readouterr().out
    lines = read(out)
    assert [line["network"] for line in lines] == list(QUICK)
    for line in lines:
        assert line["problem"] is None
        assert all(line[name] is True for name in check.CHECKS)
        assert line["converted"] == line["norms"] > 0
        assert 0 < line["error"] < 1e-5
    assert shown.strip() == markdown(lines).strip()
    lines[0]["seconds"] = -1
    out.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    main()
    assert read(out) == lines
    assert capsys.readouterr().out.strip() == shown.strip()


class Odd(nn.Module):
    """A network whose gamma is read by somebody else, or whose state dict lacks what it computes with."""

    def __init__(self, fault: str | None = None) -> None:
        super().__init__()
        self.norm, self.fault = nn.BatchNorm1d(8), fault
        self.hidden = torch.randn(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        if self.fault == "reads gamma":
            # Not seen by the search of the source text, so that the network is converted.
            y = y * dict(self.named_parameters())["norm.weight"]
        return y + self.hidden if self.fault == "not in the state dict" else y


@pytest.mark.parametrize(
    ("fault", "passed", "problem"),
    [
        (None, 4, None),
        ("reads gamma", 0, "ValueError: relative error"),
        ("not in the state dict", 1, "ValueError: the loaded network computes something else"),
    ],
)
def test_a_fault_is_a_line(monkeypatch: pytest.MonkeyPatch, fault: str | None, passed: int, problem: str) -> None:
    path = f"{__name__}:Odd"
    monkeypatch.setitem(NETWORKS, "odd", Network("torch", path, kwargs={"fault": fault}, shapes=((4, 8),)))
    line = check.check("odd")
    assert sum(line[name] is True for name in check.CHECKS) == passed
    assert line["problem"] is None if problem is None else line["problem"].startswith(problem)


def test_the_committed_table_has_a_hundred_networks_that_pass() -> None:
    lines = read(RESULTS)
    names = [line["network"] for line in lines]
    assert len(set(names)) == len(names) >= 100
    assert set(names) <= NETWORKS.keys()
    # Nothing is silently wrong: a network that was converted and compared is exact.
    assert all(line["exact"] is True for line in lines if line["error"] is not None)
    page = (ROOT / "docs" / "other-libraries.md").read_text()
    assert markdown(lines) in page
