"""Encoders of robot policies: shared between cameras, averaged, in float16, and frozen as ACT has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from ilmconvert import convert, load, save
from tests.helpers import TOLERANCE, randomize_norms, relative_error
from tests.integrations.pages import Page, assert_norms_learnt, assert_same, blocks, evaluate, norms


def observations(n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cameras = {name: torch.rand(n, 3, 84, 84, generator=generator) for name in ("front", "wrist")}
    return cameras | {"state": torch.rand(n, 4, generator=generator)}


@pytest.mark.slow  # examples/robot_policy_ema.py runs everywhere
# The page's last block converts a network without weights.
@pytest.mark.filterwarnings("ignore:20 BatchNorm layers were never trained:UserWarning")
def test_page() -> None:
    torch.manual_seed(0)
    page = Page("robot_policy")
    source = randomize_norms(page.run_next()["source"], scale=0.5)
    obs = observations()
    policy = page.run_next()["policy"]
    assert_same(evaluate(policy, obs), evaluate(source, obs))
    assert policy.encoders["front"] is policy.encoders["wrist"]
    assert len(list(norms(policy))) == 20
    names = page.run_rest()
    average = names["average"].module
    assert_norms_learnt(policy, convert(source))
    assert_norms_learnt(average, convert(source))
    assert average.encoders["front"] is average.encoders["wrist"]
    half = names["deployed"]({name: value.half() for name, value in obs.items()})
    assert half.dtype == torch.float16
    assert relative_error(half, evaluate(average, obs)) <= 4 * TOLERANCE[torch.float16]


def test_converted_in_float16() -> None:
    source = randomize_norms(Page("robot_policy").run_next()["source"], scale=0.5)
    obs = observations()
    expected = evaluate(source, obs)
    found = evaluate(convert(copy.deepcopy(source).half()), {name: value.half() for name, value in obs.items()})
    assert relative_error(found, expected) <= 4 * TOLERANCE[torch.float16]


def test_act_backbone() -> None:
    names: dict[str, Any] = {"resnet18": resnet18}
    exec(blocks("robot_policy", "python")[-1].partition("converted_act")[0], names)
    source = randomize_norms(names["act"], scale=0.5)
    x = observations()["front"]
    assert_same(evaluate(convert(source), x)["feature_map"], evaluate(source, x)["feature_map"])


def test_file(tmp_path: Path) -> None:
    names = Page("robot_policy").run_next()
    policy = convert(randomize_norms(names["source"]))
    save(policy, tmp_path / "policy.safetensors")
    again = load(tmp_path / "policy.safetensors", into=names["Policy"](["front", "wrist"]))
    obs = observations()
    assert torch.equal(evaluate(again, obs), evaluate(policy, obs))
    assert again.encoders["front"] is again.encoders["wrist"]
