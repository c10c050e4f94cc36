"""Values that have no business where they are put, drawn from a ``random.Random``."""

from __future__ import annotations

import functools
from random import Random
from typing import Any

from ilmconvert.models.names import list_models

NUMBERS = (0, 1, -1, 2, 3, 7, 10_000, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"))
TEXTS = ("", "x", "weight", "conv1", "..", "/etc/passwd", "\n", "\x00", "ü" * 100, "a" * 100_000, "__class__", "F32")
PLACES = (
    "local-dir:/etc",
    "local-dir:.",
    "hf-hub:timm/resnet18.a1_in1k",
    "hf_hub:timm/resnet18",
    "../../../etc/passwd",
    "/etc/passwd",
    "https://example.org/model.safetensors",
    "file:///etc/passwd",
    "timm/test_resnet",
    "test_resnet.no_such_tag",
    "os.system",
    "torch.nn.Linear",
    "__import__('os').system('true')",
)
# Constructor arguments that would read, fetch, allocate or loop.
ARGUMENTS: tuple[tuple[str, Any], ...] = (
    *(("pretrained", True), ("pretrained_backbone", True), ("weights", "DEFAULT"), ("weights_backbone", "DEFAULT")),
    *(("checkpoint_path", "/etc/passwd"), ("cache_dir", "/etc"), ("state_dict", {}), ("device", "cuda")),
    ("pretrained_cfg", {"url": "https://example.org/a.pth", "file": "/etc/passwd", "hf_hub_id": "timm/resnet18"}),
    ("pretrained_cfg", "hf-hub:timm/resnet18"),
    ("pretrained_cfg_overlay", {"file": "/etc/passwd", "state_dict": {}}),
    *(("num_classes", 10**9), ("num_classes", 9_999), ("num_classes", -1), ("num_classes", "os.system")),
    *(("layers", [9_999] * 4), ("layers", [10**9] * 4), ("depths", [9_999] * 4), ("channels", [9_999] * 4)),
    *(("in_chans", 10**9), ("in_chans", 9_999), ("stem_width", 10**9), ("img_size", 9_999), ("window_size", 9_999)),
    *(("block", "os.system"), ("act_layer", "exec"), ("norm_layer", "groupnorm"), ("act_layer", "silu")),
    *(("features_only", True), ("out_indices", [0, 10**9]), ("scriptable", True), ("exportable", True)),
    *(("depth_multiplier", 1e4), ("width", 1e9), ("output_stride", 10**9), ("drop_path_rate", 1e300)),
)


@functools.cache
def _models() -> tuple[str, ...]:
    return tuple(list_models())


def value(r: Random, depth: int = 0) -> Any:
    """Some JSON value, also one that JSON doesn't have (NaN, infinity)."""
    kind = r.randrange(8 if depth < 3 else 4)
    if kind == 0:
        return r.choice(NUMBERS)
    if kind == 1:
        return r.choice((None, True, False))
    if kind == 2:
        return r.choice((*TEXTS, *PLACES))
    if kind == 3:
        return r.randint(-10, 300)
    if kind == 4:
        return [value(r, depth + 1) for _ in range(r.randint(0, 3))]
    if kind == 5:
        return {str(value(r, 3))[:40]: value(r, depth + 1) for _ in range(r.randint(0, 3))}
    if kind == 6:
        return nested(r.choice((10, 100, 900)))
    return r.choice(ARGUMENTS)[1]


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


def architecture(r: Random) -> Any:
    """Another model's name, half of the time; else what might be taken for one."""
    return r.choice(_models()).removeprefix("torchvision/") if r.random() < 0.5 else r.choice((*PLACES, *TEXTS))


def argument(r: Random) -> tuple[str, Any]:
    """A constructor argument."""
    return r.choice(ARGUMENTS) if r.random() < 0.7 else (str(value(r, 3))[:40], value(r))
